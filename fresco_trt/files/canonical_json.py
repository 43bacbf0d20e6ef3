"""JSON in one spelling, and JSON read within bounds.

In the data path both sides of the bundle stand on this: digests and build keys are taken over the
one spelling of a value, and a manifest from anywhere is measured here before it means anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from fresco_trt.errors import DigestMismatch, ManifestInvalid

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_DIGITS = 18  # integers of 18 digits fit every 64-bit reader
REBUILD = "build the bundle again with 'fresco-trt build'"
COPY = f"put the original file back, copy the bundle again, or {REBUILD}"


# --- one spelling -----------------------------------------------------------------------------


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: keys sorted, no spaces, ASCII, no NaN.

    Raises TypeError for what JSON cannot hold, including keys that are not strings (``1`` and
    ``"1"`` would otherwise share a spelling), and ValueError for NaN and infinities.
    """
    _require_text_keys(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def build_key(parts: Mapping[str, object]) -> str:
    """SHA-256 over everything that went into a build; equal keys mean the bundle can be reused.

    ``parts`` is hashed whole and by name: leaving something out of the identity is a decision of
    the caller, never of this function. Raises as :func:`canonical_json` does.
    """
    return hashlib.sha256(canonical_json(dict(parts))).hexdigest()


def _require_text_keys(value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a JSON key must be a str, got {key!r}")
            _require_text_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _require_text_keys(item)


# --- reading within bounds --------------------------------------------------------------------


def bounded_json(
    data: bytes,
    name: str = MANIFEST_NAME,
    *,
    most_bytes: int = MAX_MANIFEST_BYTES,
    most_values: int = MAX_VALUES,
    digits: int = MAX_DIGITS,
) -> dict[str, Any]:
    """The JSON object in ``data``, which may come from anywhere; ``name`` is its file's.

    Raises ManifestInvalid for anything over the limits (bytes, depth, number of values, digits of
    an integer), for keys given twice, NaN, infinities, bad UTF-8 and other than an object. No input
    raises RecursionError or takes more than time linear in its size.
    """
    if len(data) > most_bytes:
        invalid(f"{name} has over {most_bytes} bytes", f"at most {most_bytes} bytes")
    try:
        raw = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=partial(_bounded_int, digits=digits),
            parse_float=_finite_float,
            parse_constant=_finite_float,
        )
    except RecursionError:
        invalid(f"{name} is nested too deeply", f"at most {MAX_DEPTH} levels")
    except ValueError as error:
        invalid(f"{name} cannot be read: {clipped(str(error))}", "one JSON object")
    if not isinstance(raw, dict):
        invalid(f"{name} holds a {type(raw).__name__}", "one JSON object")
    _check_extent(raw, name, most_values)
    return raw


def bounded_file(path: Path, *, most_bytes: int) -> dict[str, Any]:
    """The JSON object in a file, of which no more is read than it may have. Raises OSError, and
    ManifestInvalid as :func:`bounded_json`.
    """
    with path.open("rb") as file:
        return bounded_json(file.read(most_bytes + 1), path.name, most_bytes=most_bytes)


def _check_extent(raw: dict[str, Any], name: str, most_values: int) -> None:
    """Depth and number of values, counted level by level so that no input can recurse."""
    level: list[Any] = [raw]
    values = 0
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _children(value)]
        values += len(level)
        if not level:
            return
        if values > most_values:
            invalid(f"{name} holds over {most_values} values", f"at most {most_values}")
    invalid(f"{name} is nested too deeply", f"at most {MAX_DEPTH} levels")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"key {quoted(commonest(key for key, _ in pairs))} appears twice")
    return fields


def _bounded_int(text: str, digits: int) -> int:
    if len(text.lstrip("-")) > digits:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {clipped(text)} is not finite")
    return number


# --- messages ---------------------------------------------------------------------------------


def invalid(given: str, expected: str) -> NoReturn:
    """Raise ManifestInvalid with the usual way out."""
    raise ManifestInvalid(given, expected=expected, fix=REBUILD)


def require_digest(what: str, given: str, expected: str) -> None:
    """Raise DigestMismatch unless two SHA-256 in hex are the same."""
    if given != expected:
        raise DigestMismatch(
            f"{what} has SHA-256 {given[:12]}...",
            expected=f"{expected[:12]}... as in {MANIFEST_NAME}",
            fix=COPY,
        )


def quoted(value: object) -> str:
    """``repr`` on one short line, so that hostile names neither break nor flood a message."""
    return clipped(repr(value))


def clipped(text: str, most: int = 100) -> str:
    """One line of at most ``most`` characters that can be printed; others become ``?``."""
    line = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 3] + "..."


def excerpt(error: BaseException) -> str:
    """What another library's error says, as :func:`clipped`: its kind, and at most 250 letters."""
    return clipped(f"{type(error).__name__}: {error}", 250)


def commonest(names: Iterable[str]) -> str:
    """The name that occurs most often."""
    return Counter(names).most_common(1)[0][0]
