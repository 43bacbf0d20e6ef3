"""Amax of linear layers and attention, measured where they are used: on a stage plan's steps.

Between the loaded weights and the quantised graphs. nvidia-modelopt calibrates its own copy of the
model in torch while the plan's sampler draws the calibration prompts, so that a range covers every
stage's grid at its noise levels. Torch, and not ONNX: one measurement then serves every stage,
whose weights are quantised once, every backend, and a model too large for one protobuf.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fresco_trt.bundle.amax import Amax, AmaxRecord, AttentionAmax, LayerAmax, check_finite
from fresco_trt.errors import BackendUnavailable, CalibrationError
from fresco_trt.lower.calibrate.trajectories import in_full, walks
from fresco_trt.lower.quantize.simulation import shallow
from fresco_trt.plan.recipes import kept_by

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.stages import StagePlan

MEASURING = "measuring amax"
ALPHA = 0.5
"""SmoothQuant's migration strength: half of the difficulty stays with the activations."""

_BMM = {"query": "q_bmm", "key": "k_bmm", "value": "v_bmm"}
"""What modelopt calls the operands of attention."""


def layers_of(transformer: nn.Module, kept: Sequence[str]) -> tuple[str, ...]:
    """Paths of the linear layers that no pattern keeps. Raises CalibrationError for none."""
    linear = [name for name, part in transformer.named_modules() if type(part) is nn.Linear]
    layers = tuple(name for name in linear if not kept_by(kept, name))
    if not layers:
        raise CalibrationError(
            f"all {len(linear)} linear layers are kept by {', '.join(kept)}",
            expected="at least one layer to quantise",
            fix="pass fewer or narrower patterns with keep",
        )
    return layers


def attentions_of(reference: Reference, recipe: Recipe, kept: Sequence[str]) -> tuple[str, ...]:
    """Paths of the attentions whose products the recipe quantises and no pattern keeps. Raises
    CalibrationError if it quantises them and none is left.
    """
    if not recipe.attention:
        return ()
    every = reference.family.graphs.attention(reference.transformer)
    paths = tuple(path for path in every if not kept_by(kept, path))
    if not paths:
        raise CalibrationError(
            f"the attention of all {len(every)} blocks is kept by {', '.join(kept)}",
            expected=f"at least one to quantise with the recipe {recipe.name}",
            fix="pass fewer or narrower patterns with keep, or leave recipe out",
        )
    return paths


def measure_amax(
    reference: Reference,
    plan: StagePlan,
    recipe: Recipe,
    kept: Sequence[str],
    progress: Progress,
) -> Amax:
    """Draw every prompt of ``reference`` by ``plan``, every step in full, and measure.

    ``kept`` are patterns of layers that stay as they are. The weights of ``reference`` are not
    changed. Raises CalibrationError for amax that are not finite or when no layer is left, and
    BackendUnavailable without nvidia-modelopt.
    """
    _require()
    for name, weight in reference.transformer.named_parameters():
        _require_finite(f"the weight {name}", weight)
    layers, full = layers_of(reference.transformer, kept), in_full(plan)
    attentions = attentions_of(reference, recipe, kept)
    # SmoothQuant divides weights in place.
    copied = copy.deepcopy if recipe.smooth else shallow
    model = copied(reference.transformer)
    seen = _Inputs({name: name for name in layers} | _operands(attentions))

    def draw(model: nn.Module) -> None:
        with ExitStack() as scope:
            seen.attach(model, scope)
            found = walks(replace(reference, transformer=model), full, scope)
            total = len(found) * full.nfe
            for done, step in enumerate(chain.from_iterable(found)):
                seen.fold(step.stage)
                progress(MEASURING, done / total)

    model = _calibrated(model, recipe, (*layers, *attentions), draw)
    amax = Amax(
        layers={name: _layer(model.get_submodule(name), seen.stages(name)) for name in layers},
        attention={path: _attention(path, seen) for path in attentions},
        record=AmaxRecord(
            model=reference.facts.name,
            weights_sha256=reference.weights_sha256,
            recipe=recipe.name,
            kept=tuple(kept),
            prompts=len(reference.prompts),
            prompts_sha256=reference.prompts_sha256,
            seed=reference.seed,
            plan_sha256=full.digest(),
        ),
    )
    check_finite(amax)
    progress(MEASURING, 1.0)
    return amax


