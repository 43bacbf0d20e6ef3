"""Errors of other parts in the words of ``torch.compile``: on one line, with its own options.

Beside the compilation. The parts it is built on speak to who builds a bundle; who compiles has no
bundle and no flag, but the options of :func:`fresco_trt.compile.compile_graph`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fresco_trt.errors import (
    BackendUnavailable,
    DiskFull,
    FrescoError,
    IncompatibleOptions,
    OutOfDeviceMemory,
    OutputNotWritable,
    RunError,
    UnsupportedGraph,
    one_line,
)

_LONGEST = 600
_BACKEND = re.compile(r"--backend ([\w-]+)")

_CACHE = "options={'cache': ...}"
LEAVE_OUT = "leave that part out of what is compiled, or compile it with another backend"
_FIXES: dict[type[FrescoError], str] = {
    OutputNotWritable: f"pass {_CACHE} with a folder that can be written, or set FRESCO_TRT_CACHE",
    DiskFull: f"free some space there, or pass {_CACHE} on another disk",
    OutOfDeviceMemory: "call the model with smaller inputs, or close other programs",
    RunError: f"remove that engine from the cache, or pass {_CACHE} with an empty folder",
}


@contextmanager
def own_words() -> Iterator[None]:
    """Let an error of the package through with what its reader can do here."""
    try:
        yield
    except FrescoError as error:
        translate(error)
        raise


def translate(error: FrescoError) -> None:
    """Give ``error`` this entry point's fix, and texts of one line without escape codes."""
    error.given, error.expected = short_line(error.given), short_line(error.expected)
    if not isinstance(error, UnsupportedGraph | IncompatibleOptions):  # those are made here
        error.fix = _fix(error)


def short_line(text: str) -> str:
    """A text without line breaks, terminal codes and what no reader would get to."""
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def tell_once(log: logging.Logger, kind: str, place: str, text: str) -> None:
    """Warn of what is wrong with the cache in a place, the first time in the process."""
    level = logging.INFO if (kind, place) in _TOLD else logging.WARNING
    _TOLD.add((kind, place))
    log.log(level, "%s", short_line(text))


_TOLD: set[tuple[str, str]] = set()


def _fix(error: FrescoError) -> str:
    if isinstance(error, BackendUnavailable):
        return _BACKEND.sub(r"options={'backend': '\1'}", error.fix)
    return next((fix for kind, fix in _FIXES.items() if isinstance(error, kind)), LEAVE_OUT)
