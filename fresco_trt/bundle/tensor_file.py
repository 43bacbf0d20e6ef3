"""Measured tensors as a file: safetensors, with a JSON record of where they come from as header.

What ``basis.py`` and ``amax.py`` share. The same contents give the same bytes; a file is written
whole or not at all; a damaged or foreign one is refused with the command that writes a new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fresco_trt.errors import CalibrationError
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from torch import Tensor

HEADER = "fresco-trt"

_Record = TypeVar("_Record")


def store_measured(path: Path, schema: int, record: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write beside the final place, then rename. Raises OutputNotWritable or DiskFull."""
    from safetensors.torch import save_file

    header = json.dumps({"schema": schema, **asdict(record)}, sort_keys=True)
    with replacing(path) as partial:
        # Cloned: tensors that share memory are refused.
        apart = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(apart, partial, {HEADER: header})


def read_measured(
    path: Path, schema: int, kind: type[_Record], command: str
) -> tuple[_Record, dict[str, Tensor]]:
    """The record, a frozen dataclass ``kind``, and the tensors.

    Raises CalibrationError for a file that ``command`` did not write, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = _record((file.metadata() or {}).get(HEADER), schema, kind, path, command)
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unusable(path, str(error), command) from error


def unusable(path: Path, why: str, command: str) -> CalibrationError:
    """The error for a file that cannot be used."""
    return CalibrationError(
        f"{path.name} cannot be used: {why}",
        expected=f"a file that '{command}' wrote",
        fix="measure it again with that command",
    )


_KINDS = {"int": int, "float": float, "str": str, "tuple[str, ...]": list}


def _record(
    header: str | None, schema: int, kind: type[_Record], path: Path, command: str
) -> _Record:
    try:
        values: dict[str, Any] = json.loads(header or "")
        stored = values.pop("schema")
        wanted = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
        if values.keys() != wanted.keys():
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise unusable(path, "its header is not one", command) from error
    for name, text in wanted.items():
        if type(values[name]) is not _KINDS[text]:
            raise unusable(path, f"{name} in its header is no {text}", command)
    if stored != schema:
        raise unusable(path, f"it has schema {stored}, this version reads {schema}", command)
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(str, value)) if isinstance(value, list) else value
