"""A ``.pt2`` file as an archive: looked at as a whole before any of it is unpacked.

The build stores its members as they are, so a file that is larger unpacked than packed, or has a
directory of another form, was not written by it. A file that is cut or foreign is refused here by
its name; what its code does is a question of trust, asked earlier.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

MOST_MEMBERS: Final = 200
MOST_BYTES: Final = 256 * 1024 * 1024
_MOST_DIRECTORY = MOST_MEMBERS * 512

_END = struct.Struct("<4s4HLLH")  # signature, disks and counts, directory's size and place, comment
_END_64 = struct.Struct("<4sQ2H2L4Q")  # torch's; the size is the last but one
_LOCATOR_BYTES = 20
_ENCRYPTED = 0x1


@contextmanager
def opened(path: Path) -> Iterator[ZipFile]:
    """The archive at ``path``, its members checked: plain files below one folder, within the bounds
    above. Raises ValueError for anything else, and for what cannot be read in the scope.
    """
    try:
        _check_end(path)
        with ZipFile(path) as package:
            _check_members(package.infolist(), path.stat().st_size)
            yield package
    except (BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _check_end(path: Path) -> None:
    """Bound the directory before it is read: it is read as far as the end record says."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, over {MOST_BYTES}")
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - _LOCATOR_BYTES - _END_64.size))
        tail = file.read()
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("it is no archive, or is cut")
    *_, directory, _, comment = _END.unpack(tail[-_END.size :])
    if tail[_END_64.size :].startswith(b"PK\6\7"):
        *_, directory, _ = _END_64.unpack(tail[: _END_64.size])
    if comment or directory > _MOST_DIRECTORY:
        raise ValueError(f"its directory is not one of at most {MOST_MEMBERS} members")


def _check_members(members: list[ZipInfo], size: int) -> None:
    if not 0 < len(members) <= MOST_MEMBERS:
        raise ValueError(f"it has {len(members)} members, not 1 to {MOST_MEMBERS}")
    for member in members:
        if not _is_plain(member):
            raise ValueError(f"the member {member.filename[:80]!r} is no plain file in a folder")
    if len({member.filename for member in members}) != len(members):
        raise ValueError("a member is there twice")
    if len({PurePosixPath(member.filename).parts[0] for member in members}) != 1:
        raise ValueError("its members lie in several folders")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than itself")


def _is_plain(member: ZipInfo) -> bool:
    """A stored file, no link and no device, whose name leads down from the archive's folder."""
    # Names as the archive has them: what is read from them is cut at a zero, and has no backslash.
    name, parts = member.orig_filename, member.orig_filename.split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    return (
        len(parts) > 1
        and not any(part in ("", ".", "..") for part in parts)
        and name.isprintable()
        and "\\" not in name
        and ":" not in name
        and kind in (0, stat.S_IFREG)
        and member.compress_type == ZIP_STORED
        and member.file_size == member.compress_size
        and not member.flag_bits & _ENCRYPTED
    )
