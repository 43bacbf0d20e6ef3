"""Bundles that become others under the same name: what may happen between a check and a load.

Each leaves a bundle whose files all have the bytes that were checked before, so that nothing but
their identity tells.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.hostile.digests import MANIFEST, replaced


def rebuilt(folder: Path) -> None:
    """Another folder, as a build puts it in place."""
    other = shutil.copytree(folder, folder.with_name("new"), copy_function=os.link)
    shutil.rmtree(folder)
    other.rename(folder)


def one_file_replaced(folder: Path) -> None:
    path = _last(folder)
    replaced(path, path.read_bytes())


def written_to(folder: Path) -> None:
    """In place, with a time of its own; the file is no hard link to an original's afterwards."""
    path, found = _last(folder), _last(folder).stat()
    replaced(path, path.read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def manifest_replaced(folder: Path) -> None:
    replaced(folder / MANIFEST, (folder / MANIFEST).read_bytes())


def put_back(folder: Path) -> None:
    """The file is the very same one; another lay in its place for a while."""
    path = _last(folder)
    away = path.rename(folder.parent / "away")
    path.write_bytes(b"")
    away.replace(path)


def taken_away(folder: Path) -> None:
    shutil.rmtree(folder)


SWAPS: tuple[Callable[[Path], None], ...] = (
    rebuilt,
    one_file_replaced,
    written_to,
    manifest_replaced,
    put_back,
    taken_away,
)


def _last(folder: Path) -> Path:
    """A file of a folder within the bundle."""
    return max(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
