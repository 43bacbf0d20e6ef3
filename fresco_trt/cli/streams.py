"""The process's own streams: any text can be written to them, and what cannot be written is told.

Under every command. Standard output may be closed, a full disk, or a pipe whose reader has gone.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

from fresco_trt.errors import FrescoError
from fresco_trt.files.atomic_file import writing
from fresco_trt.plan.paths import refused_path

STANDARD_OUTPUT = "standard output"


class _Closed(io.TextIOBase):
    """In the place of a standard output that is closed: refuses what is written."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def prepare() -> None:
    """Before a command: no file that it opens may get the number of a closed stream, and what an
    encoding lacks is written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """After a command: OSError if what it said is not written, said once, and not again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def refused(error: OSError) -> FrescoError | None:
    """What the system refused, as an error of the package; None if a pipe's reader has gone."""
    if error.errno == errno.EPIPE:
        return None
    if error.filename is not None:
        return refused_path(error)
    try:
        with writing(Path(STANDARD_OUTPUT)):
            raise error
    except FrescoError as typed:
        typed.fix = "write it to a file on another disk, or leave standard output open"
        return typed
