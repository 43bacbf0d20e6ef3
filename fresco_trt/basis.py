"""The principal directions of a model's features, as a file: what SVD-Cache splits features along.

Written by ``lower/principal.py``, carried in the bundle, read when a bundle is loaded. Data only: a
safetensors file whose header says of which weights, by which prompts and to which energy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

BASIS_FILE = "cache-basis.safetensors"
"""Its name in a bundle."""

SCHEMA = 1
_HEADER = "fresco-trt"
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
        """Write the file beside its final place, then rename it.

        The same basis gives the same bytes. Raises OutputNotWritable or DiskFull.
        """
        from safetensors.torch import save_file

        from fresco_trt.backends.base import writing

        header = json.dumps({"schema": SCHEMA, **asdict(self.record)}, sort_keys=True)
        partial = path.with_name(f".{token_hex(8)}.partial")
        tensors = {"directions": self.directions.contiguous(), "values": self.values.contiguous()}
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, partial, {_HEADER: header})
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def read_basis(path: Path) -> Basis:
    """A stored basis. Raises CalibrationError for a file that is none, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = _record((file.metadata() or {}).get(_HEADER), path)
            directions, values = file.get_tensor("directions"), file.get_tensor("values")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error
    basis = Basis(directions=directions, values=values, record=record)
    _check_directions(basis, path)
    return basis


def check_basis(basis: Basis, *, model: str, weights_sha256: str, hidden: int) -> None:
    """Raise CalibrationError unless a basis was measured on exactly these weights."""
    record, width = basis.record, int(basis.directions.shape[0])
    found = (record.model, record.weights_sha256[:12], width)
    wanted = (model, weights_sha256[:12], hidden)
    if (record.weights_sha256, *found) != (weights_sha256, *wanted):
        raise CalibrationError(
            f"principal directions of {found[0]}, weights {found[1]}, {found[2]} channels",
            expected=f"those of {wanted[0]}, weights {wanted[1]}, {wanted[2]} channels",
            fix=f"measure them with 'fresco-trt calibrate --model {model} --measure basis'",
        )


def _record(header: str | None, path: Path) -> BasisRecord:
    try:
        values: dict[str, Any] = json.loads(header or "")
        schema = values.pop("schema")
        record = BasisRecord(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, "its header is not one") from error
    kinds = {"int": int, "float": float, "str": str}
    for field in fields(record):
        if type(getattr(record, field.name)) is not kinds[str(field.type)]:
            raise _unreadable(path, f"{field.name} in its header is no {field.type}")
    if schema != SCHEMA:
        raise _unreadable(path, f"it has schema {schema}, this version reads {SCHEMA}")
    return record


def _check_directions(basis: Basis, path: Path) -> None:
    import torch

    directions, values = basis.directions, basis.values
    shapes = (directions.ndim, tuple(values.shape)) == (2, (len(directions),))
    if not shapes or {directions.dtype, values.dtype} != {torch.float32}:
        raise _unreadable(path, "its tensors are no float32 [H,k] and [H]")
    gram = directions.mT.double() @ directions.double()
    away = (gram - torch.eye(basis.rank, dtype=torch.float64)).abs()
    if not (basis.rank and bool((away < _TOLERANCE).all())):
        raise _unreadable(path, "its columns are not orthonormal")


def _unreadable(path: Path, why: str) -> CalibrationError:
    return CalibrationError(
        f"the basis {path.name} cannot be used: {why}",
        expected="a file that 'fresco-trt calibrate --measure basis' wrote",
        fix="measure it again with that command",
    )
