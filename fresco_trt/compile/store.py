"""Engines on disk, found by their key: written whole or not at all, believed only byte for byte.

Between a captured graph and its runner. One folder an engine::

    <cache>/compile-2/<key>/entry.json     what it is, and every file with bytes and SHA-256
    <cache>/compile-2/<key>/...            the engine library's files
    <cache>/compile-2/weights/<sha256>     large files that several engines have, as hard links

The key says everything that went in, so an entry is never out of date: it is good or damaged, and a
damaged one is replaced. Nothing outside the folder is opened, whatever is in it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fresco_trt.errors import BundleError, FileMissing, InvalidPlan, OutputNotWritable
from fresco_trt.files.atomic_folder import (
    Held,
    create_partial,
    is_disk_full,
    put_in_place,
    recover,
    remove,
    sweep,
    sync_folder,
    written_to,
)
from fresco_trt.files.atomic_folder import disk_full as full
from fresco_trt.files.canonical_json import (
    MAX_MANIFEST_BYTES,
    bounded_json,
    canonical_json,
    quoted,
    require_digest,
)
from fresco_trt.files.digests import digests, linked, readable, walk
from fresco_trt.files.private import is_private_file, is_private_folder
from fresco_trt.plan.reading import agree, items, record, text, whole
from fresco_trt.plan.signature import GraphSignature

SCHEMA = 2
ENTRY = "entry.json"
GRAPH = "graph"
"""What every engine here is called: its key tells it from the others."""
POOLED_FROM = 1_000_000
"""Bytes from which a file is worth sharing between entries."""

_KEYS = ("schema", "key", "parts", "engine", "signature", "files", "digest")
DAMAGE = (BundleError, InvalidPlan)
"""What is raised for an entry that is not as it was written."""

Make = Callable[[Path], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An engine of the cache, its bytes checked: ``files`` are those it is loaded from.
    A captured graph is of no family.
    """

    folder: Path
    files: tuple[str, ...]
    signature: GraphSignature
    name: str = GRAPH
    family: str = ""


class EngineStore:
    """The engine cache in a folder. Several processes may use one at the same time.

    With ``native``, of engines that are code: they are taken from no folder and no file that others
    may write to.
    """

    def __init__(self, folder: Path, *, native: bool = False) -> None:
        self.folder, self._native = folder / f"compile-{SCHEMA}", native

    def find(self, key: str, signature: GraphSignature) -> Entry | None:
        """The engine of that key, which has ``signature``; None where there is none.

        Raises what :data:`DAMAGE` names for a damaged one, and OutputNotWritable for a folder that
        cannot be looked into, or is not to be trusted.
        """
        target = self.folder / key
        with written_to(target):
            if not os.path.lexists(self.folder):
                return None
            self._check_folder()
            recover(target)
            try:
                target.lstat()
            except FileNotFoundError:
                return None
        return self._opened(target, key, signature)

    def build(
        self,
        key: str,
        parts: Mapping[str, object],
        signature: GraphSignature,
        make: Make,
        *,
        replace: bool = False,
    ) -> Entry:
        """Fill a new folder with ``make`` and put it in place, unless another process did first;
        with ``replace`` even then.

        Raises OutputNotWritable, DiskFull and what ``make`` raises; nothing is left of it then.
        """
        target = self.folder / key
        with self._writing(target) as held:
            engine = make(held.folder)
            _drop_others(held.folder, engine)
            self._share(held.folder)
            _write_entry(held.folder, key, parts, engine, signature)
            there = None if replace else self._whole(target, key, signature)
            if there is None:
                _clear(target)
                put_in_place(held, target)
        return there or Entry(folder=target, files=engine, signature=signature)

    def _check_folder(self) -> None:
        """Raise OutputNotWritable for one that leads elsewhere, or is not to be trusted."""
        if not stat.S_ISDIR(self.folder.lstat().st_mode):
            _refuse_folder(self.folder, "is a link, or no folder")
        if self._native and not is_private_folder(self.folder):
            _refuse_folder(self.folder, "can be written to by others, or is theirs")

    @contextmanager
    def _writing(self, target: Path) -> Iterator[Held]:
        with written_to(target):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            sweep(target)
            held = create_partial(target)
        try:
            with written_to(target):
                yield held
        except Exception as error:
            if is_disk_full(error):
                raise full(target) from error
            raise
        finally:
            remove(held.folder)
            held.release()

    def _share(self, folder: Path) -> None:
        """Keep equal large files of all entries once; on a file system without hard links each
        entry keeps its own.
        """
        pool = self.folder / "weights"
        _clear(pool)
        pool.mkdir(mode=0o700, exist_ok=True)
        _drop_unused(pool)
        large = {name: size for name, size in walk(folder) if size >= POOLED_FROM}
        for name, digest in list(digests(folder, large, None)):
            with suppress(OSError):
                _link(folder / name, pool / digest)

    def _whole(self, folder: Path, key: str, signature: GraphSignature) -> Entry | None:
        try:
            return self._opened(folder, key, signature)
        except DAMAGE:
            return None

    def _opened(self, folder: Path, key: str, signature: GraphSignature) -> Entry:
        """The entry in ``folder``, every byte checked. Raises what :data:`DAMAGE` names."""
        with readable():
            if folder.is_symlink():
                raise linked(key)
            found = _entry(folder / ENTRY)
            agree(found["schema"], SCHEMA, "schema")
            agree(found["key"], key, "key")
            agree(found["signature"], signature.to_json(), "signature")
            files = [_file(each) for each in items(found["files"], "files")]
            engine = tuple(text(each, "engine file") for each in items(found["engine"], "engine"))
            # Those of the folder and no other: no name leads out of it.
            agree(sorted(engine), sorted(name for name, _, _ in files), "engine")
            sizes = dict(walk(folder, listed=sorted([ENTRY, *engine])))
            agree(
                {name: size for name, size, _ in files} | {ENTRY: sizes.get(ENTRY)}, sizes, "size"
            )
            if self._native:
                _check_private(folder, engine)
            wanted = {name: digest for name, _, digest in files}
            for name, digest in digests(folder, {each: sizes[each] for each in wanted}, None):
                require_digest(name, digest, wanted[name])
        return Entry(folder=folder, files=engine, signature=signature)


