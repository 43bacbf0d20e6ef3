"""Amax of a model's linear layers and of its attention, as a file: what quantising needs.

Written by ``lower/amax.py`` and read by a build. Data only: a safetensors file whose header says
of which weights, on which plan, by which prompts and for which recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.bundle.tensor_file import read_measured, store_measured
from fresco_trt.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.recipes import Recipe

SCHEMA = 1
_KINDS = ("input", "weight", "smooth")
_OPERANDS = ("query", "key", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmaxRecord:
    """Where amax come from: the model and the SHA-256 of its weights, the recipe's name, the
    patterns of the layers kept out of it, how many prompts drew the trajectories and the SHA-256
    of their lines, the first of their seeds, and the SHA-256 of the plan.
    """

    model: str
    weights_sha256: str
    recipe: str
    kept: tuple[str, ...]
    prompts: int
    prompts_sha256: str
    seed: int
    plan_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerAmax:
    """Largest magnitudes in one linear layer, float32 on the CPU.

    ``input`` [K]: of what enters it in each of K stages; ``weight`` [out] or []: of its weight,
    for each output channel or in all; ``smooth`` [in] or None: what its inputs are multiplied by
    and its weight divided by first. With it both are those after smoothing.
    """

    input: Tensor
    weight: Tensor
    smooth: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionAmax:
    """Largest magnitudes of what one attention multiplies, float32 [K] on the CPU: in each of K
    stages, after the rotary embedding and before any scale of attention.
    """

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Amax:
    """The amax of every quantised layer, by its path in the transformer, and for a recipe with
    attention those of every attention whose products are quantised.
    """

    layers: Mapping[str, LayerAmax]
    record: AmaxRecord
    attention: Mapping[str, AttentionAmax] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its record, and the largest input magnitude of each layer in each stage; those of
        attention are named after what they are of, as in "transformer_blocks.0.attn.query".
        """
        entering = {name: layer.input for name, layer in self.layers.items()}
        operands = {
            f"{path}.{kind}": tensor for path, kind, tensor in self.named() if kind in _OPERANDS
        }
        return {
            **asdict(self.record),
            "kept": list(self.record.kept),
            "inputs": {name: _digits(tensor) for name, tensor in entering.items()},
            "attention": {name: _digits(tensor) for name, tensor in operands.items()},
        }

    def digest(self) -> str:
        """SHA-256 of the record and all tensors."""
        sha = hashlib.sha256(repr(self.record).encode())
        for name, tensor in sorted(self._tensors().items()):
            sha.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return sha.hexdigest()

    def store(self, path: Path) -> None:
        """Write the file whole or not at all. Raises OutputNotWritable or DiskFull."""
        store_measured(path, SCHEMA, self.record, self._tensors())

    def named(self) -> Iterator[tuple[str, str, Tensor]]:
        """Path, kind ("input", "query") and tensor of every range that there is."""
        parts = ((self.layers, _KINDS), (self.attention, _OPERANDS))
        for amax, kinds in parts:
            for path, each in amax.items():
                for kind in kinds:
                    tensor = getattr(each, kind)
                    if tensor is not None:
                        yield path, kind, tensor

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{path}.{kind}": tensor.contiguous() for path, kind, tensor in self.named()}


def read_amax(path: Path) -> Amax:
    """Stored amax. Raises CalibrationError for a file that is none, or a damaged one."""
    record, tensors = read_measured(path, SCHEMA, AmaxRecord, _COMMAND)
    parts = [name.rpartition(".")[::2] for name in tensors]
    layers = sorted({each for each, kind in parts if kind not in _OPERANDS})
    attention = sorted({each for each, kind in parts if kind in _OPERANDS})
    amax = Amax(
        layers={
            name: LayerAmax(
                **_required(name, ("input", "weight"), tensors, path),
                smooth=tensors.get(f"{name}.smooth"),
            )
            for name in layers
        },
        attention={
            name: AttentionAmax(**_required(name, _OPERANDS, tensors, path)) for name in attention
        },
        record=record,
    )
    check_finite(amax)
    return amax


def check_finite(amax: Amax) -> None:
    """Raise CalibrationError unless every range is a positive number, zero for a dead channel."""
    for path, kind, tensor in amax.named():
        if not (tensor.isfinite().all() and (tensor >= 0).all()):
            raise CalibrationError(
                f"the {kind} range of {path} is {_digits(tensor.flatten()[:4])}",
                expected="finite numbers from 0 up",
                fix="check the weights and the prompts: this is what they gave when measured",
            )


def check_amax(
    amax: Amax, *, model: str, weights_sha256: str, recipe: Recipe, plan_sha256: str
) -> None:
    """Raise CalibrationError unless amax are of exactly these weights, recipe and plan, and of
    attention where the recipe quantises it.
    """
    record = amax.record
    pairs = {
        "model": (record.model, model),
        "weights": (record.weights_sha256, weights_sha256),
        "recipe": (record.recipe, recipe.name),
        "plan": (record.plan_sha256, plan_sha256),
    }
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if wrong:
        raise CalibrationError(
            "amax of " + ", ".join(f"{name} {_short(found)}" for name, (found, _) in wrong.items()),
            expected=", ".join(f"{name} {_short(asked)}" for name, (_, asked) in wrong.items()),
            fix=_MEASURE,
        )
    if recipe.attention and not amax.attention:
        raise CalibrationError(
            f"amax of {len(amax.layers)} layers and of no attention",
            expected=f"those of query, key and value too, for the recipe {recipe.name}",
            fix=_MEASURE,
        )


def _short(text: str) -> str:
    """A name as it is, of a digest the beginning."""
    return text[:12] if len(text) == _DIGEST else text


_DIGEST = 64
_COMMAND = "fresco-trt calibrate --measure amax"
_MEASURE = (
    f"measure them for this build with '{_COMMAND}', or leave amax out to have the build do so"
)


def _required(
    name: str, kinds: Iterable[str], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The amax that a layer or an attention cannot do without, by their kind."""
    try:
        return {kind: tensors[f"{name}.{kind}"] for kind in kinds}
    except KeyError as error:
        raise CalibrationError(
            f"{path.name} lacks a range of {name or 'a layer'}",
            expected=f"a file that '{_COMMAND}' wrote",
            fix="measure it again with that command",
        ) from error


def _digits(tensor: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in tensor.flatten().tolist()]
