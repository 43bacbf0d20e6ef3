"""Files written whole or not at all, and the system's refusals as errors of this package."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import Any

from fresco_trt.errors import DiskFull, OutputNotWritable


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into DiskFull or
    OutputNotWritable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk filled up while writing {path}",
                expected="room for all of it",
                fix="free some space, or pass --out on another disk",
            ) from error
        raise OutputNotWritable(
            f"{path} cannot be written: {error.strerror or error}",
            expected="a folder that this user may write to",
            fix="pass another --out",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside ``path`` to write to, which takes its place at the end; folders are made.

    Whatever happens, ``path`` is the old file or the new one. Raises as :func:`writing`.
    """
    partial = path.with_name(f".{token_hex(8)}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def store_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON. Raises as :func:`writing`, and ValueError for what is not finite."""
    text = json.dumps(document, indent=1, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Whether a file can be written there, before a minute of work for it; creates nothing.

    Raises as :func:`writing`.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        parents = (parent for parent in path.absolute().parents if os.path.lexists(parent))
        with TemporaryFile(dir=next(parents)):
            pass
