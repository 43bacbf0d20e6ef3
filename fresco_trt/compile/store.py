"""Engines on disk, found by their key: written whole or not at all, believed only byte for byte.

Between a captured graph and its runner. One folder an engine::

    <cache>/compile-1/<key>/entry.json     what it is, and every file with bytes and SHA-256
    <cache>/compile-1/<key>/...            the engine library's files
    <cache>/compile-1/weights/<sha256>     large files that several engines have, as hard links

The key says everything that went in, so an entry is never out of date: it is good or damaged.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fresco_trt.compile.messages import short_line
from fresco_trt.errors import BundleError, InvalidPlan
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
from fresco_trt.files.canonical_json import bounded_json, canonical_json, require_digest
from fresco_trt.files.digests import digests, readable, walk
from fresco_trt.plan.reading import agree, items, record, text, whole
from fresco_trt.plan.signature import GraphSignature

SCHEMA = 1
ENTRY = "entry.json"
GRAPH = "graph"
"""What every engine here is called: its key tells it from the others."""
POOLED_FROM = 1_000_000
"""Bytes from which a file is worth sharing between entries."""

_KEYS = ("schema", "key", "parts", "engine", "signature", "files")
_DAMAGE = (BundleError, InvalidPlan)
_log = logging.getLogger(__name__)

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
    """The engine cache in a folder. Several processes may use one at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / f"compile-{SCHEMA}"

    def find(self, key: str) -> Entry | None:
        """The engine of that key; None where there is none, or a damaged one, which is logged."""
        target = self.folder / key
        with suppress(OSError):
            recover(target)
        if not target.is_dir():
            return None
        try:
            return _opened(target, key)
        except _DAMAGE as error:
            _log.warning(
                "the engine %s in %s is damaged: %s", key[:12], self.folder, short_line(error.given)
            )
            return None

    def build(
        self, key: str, parts: Mapping[str, object], signature: GraphSignature, make: Make
    ) -> Entry:
        """Fill a new folder with ``make`` and put it in place, unless another process did first.

        Raises OutputNotWritable, DiskFull and what ``make`` raises; nothing is left of it then.
        """
        target = self.folder / key
        with self._writing(target) as held:
            engine = make(held.folder)
            _drop_others(held.folder, engine)
            self._share(held.folder)
            _write_entry(held.folder, key, parts, engine, signature)
            if not _is_whole(target, key):
                put_in_place(held, target)
        return Entry(folder=target, files=engine, signature=signature)

    @contextmanager
    def _writing(self, target: Path) -> Iterator[Held]:
        with written_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
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
        pool.mkdir(exist_ok=True)
        _drop_unused(pool)
        large = {name: size for name, size in walk(folder) if size >= POOLED_FROM}
        for name, digest in list(digests(folder, large, None)):
            with suppress(OSError):
                _link(folder / name, pool / digest)


# --- reading ----------------------------------------------------------------------------------


def _opened(folder: Path, key: str) -> Entry:
    """The entry in ``folder``, every byte checked. Raises BundleError leaves or InvalidPlan."""
    with readable():
        found = record(bounded_json((folder / ENTRY).read_bytes()), _KEYS, "entry")
        agree(found["schema"], SCHEMA, "schema")
        agree(found["key"], key, "key")
        files = [_file(each) for each in items(found["files"], "files")]
        sizes = dict(walk(folder, listed=sorted([ENTRY, *(name for name, _, _ in files)])))
        agree({name: size for name, size, _ in files} | {ENTRY: sizes.get(ENTRY)}, sizes, "files")
        wanted = {name: digest for name, _, digest in files}
        for name, digest in digests(folder, {each: sizes[each] for each in wanted}, None):
            require_digest(name, digest, wanted[name])
    return Entry(
        folder=folder,
        files=tuple(text(each, "engine file") for each in items(found["engine"], "engine")),
        signature=GraphSignature.from_json(found["signature"]),
    )


def _is_whole(folder: Path, key: str) -> bool:
    try:
        _opened(folder, key)
    except _DAMAGE:
        return False
    return True


def _file(value: object) -> tuple[str, int, str]:
    found = record(value, ("path", "bytes", "sha256"), "file")
    return text(found["path"], "path"), whole(found["bytes"], "bytes"), text(found["sha256"], "sha")


# --- writing ----------------------------------------------------------------------------------


def _drop_others(folder: Path, engine: tuple[str, ...]) -> None:
    """What the engine was made from and is not loaded from."""
    for name, _ in list(walk(folder)):
        if name not in engine:
            (folder / name).unlink()


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
    data = canonical_json(dict(zip(_KEYS, values, strict=True)))
    for name in sizes:
        _sync(folder / name)
    (folder / ENTRY).write_bytes(data)
    _sync(folder / ENTRY)
    sync_folder(folder)


def _sync(path: Path) -> None:
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
    """Whether a shared file is there, with the content that it is named by."""
    if not kept.is_file():
        return False
    _, digest = next(digests(kept.parent, {kept.name: kept.stat().st_size}, None))
    return digest == kept.name


def _drop_unused(pool: Path) -> None:
    """Shared files that no entry has any more."""
    for path in pool.iterdir():
        with suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()
