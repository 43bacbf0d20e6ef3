"""A folder that appears whole or not at all, whatever kills the process that writes it.

In the data path this is how a bundle gets under its name: it is written as the hidden sibling
``.{name}.partial-{pid}-{random}``, and swapped in with two renames, the old folder being
``.{name}.previous-{pid}-{random}`` in between. A lock on the folder tells a live writer from a
dead one (it vanishes with the process and holds across containers, where process ids do not);
only where the file system has no locks does the process id decide.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fresco_trt.errors import DiskFull, FrescoError, LowerError, OutputNotWritable
from fresco_trt.files.canonical_json import quoted

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_Role = Literal["partial", "previous"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A folder this process works on; ``descriptor`` is None where folders cannot be locked."""

    folder: Path
    descriptor: int | None

    def release(self) -> None:
        """Give up the lock; call once."""
        if self.descriptor is not None:
            os.close(self.descriptor)


# --- the steps of a writer --------------------------------------------------------------------


def create_partial(target: Path) -> Held:
    """A new empty sibling of ``target``, on the same file system. Raises OSError."""
    while True:
        folder = _sibling(target, "partial")
        folder.mkdir(0o755)
        held = _hold(folder)
        if held is not None and folder.exists():
            return held
        # Another writer swept it between mkdir and lock; it was empty, so start over.
        if held is not None:
            held.release()


def put_in_place(partial: Held, target: Path) -> None:
    """Rename ``partial`` to ``target``; what was there comes back if that fails. Raises OSError.

    Every moment in between, the name holds the old folder, or the new one, or nothing while the
    old one waits beside it for :func:`recover`.
    """
    previous = _sibling(target, "previous")
    old = _hold(target) if target.exists() else None
    try:
        if target.exists():
            target.rename(previous)
        partial.folder.rename(target)
        sync_folder(target.parent)
    except BaseException:
        if previous.exists() and not os.path.lexists(target):
            previous.rename(target)
        raise
    finally:
        if old is not None:
            old.release()
    if previous.exists():
        _discard(previous, target)


def recover(target: Path) -> None:
    """Undo a swap that a crash cut in two: the old folder gets its name back. Raises OSError."""
    if os.path.lexists(target):
        return
    for previous in _siblings(target, "previous"):
        with _claim(previous) as free, suppress(FileNotFoundError):
            if free:
                previous.rename(target)
                return


def sweep(target: Path) -> None:
    """Remove what dead writers of ``target`` left beside it. Raises OSError."""
    recover(target)
    for previous in _siblings(target, "previous"):
        with _claim(previous) as free:
            if free:
                _discard(previous, target)
    sweep_partials(target)


def sweep_partials(target: Path) -> None:
    """Remove what dead processes left unfinished beside ``target``. Raises OSError."""
    for partial in _siblings(target, "partial"):
        with _claim(partial) as free:
            if free:
                remove(partial)


def remove(folder: Path) -> None:
    """Delete a folder that is no longer needed; what cannot be deleted is said, not fatal."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("could not remove %s: %s", folder, error)


def _discard(previous: Path, target: Path) -> None:
    """Remove a superseded folder; renamed first, so that half of it is never recovered."""
    doomed = _sibling(target, "partial")
    with suppress(FileNotFoundError):
        previous.rename(doomed)
        remove(doomed)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where folders can be opened at all."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- names and locks --------------------------------------------------------------------------


def _sibling(target: Path, role: _Role) -> Path:
    return target.with_name(f".{target.name}.{role}-{os.getpid()}-{secrets.token_hex(4)}")


def _siblings(target: Path, role: _Role) -> list[Path]:
    """Those folders of that role beside ``target``; none if its parent cannot be listed."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{role}-\d+-[0-9a-f]{{8}}")
    try:
        with os.scandir(target.parent) as entries:
            return [
                target.with_name(entry.name)
                for entry in entries
                if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def _hold(folder: Path) -> Held | None:
    """Lock ``folder``; None if another process or thread works on it. Raises OSError."""
    if sys.platform == "win32":
        return Held(folder=folder, descriptor=None)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if error.errno == errno.EWOULDBLOCK else Held(folder=folder, descriptor=None)
    return Held(folder=folder, descriptor=descriptor)


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Whether the writer of ``folder`` is dead; nobody else can claim it within the scope."""
    held = _hold(folder)
    try:
        yield held is not None and (held.descriptor is not None or not _is_alive(folder))
    finally:
        if held is not None:
            held.release()


def _is_alive(folder: Path) -> bool:
    """Whether the process named in the folder's name runs; yes if that cannot be known."""
    if sys.platform == "win32":
        return True  # there, signal 0 is Ctrl-C
    try:
        os.kill(int(folder.name.rsplit("-", 2)[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# --- the border: what the operating system says -----------------------------------------------


@contextmanager
def written_to(target: Path) -> Iterator[None]:
    """Map OSError to DiskFull or OutputNotWritable."""
    try:
        yield
    except OSError as error:
        raise _write_error(target, error) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a foreign exception says that the disk is full (some libraries only say it)."""
    if not isinstance(error, Exception) or isinstance(error, FrescoError):
        return False
    said = "No space left on device" in str(error)
    return said or (isinstance(error, OSError) and error.errno in _FULL)


def disk_full(target: Path) -> DiskFull:
    """The error for a disk that filled up while ``target`` was written."""
    return DiskFull(
        f"the disk that holds {quoted(str(target.parent))} is full",
        expected="room for the whole folder beside the one it replaces",
        fix="free some space there, or choose another disk with --out",
    )


def _write_error(target: Path, error: OSError) -> LowerError:
    if is_disk_full(error):
        return disk_full(target)
    return OutputNotWritable(
        f"{quoted(str(target))} cannot be written ({error.strerror or error})",
        expected="a path where a folder can be created and renamed",
        fix="choose another --out, or change the permissions of its parent",
    )