# --- reading ----------------------------------------------------------------------------------


def _entry(path: Path) -> Mapping[str, object]:
    """What the file says, as it was written. A pipe is not waited for, nor an endless file read.

    Raises OSError and what :data:`DAMAGE` names.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _damaged(f"{path.name} is no regular file", "a file")
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    found = record(bounded_json(data, path.name), _KEYS, "entry")
    require_digest(ENTRY, _digest(found), text(found["digest"], "digest"))
    return found


def _digest(entry: Mapping[str, object]) -> str:
    """SHA-256 of an entry's other values."""
    rest = {name: value for name, value in entry.items() if name != "digest"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def _check_private(folder: Path, files: tuple[str, ...]) -> None:
    inside = {folder / parent for name in files for parent in Path(name).parents} | {folder}
    private = all(map(is_private_folder, inside))
    if not (private and all(is_private_file(folder / name) for name in files)):
        raise _damaged("it can be written to by others, or is theirs", "engines of this user's own")


def _damaged(given: str, expected: str) -> FileMissing:
    return FileMissing(given, expected=expected, fix="remove that engine from the cache")


def _refuse_folder(folder: Path, given: str) -> NoReturn:
    raise OutputNotWritable(
        f"{quoted(str(folder))} {given}",
        expected="a folder of this user's that nobody else may write to",
        fix="remove it, or choose another cache",
    )


def _file(value: object) -> tuple[str, int, str]:
    found = record(value, ("path", "bytes", "sha256"), "file")
    return text(found["path"], "path"), whole(found["bytes"], "bytes"), text(found["sha256"], "sha")


# --- writing ----------------------------------------------------------------------------------


def _drop_others(folder: Path, engine: tuple[str, ...]) -> None:
    """What the engine was made from and is not loaded from."""
    for name, _ in list(walk(folder)):
        if name not in engine:
            (folder / name).unlink()


def _clear(path: Path) -> None:
    """Remove what is no folder where one belongs: a link is not followed. Raises OSError."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()


def _write_entry(
    folder: Path,
    key: str,
    parts: Mapping[str, object],
    engine: tuple[str, ...],
    signature: GraphSignature,
) -> None:
    """The entry last, and everything on the disk before the folder gets its name."""
    sizes = dict(walk(folder))
    files = [
        {"path": name, "bytes": sizes[name], "sha256": digest}
        for name, digest in digests(folder, sizes, None)
    ]
    values = (SCHEMA, key, dict(parts), list(engine), signature.to_json(), files)
    entry: dict[str, object] = dict(zip(_KEYS[:-1], values, strict=True))
    data = canonical_json(entry | {"digest": _digest(entry)})
    for name in sizes:
        _keep(folder / name)
    (folder / ENTRY).write_bytes(data)
    _keep(folder / ENTRY)
    sync_folder(folder)


def _keep(path: Path) -> None:
    """Nobody else writes to it, whatever is the user's default, and it is on the disk."""
    path.chmod(0o644)
    with path.open("rb") as file:
        os.fsync(file.fileno())


# --- shared files -----------------------------------------------------------------------------


def _link(path: Path, kept: Path) -> None:
    """Make ``path`` and ``kept``, named by its content, one file. Raises OSError."""
    source, target = (kept, path) if _is_itself(kept) else (path, kept)
    between = target.with_name(f"{secrets.token_hex(8)}.partial")
    os.link(source, between)
    between.replace(target)


def _is_itself(kept: Path) -> bool:
    """Whether a shared file is there, with the content that it is named by, and stays so."""
    if not (os.path.lexists(kept) and is_private_file(kept)):
        return False
    _, digest = next(digests(kept.parent, {kept.name: kept.stat().st_size}, None))
    return digest == kept.name


def _drop_unused(pool: Path) -> None:
    """Shared files that no entry has any more."""
    for path in pool.iterdir():
        with suppress(OSError):
            if path.lstat().st_nlink == 1:
                path.unlink()
