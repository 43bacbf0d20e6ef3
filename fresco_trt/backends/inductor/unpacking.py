"""The code of compiled blocks, unpacked: each file once in the life of a process.

Between a bundle's ``.pt2`` files and torch, which loads what lies unpacked in this process's own
folder. Nothing of a file runs here; what is not whole, or would end the process, is refused.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fresco_trt.backends.inductor.archive import opened
from fresco_trt.backends.inductor.build import loads_folders
from fresco_trt.backends.inductor.runtime import CXX_RUNTIME, shares_runtime
from fresco_trt.errors import EngineFailed
from fresco_trt.files.process_folder import process_folder, temporary_room

_SHARING: set[object] = set()
"""Files whose code was seen to run on the C++ runtime of this process."""


def _check_runtime(path: Path) -> None:
    """Read once in the life of the process: a static C++ runtime would end it."""
    key = _identity(path)
    if key in _SHARING:
        return
    try:
        shares = shares_runtime(path)
    except ValueError as error:
        raise unfit(str(error)) from error
    if not shares:
        raise EngineFailed(
            f"the code in {path.name} has a static C++ runtime of its own, and was not loaded",
            expected=f"code that needs {CXX_RUNTIME}, as it is built now",
            fix="build the bundle again with 'fresco-trt build', and a compiler that links"
            " the shared C++ runtime",
        )
    _SHARING.add(key)


def _identity(path: Path) -> object:
    state = path.stat()
    return path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns


# The linker never lets go of such a library (its symbols are unique to the process), so a file is
# unpacked once: opened again from another place, it would take its half megabyte again.
_LIBRARIES: dict[object, Path] = {}


def unpacked(path: Path) -> Path:
    """What torch loads a ``.pt2`` file from: the folder that it is unpacked to, until the process
    ends; or the file itself, which every layer then unpacks anew, where torch takes no folder.
    Raises EngineFailed for code that is not to be loaded.
    """
    _check_runtime(path)
    if not loads_folders():
        return path
    key = _identity(path)
    if key not in _LIBRARIES or not _LIBRARIES[key].is_dir():
        with temporary_room(path.stat().st_size):
            place = Path(tempfile.mkdtemp(prefix="blocks-", dir=process_folder()))
        try:
            library = _members_in(path, place)
            if _identity(path) != key:  # or other code would be known as this file's
                raise unfit(f"{path.name} was replaced while it was read")
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        _LIBRARIES[key] = library
    return _LIBRARIES[key]


def _members_in(path: Path, place: Path) -> Path:
    """The package's own folder in ``place``. A member is read, then written: what goes wrong is
    either the bundle's or the temporary folder's.
    """
    try:
        with opened(path) as package:
            needed = sum(member.file_size for member in package.infolist())
            for member in package.infolist():
                data = package.read(member)
                with temporary_room(needed):
                    target = place / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
            return place / package.namelist()[0].split("/")[0]
    except ValueError as error:
        raise unfit(str(error)) from error


def unfit(given: str) -> EngineFailed:
    """The error for code that is not the transformer's, or cannot be read."""
    return EngineFailed(
        given,
        expected="the compiled blocks of this transformer, as they were built",
        fix="restore the bundle, or build it again with 'fresco-trt build'",
    )
