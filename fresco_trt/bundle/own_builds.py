"""The bundles with native code that this user built: the digests of their manifests.

One empty file for each, named by the digest, in a folder of the user's cache that nobody else may
write to. A digest stands for every byte of a bundle, wherever the bundle is moved.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from fresco_trt.bundle.manifest import Manifest
from fresco_trt.errors import OutputNotWritable
from fresco_trt.files.cache_folder import cache_folder
from fresco_trt.files.private import is_private_file, is_private_folder

FOLDER = "built"


def remember(manifest: Manifest) -> None:
    """Take note that this user built the bundle. Warns where that cannot be: it then takes trust to
    load, as anybody's.
    """
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private_folder(folder):
            raise PermissionError(f"{folder} can be written to by others, or is theirs")
        mark = folder / manifest.digest
        mark.unlink(missing_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, OutputNotWritable) as error:
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
        return is_private_folder(folder) and is_private_file(mark)
    except (OSError, OutputNotWritable):
        return False


def _folder() -> Path:
    return cache_folder() / FOLDER