def _require_finite(what: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise CalibrationError(
            f"{what} is not finite on the calibration prompts",
            expected="finite numbers",
            fix="check the weights: they give no picture at all",
        )


# --- modelopt ---------------------------------------------------------------------------------


def _require() -> None:
    if find_spec("modelopt") is None:
        raise BackendUnavailable(
            "quantising without nvidia-modelopt",
            expected="the library that calibrates",
            fix="pip install 'fresco-trt[quant]'",
        )


def _calibrated(
    model: nn.Module, recipe: Recipe, parts: Sequence[str], draw: Callable[[nn.Module], None]
) -> nn.Module:
    """``model`` with modelopt's quantisers on exactly ``parts``, linear layers and attentions,
    calibrated by ``draw``.
    """
    with _quiet():
        from modelopt.torch import quantization

        done: nn.Module = quantization.quantize(model, _config(recipe, parts), draw)
    return done


def _config(recipe: Recipe, parts: Sequence[str]) -> dict[str, Any]:
    """modelopt's form of a recipe: everything off, then the parts on, later entries winning. A part
    has the quantisers of a linear layer or those of attention, never both.
    """
    bits: Any = 8 if recipe.precision == "int8" else (4, 3)
    kinds = {"weight": 0 if recipe.channels else None, "input": None}
    if recipe.attention:
        kinds |= dict.fromkeys(_BMM.values())
    on = [
        {"quantizer_name": f"{part}.{kind}_quantizer", "cfg": {"num_bits": bits, "axis": axis}}
        for part in parts
        for kind, axis in kinds.items()
    ]
    smooth = {"method": "smoothquant", "alpha": ALPHA}
    return {
        "quant_cfg": [{"quantizer_name": "*", "enable": False}, *on],
        "algorithm": smooth if recipe.smooth else "max",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """modelopt prints what it inserts, and warns of packages and layers that are not ours."""
    logger = logging.getLogger("modelopt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _operands(attentions: Sequence[str]) -> dict[str, str]:
    """Where query, key and value pass in modelopt's attention, by the names of their amax: its
    quantisers stand after the rotary embedding, right before the products.
    """
    return {
        f"{path}.{operand}": f"{path}.{kind}_quantizer"
        for path in attentions
        for operand, kind in _BMM.items()
    }


def _attention(path: str, seen: _Inputs) -> AttentionAmax:
    query, key, value = (seen.stages(f"{path}.{operand}").amax(dim=1) for operand in _BMM)
    return AttentionAmax(query=query, key=key, value=value)


def _layer(module: nn.Module, inputs: Tensor) -> LayerAmax:
    """What modelopt decided of one layer, with its ``inputs`` [K,in] of each stage."""
    quantised: Any = module
    smooth = getattr(quantised.input_quantizer, "pre_quant_scale", None)
    weight = quantised.weight_quantizer.amax.detach().float().cpu()
    if smooth is not None:
        smooth = smooth.detach().float().cpu()
        inputs = inputs * smooth
    weight = weight.reshape(-1) if weight.ndim else weight
    return LayerAmax(input=inputs.amax(dim=1), weight=weight, smooth=smooth)


# --- inputs by stage --------------------------------------------------------------------------


class _Inputs:
    """Largest magnitude of every channel that enters each module, kept apart by stage. Modules are
    given by name and path.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules
        self._now: dict[str, Tensor] = {}
        self._stages: dict[int, dict[str, Tensor]] = {}

    def attach(self, model: nn.Module, scope: ExitStack) -> None:
        """Look at the inputs of the modules until ``scope`` ends."""
        for name, path in self._modules.items():
            hook = model.get_submodule(path).register_forward_pre_hook(self._hook(name))
            scope.callback(hook.remove)

    def fold(self, stage: int) -> None:
        """What was seen since the last call belongs to ``stage``."""
        kept = self._stages.setdefault(stage, {})
        for name, largest in self._now.items():
            kept[name] = torch.maximum(kept[name], largest) if name in kept else largest
        self._now = {}

    def stages(self, name: str) -> Tensor:
        """[K,in], float32, in the order of the stages."""
        return torch.stack([kept[name] for _, kept in sorted(self._stages.items())])

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest = inputs[0].detach().abs().flatten(0, -2).amax(dim=0).float().cpu()
            _require_finite(f"what enters {name}", largest)
            known = self._now.get(name)
            self._now[name] = largest if known is None else torch.maximum(known, largest)

        return look
