"""The bundles with native code that this user built: the digests of their manifests.

One empty file for each, named by the digest, in a folder of the user's cache that nobody else may
write to. A digest stands for every byte of a bundle, wherever the bundle is moved.
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from fresco_trt.bundle.manifest import Manifest
from fresco_trt.files.cache_folder import cache_folder

FOLDER = "built"


def remember(manifest: Manifest) -> None:
    """Take note that this user built the bundle. Warns where that cannot be: it then takes trust to
    load, as anybody's.
    """
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder, stat.S_ISDIR):
            raise PermissionError(f"{folder} can be written to by others, or is theirs")
        mark = folder / manifest.digest
        mark.unlink(missing_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(
            f"it could not be noted that this user built the bundle ({error}); loading its engines"
            " will take trust, as those of a stranger's bundle",
            stacklevel=2,
        )


def is_own(manifest: Manifest) -> bool:
    """Whether this user built the bundle, and on this machine, as far as was noted.

    What others could have written there counts for nothing.
    """
    try:
        folder = _folder()
        mark = folder / manifest.digest
        return _is_private(folder, stat.S_ISDIR) and _is_private(mark, stat.S_ISREG)
    except (OSError, RuntimeError):
        return False


def _folder() -> Path:
    return cache_folder() / FOLDER


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether ``path`` itself, no link to it, is this user's, and writable to nobody else. Raises
    OSError.
    """
    status = path.lstat()
    if not is_kind(status.st_mode):
        return False
    if sys.platform == "win32":  # its files have no such owner; a home is its user's alone
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
