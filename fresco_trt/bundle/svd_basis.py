"""The SVD basis of a model's features, as a file: what SVD-Cache splits features along.

Written by ``lower/calibrate/basis.py``, carried in the bundle, read when a bundle is loaded. Data
only: a safetensors file whose header says of which weights, by which prompts and to which energy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.bundle.tensor_file import read_measured, store_measured, unusable
from fresco_trt.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

BASIS_FILE = "cache-basis.safetensors"
"""Its name in a bundle."""

SCHEMA = 1
_COMMAND = "fresco-trt calibrate --measure basis"
_TOLERANCE = 1e-4  # of orthonormality in float32, over a few thousand channels


@dataclass(frozen=True, slots=True, kw_only=True)
class BasisRecord:
    """Where a basis comes from: the model and the SHA-256 of its weights, the share of energy that
    was asked for, how many prompts drew the trajectories and the SHA-256 of their lines, the first
    of their seeds, and the plan's SHA-256.
    """

    model: str
    weights_sha256: str
    energy: float
    prompts: int
    prompts_sha256: str
    seed: int
    plan_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """``directions`` [H,k], orthonormal columns, largest energy first, and all ``values`` [H], the
    singular values, both float32 on the CPU.
    """

    directions: Tensor
    values: Tensor
    record: BasisRecord

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return int(self.directions.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Its record, rank, and the share of the energy that each direction holds."""
        powers = self.values.double().square()
        shares = (powers / powers.sum())[: self.rank].tolist()
        return {**asdict(self.record), "rank": self.rank, "shares": shares}

    def store(self, path: Path) -> None:
        """Write the file whole or not at all. Raises OutputNotWritable or DiskFull."""
        tensors = {"directions": self.directions.contiguous(), "values": self.values.contiguous()}
        store_measured(path, SCHEMA, self.record, tensors)


def read_basis(path: Path) -> Basis:
    """A stored basis. Raises CalibrationError for a file that is none, or a damaged one."""
    record, tensors = read_measured(path, SCHEMA, BasisRecord, _COMMAND)
    if tensors.keys() != {"directions", "values"}:
        raise unusable(path, f"it holds {', '.join(sorted(tensors))}", _COMMAND)
    basis = Basis(**tensors, record=record)
    _check_directions(basis, path)
    return basis


def check_basis(basis: Basis, *, model: str, weights_sha256: str, hidden: int) -> None:
    """Raise CalibrationError unless a basis was measured on exactly these weights."""
    record, width = basis.record, int(basis.directions.shape[0])
    found = (record.model, record.weights_sha256[:12], width)
    wanted = (model, weights_sha256[:12], hidden)
    if (record.weights_sha256, *found) != (weights_sha256, *wanted):
        raise CalibrationError(
            f"an SVD basis of {found[0]}, weights {found[1]}, {found[2]} channels",
            expected=f"those of {wanted[0]}, weights {wanted[1]}, {wanted[2]} channels",
            fix=f"measure them with 'fresco-trt calibrate --model {model} --measure basis'",
        )


def _check_directions(basis: Basis, path: Path) -> None:
    import torch

    directions, values = basis.directions, basis.values
    shapes = (directions.ndim, tuple(values.shape)) == (2, (len(directions),))
    if not shapes or {directions.dtype, values.dtype} != {torch.float32}:
        raise unusable(path, "its tensors are no float32 [H,k] and [H]", _COMMAND)
    gram = directions.mT.double() @ directions.double()
    away = (gram - torch.eye(basis.rank, dtype=torch.float64)).abs()
    if not (basis.rank and bool((away < _TOLERANCE).all())):
        raise unusable(path, "its columns are not orthonormal", _COMMAND)
