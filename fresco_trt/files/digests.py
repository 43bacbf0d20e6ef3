"""What lies in a folder, file by file, and the SHA-256 of it.

In the data path both sides of the bundle count files with this: the writer to list them, the
opener to compare. Nothing here follows a link out of a folder that is being validated.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fresco_trt.errors import FileMissing, FileUnexpected, PathEscape
from fresco_trt.files.canonical_json import COPY, MANIFEST_NAME, canonical_json, quoted

Progress = Callable[[str, float], None]
Row = tuple[str, int, str]
_BUFFER = 1024 * 1024
"""Bytes of a file that are held at once: what stays in a processor's cache is hashed soonest."""


# --- digests ----------------------------------------------------------------------------------


def folder_digest(
    folder: str | os.PathLike[str],
    parts: Sequence[str] = (),
    *,
    progress: Progress | None = None,
) -> str:
    """SHA-256 over names, sizes and digests of the files in ``folder``, or in these entries of it.

    For ``PipelineRecord.digest``. Links to files are followed, because model hubs store folders
    that way. Raises FileMissing for an absent folder or part, PathEscape for a linked folder and
    FileUnexpected for what is neither file nor folder.
    """
    root = Path(folder)
    with readable():
        sizes = dict(walk(root, parts=parts, links=True))
        rows = [(name, sizes[name], digest) for name, digest in digests(root, sizes, progress)]
    return parts_digest(os.fspath(folder), rows, parts)


def parts_digest(folder: str, rows: Iterable[Row], parts: Sequence[str]) -> str:
    """SHA-256 over the canonical JSON of those ``[path, bytes, sha256]`` that lie in ``parts``.

    Paths are relative to ``folder`` and sorted. Raises FileMissing for a part without a file.
    """
    chosen = sorted(row for row in rows if not parts or row[0].split("/")[0] in parts)
    tops = {path.split("/")[0] for path, _, _ in chosen}
    for absent in sorted(set(parts) - tops):
        raise missing(f"{folder}/{absent}")
    if not chosen:
        raise missing(folder)
    return hashlib.sha256(canonical_json(chosen)).hexdigest()


def digests(
    folder: Path, sizes: Mapping[str, int], progress: Progress | None
) -> Iterator[tuple[str, str]]:
    """(path, SHA-256) of each file, sorted by path; the fraction counts bytes. One buffer serves
    all of them.
    """
    total = max(1, sum(sizes.values()))
    done = 0
    buffer = memoryview(bytearray(_BUFFER))
    for name in sorted(sizes):
        digest = hashlib.sha256()
        with (folder / name).open("rb", buffering=0) as file:
            while read := file.readinto(buffer):
                digest.update(buffer[:read])
                done += read
                if progress is not None:
                    progress("digests", min(1.0, done / total))
        yield name, digest.hexdigest()


# --- files ------------------------------------------------------------------------------------


def walk(
    folder: Path,
    *,
    listed: Sequence[str] | None = None,
    parts: Sequence[str] = (),
    links: bool = False,
) -> Iterator[tuple[str, int]]:
    """(relative POSIX path, bytes) of every regular file, in a fixed order.

    Raises FileUnexpected at the first thing outside ``listed`` (sorted), so that no folder on
    disk, however deep or full, is read further than its listing.
    """
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(folder / prefix):
            if parts and not prefix and entry.name not in parts:
                continue
            name = prefix + _kept_name(entry, prefix, links)
            if listed is not None and not _is_listed(listed, name):
                raise _unexpected(name)
            if name.endswith("/"):
                waiting.append(name)
            else:
                yield name, entry.stat().st_size


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _kept_name(entry: os.DirEntry[str], prefix: str, links: bool) -> str:
    """The entry's name, a folder's with a slash at its end; raises for what is neither."""
    if entry.is_symlink() and not (links and entry.is_file()):
        raise linked(prefix + entry.name)
    if entry.is_dir():
        return f"{entry.name}/"
    if not entry.is_file():
        raise _unexpected(prefix + entry.name)
    return entry.name


def _is_listed(listed: Sequence[str], name: str) -> bool:
    """Whether a file is listed, or a folder (``name/``) has a listed file below it."""
    at = bisect_left(listed, name)
    if at == len(listed):
        return False
    return listed[at].startswith(name) if name.endswith("/") else listed[at] == name


# --- what is wrong with a file ----------------------------------------------------------------


@contextmanager
def readable() -> Iterator[None]:
    """Map OSError while reading a bundle to FileMissing."""
    try:
        yield
    except OSError as error:
        name = quoted(os.fspath(error.filename)) if error.filename else "a file"
        raise FileMissing(
            f"{name} cannot be read ({error.strerror or error})",
            expected=f"every file that {MANIFEST_NAME} names",
            fix=f"make it readable, {COPY}",
        ) from error


def missing(name: str) -> FileMissing:
    """The error for a file or folder that should be there."""
    expected = f"every file that {MANIFEST_NAME} names"
    return FileMissing(f"{quoted(name)} is not there", expected=expected, fix=COPY)


def _unexpected(name: str) -> FileUnexpected:
    return FileUnexpected(
        f"{quoted(name)} is there",
        expected=f"only regular files that {MANIFEST_NAME} lists",
        fix="move it out of the bundle folder",
    )


def linked(name: str) -> PathEscape:
    """The error for a link, which could lead anywhere."""
    expected = "files and folders inside the bundle, not links"
    return PathEscape(f"{quoted(name)} is a link", expected=expected, fix=COPY)
