"""A folder of this process's own for what has to lie on a disk while it runs.

In the system's folder for temporary files. It is removed when the process ends; that of a process
that was killed is known by its lock, which is gone, and removed by the next build.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fresco_trt.errors import DiskFull, LowerError, OutputNotWritable
from fresco_trt.files.atomic_folder import (
    Held,
    create_partial,
    is_disk_full,
    remove,
    sweep_partials,
)
from fresco_trt.files.canonical_json import quoted

_OWN: dict[int, Held] = {}
"""By process id: a forked process has one of its own, and leaves its parent's alone."""


def process_folder() -> Path:
    """This process's folder, which only its user can enter. Raises OSError."""
    held = _OWN.get(os.getpid())
    if held is None or not held.folder.is_dir():
        held = create_partial(_target())
        held.folder.chmod(0o700)
        _OWN[os.getpid()] = held
        atexit.register(_leave, os.getpid(), held.folder)
    return held.folder


@contextmanager
def temporary_room(needed: int) -> Iterator[None]:
    """The scope to write ``needed`` bytes into this process's folder, or to make it. Raises
    DiskFull or OutputNotWritable, naming the system's folder for temporary files.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        raise _no_room(needed, error) from error


def _no_room(needed: int, error: Exception) -> LowerError:
    folder = tempfile.gettempdir()
    where = f"the folder for temporary files, {quoted(folder)}"
    fix = "free some space there, or set TMPDIR to a folder on another disk"
    if is_disk_full(error):
        free = shutil.disk_usage(folder).free
        given = f"{where}, has {free} bytes free, and {needed} are to be written"
        return DiskFull(given, expected="room for all of them", fix=fix)
    given = f"{where}, cannot be written ({error})"
    return OutputNotWritable(
        given, expected="one that this user may write to", fix="set TMPDIR to such a folder"
    )


def sweep_process_folders() -> None:
    """Remove the folders that this user's killed processes left; what cannot be removed stays."""
    with suppress(OSError):
        sweep_partials(_target())


def _target() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"fresco-trt-{user}"


def _leave(process: int, folder: Path) -> None:
    if process == os.getpid():
        remove(folder)
