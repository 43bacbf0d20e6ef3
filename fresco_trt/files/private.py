"""Whether a file or folder is this user's alone, as what is run or believed unseen has to be."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def is_private_folder(path: Path) -> bool:
    """Whether ``path`` itself, no link to it, is a folder of this user's that nobody else may write
    to. Raises OSError.
    """
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and _is_own(status)


def is_private_file(path: Path) -> bool:
    """The same of a regular file. Raises OSError."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and _is_own(status)


def _is_own(status: os.stat_result) -> bool:
    if sys.platform == "win32":  # its files have no such owner; a home is its user's alone
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
