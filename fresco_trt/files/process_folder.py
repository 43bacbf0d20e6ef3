"""A folder of this process's own for what has to lie on a disk while it runs.

In the system's folder for temporary files. It is removed when the process ends; that of a process
that was killed is known by its lock, which is gone, and removed by the next build.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from fresco_trt.files.atomic_folder import Held, create_partial, remove, sweep_partials

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
