"""FP8 modules over random weights, for engines in FP8: made on the device.

Amax are those of one call at the full grid: what is drawn is noise whatever they are, and a product
takes as long whatever its values.
"""

from __future__ import annotations

from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.gpu.engines import example_inputs
from bench.gpu.weights import describe
from fresco_trt.backends.transformer import FOLDER
from fresco_trt.bundle.amax import Amax, AmaxRecord, LayerAmax
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.signatures import full_signature
from fresco_trt.plan.recipes import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module

    from bench.gpu.engines import Subject
    from fresco_trt.plan.recipes import Recipe


def make_fp8_modules(
    subject: Subject, transformer: Module, folder: Path
) -> tuple[Module, dict[str, Any]]:
    """The transformer with FP8 modules, described in ``folder``, and what that took; all else of it
    is shared. Raises OutputNotWritable or DiskFull.
    """
    from fresco_trt.lower.quantize.fp8_modules import with_fp8_modules
    from fresco_trt.lower.quantize.qdq import Quantizer

    began = perf_counter()
    quantizer = Quantizer(recipe=_recipe(subject), amax=_amax(subject, transformer))
    quantised = with_fp8_modules(transformer, quantizer)
    size = describe(quantised, folder / FOLDER)
    return quantised, {"bytes": size, "made_seconds": perf_counter() - began}


def _amax(subject: Subject, transformer: Module) -> Amax:
    """Largest magnitudes of one call of the network: of each layer's inputs, and its weight's."""
    import torch

    from fresco_trt.lower.calibrate.amax import layers_of

    facts = subject.facts
    signature = full_signature(facts, subject.tokens, facts.text_tokens)
    inputs = example_inputs(signature, subject.device)
    entered: dict[str, Tensor] = {}
    layers = layers_of(transformer, facts.high_precision)
    with ExitStack() as scope, torch.no_grad():
        for name in layers:
            hook = transformer.get_submodule(name).register_forward_pre_hook(_look(entered, name))
            scope.callback(hook.remove)
        graph_from_signature(transformer, signature)(*inputs.values())
    weights = {name: transformer.get_submodule(name).weight for name in layers}
    return Amax(
        layers={
            name: _layer_amax(entered[name], weights[name], _recipe(subject)) for name in layers
        },
        record=_record(subject),
    )


def _look(entered: dict[str, Tensor], name: str) -> Any:
    def look(module: Module, inputs: tuple[Tensor, ...]) -> None:
        entered[name] = inputs[0].detach().abs().amax().float().cpu().reshape(1)

    return look


def _layer_amax(entered: Tensor, weight: Any, recipe: Recipe) -> LayerAmax:
    sizes = weight.detach().abs()
    largest = sizes.amax(dim=1) if recipe.channels else sizes.amax()
    return LayerAmax(input=entered, weight=largest.float().cpu())


def _recipe(subject: Subject) -> Recipe:
    return RECIPES[str(subject.recipe)]


def _record(subject: Subject) -> AmaxRecord:
    return AmaxRecord(
        model=subject.facts.name,
        weights_sha256="",
        recipe=_recipe(subject).name,
        kept=subject.facts.high_precision,
        prompts=0,
        prompts_sha256="",
        seed=0,
        plan_sha256="",
    )
