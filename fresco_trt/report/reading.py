"""Result files as they come: read within bounds, and refused in one line.

Between the files that a user names and the records that a page is made of.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fresco_trt.errors import ManifestInvalid, ReportError
from fresco_trt.files.canonical_json import bounded_json, clipped, quoted

MOST_BYTES = 32 * 1024 * 1024
MOST_VALUES = 1_000_000

_Kind = TypeVar("_Kind", bound="Stored")


class Stored(BaseModel):
    """What a page reads of a result file: what else is in there is left alone."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def read_bytes(path: Path, what: str, most: int) -> bytes:
    """The bytes of a regular file. ``what`` names the option and the file's kind in errors.

    Raises ReportError for one that cannot be read, is no regular file or has over ``most`` bytes.
    """
    try:
        # A pipe that nobody writes to would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused(path, what, "it is no regular file")
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise refused(path, what, getattr(error, "strerror", None) or str(error)) from error
    if len(data) > most:
        raise refused(path, what, f"it has over {most} bytes")
    return data


def read_document(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. Raises ReportError, also for one out of bounds."""
    data = read_bytes(path, what, MOST_BYTES)
    try:
        return bounded_json(data, "it", most_bytes=MOST_BYTES, most_values=MOST_VALUES)
    except ManifestInvalid as error:
        raise refused(path, what, error.given) from error


def parsed(kind: type[_Kind], value: object, path: Path, what: str) -> _Kind:
    """A value of a file as a record. Raises ReportError, naming the first field that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = clipped(".".join(map(str, first["loc"]))) or "it"
        raise refused(path, what, f"{field}: {clipped(first['msg'])}") from error


def refused(path: Path, what: str, why: str) -> ReportError:
    """The error for a file that is not what its option takes."""
    return ReportError(
        f"{quoted(str(path))} as {what}: {why}",
        expected=f"{what}, whole and as it was written",
        fix="pass such a file, or leave the option out",
    )
