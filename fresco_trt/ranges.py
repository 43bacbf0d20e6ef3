"""Activation and weight ranges of a model's linear layers, as a file: what quantising needs.

Written by ``lower/ranges.py`` and read by a build. Data only: a safetensors file whose header says
of which weights, on which plan, by which prompts and for which recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import CalibrationError
from fresco_trt.measured import read_measured, store_measured

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.recipes import Recipe

SCHEMA = 1
_KINDS = ("input", "weight", "smooth")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesRecord:
    """Where ranges come from: the model and the SHA-256 of its weights, the recipe's name, the
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
class LayerRange:
    """Largest magnitudes in one linear layer, float32 on the CPU.

    ``input`` [K]: of what enters it in each of K stages; ``weight`` [out] or []: of its weight,
    for each output channel or in all; ``smooth`` [in] or None: what its inputs are multiplied by
    and its weight divided by first. With it both are those after smoothing.
    """

    input: Tensor
    weight: Tensor
    smooth: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranges:
    """The ranges of every quantised layer, by its path in the transformer."""

    layers: Mapping[str, LayerRange]
    record: RangesRecord

    def to_json(self) -> dict[str, Any]:
        """Its record, and the largest input magnitude of each layer in each stage."""
        inputs = {name: _digits(layer.input) for name, layer in self.layers.items()}
        return {**asdict(self.record), "kept": list(self.record.kept), "inputs": inputs}

    def digest(self) -> str:
        """SHA-256 of the record and all tensors."""
        sha = hashlib.sha256(repr(self.record).encode())
        for name, tensor in sorted(self._tensors().items()):
            sha.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return sha.hexdigest()

    def store(self, path: Path) -> None:
        """Write the file whole or not at all. Raises OutputNotWritable or DiskFull."""
        store_measured(path, SCHEMA, self.record, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        named = (
            (f"{name}.{kind}", getattr(layer, kind))
            for name, layer in self.layers.items()
            for kind in _KINDS
        )
        return {name: tensor.contiguous() for name, tensor in named if tensor is not None}


def read_ranges(path: Path) -> Ranges:
    """Stored ranges. Raises CalibrationError for a file that is none, or a damaged one."""
    record, tensors = read_measured(path, SCHEMA, RangesRecord, _COMMAND)
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    ranges = Ranges(layers={name: _layer(name, tensors, path) for name in layers}, record=record)
    check_finite(ranges)
    return ranges


def check_finite(ranges: Ranges) -> None:
    """Raise CalibrationError unless every range is a positive number, zero for a dead channel."""
    for name, layer in ranges.layers.items():
        for kind in _KINDS:
            tensor = getattr(layer, kind)
            if tensor is None or (tensor.isfinite().all() and (tensor >= 0).all()):
                continue
            raise CalibrationError(
                f"the {kind} range of {name} is {_digits(tensor.flatten()[:4])}",
                expected="finite numbers from 0 up",
                fix="check the weights and the prompts: this is what they gave when measured",
            )


def check_ranges(
    ranges: Ranges, *, model: str, weights_sha256: str, recipe: Recipe, plan_sha256: str
) -> None:
    """Raise CalibrationError unless ranges are of exactly these weights, recipe and plan."""
    record = ranges.record
    pairs = {
        "model": (record.model, model),
        "weights": (record.weights_sha256, weights_sha256),
        "recipe": (record.recipe, recipe.name),
        "plan": (record.plan_sha256, plan_sha256),
    }
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if wrong:
        raise CalibrationError(
            "ranges of " + ", ".join(f"{name} {found[:12]}" for name, (found, _) in wrong.items()),
            expected=", ".join(f"{name} {asked[:12]}" for name, (_, asked) in wrong.items()),
            fix=f"measure them for this build with '{_COMMAND}', or leave --ranges out to have the "
            "build do so",
        )


_COMMAND = "fresco-trt calibrate --measure ranges"


def _layer(name: str, tensors: Mapping[str, Tensor], path: Path) -> LayerRange:
    parts = {kind: tensors.get(f"{name}.{kind}") for kind in _KINDS}
    if parts["input"] is None or parts["weight"] is None:
        raise CalibrationError(
            f"{path.name} lacks a range of {name or 'a layer'}",
            expected=f"a file that '{_COMMAND}' wrote",
            fix="measure it again with that command",
        )
    return LayerRange(input=parts["input"], weight=parts["weight"], smooth=parts["smooth"])


def _digits(tensor: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in tensor.flatten().tolist()]
