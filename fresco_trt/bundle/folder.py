"""The engine bundle on disk: the only contract between ``lower/`` and ``run/``.

In the data path it is the double arrow. ``BundleWriter`` puts a finished folder in place in one
step; ``open_bundle`` believes nothing about a folder until every byte of it is accounted for.
The page both sides read is in ``manifest.py``, the format in ``docs/bundle-format.md``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fresco_trt.bundle.manifest import (
    EngineRecord,
    FileRecord,
    Manifest,
    ManifestDraft,
    check_path,
    finished,
    parse_manifest,
)
from fresco_trt.bundle.unchanged import check_unchanged, loaded_later, one_bundle, unchanged
from fresco_trt.errors import (
    BundleError,
    BundleNotFound,
    DigestMismatch,
    FileUnexpected,
    OutputNotWritable,
    error_context,
)
from fresco_trt.files.atomic_folder import (
    Held,
    create_partial,
    disk_full,
    is_disk_full,
    put_in_place,
    recover,
    remove,
    sweep,
    sync_folder,
    written_to,
)
from fresco_trt.files.canonical_json import (
    COPY,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SIGNATURE_NAME,
    bounded_json,
    invalid,
    quoted,
    require_digest,
)
from fresco_trt.files.digests import (
    Progress,
    digests,
    linked,
    missing,
    parts_digest,
    readable,
    walk,
)
from fresco_trt.files.identity import Seen
from fresco_trt.plan.stages import StagePlan

UNLISTED = (MANIFEST_NAME, SIGNATURE_NAME)
"""The files that a manifest does not list: itself, and the signature over it, if there is one."""

SIGNATURE_BYTES = 64
"""Those of an ed25519 signature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An opened bundle: its folder (absolute), its verified manifest and which files that is of."""

    folder: Path
    manifest: Manifest
    seen: Seen = field(compare=False, repr=False)

    @property
    def plan(self) -> StagePlan:
        """What the engines were built for."""
        return self.manifest.plan

    @property
    def batch(self) -> int:
        """How many pictures the engines take at once."""
        return self.manifest.backend.target.batch

    @property
    def pipeline_folder(self) -> Path:
        """The folder of text encoders, decoder and scheduler, inside the bundle."""
        return self.folder / self.manifest.pipeline.folder

    def engine(self, name: str) -> EngineRecord:
        """The record of one engine; KeyError naming those there are."""
        for record in self.manifest.engines:
            if record.name == name:
                return record
        there = ", ".join(record.name for record in self.manifest.engines)
        raise KeyError(f"no engine {name!r}; there are: {there}")

    def unchanged(self) -> AbstractContextManager[None]:
        """The scope to load files of the bundle in, by whatever library.

        Raises BundleChanged at its end, in place of any error in it, if some file is not the one
        that was checked: what was loaded is not what the manifest says.
        """
        return unchanged(self.folder, self.seen)

    def check_unchanged(self) -> None:
        """Raise BundleChanged unless every file is still the one that was checked."""
        check_unchanged(self.folder, self.seen)


# --- opening ----------------------------------------------------------------------------------


def open_bundle(
    path: str | os.PathLike[str],
    *,
    sizes: Callable[[Manifest], None] | None = None,
    environment: Callable[[Manifest], None] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Validate the bundle at ``path`` and return it; no engine is touched.

    In this order: the manifest's bounds, its schema, ``sizes(manifest)``, which raises for files
    that are too large to be read at all, the exact file list, sizes, SHA-256 digests, then
    ``environment(manifest)``, which raises EnvironmentMismatch if the engines cannot run here.
    ``progress(phase, fraction)`` is called while files are hashed.

    Raises BundleNotFound, ManifestInvalid, SchemaTooNew, PathEscape, FileMissing, FileUnexpected,
    DigestMismatch, and what ``sizes`` and ``environment`` raise; BundleChanged in place of these if
    the bundle was replaced meanwhile. A bundle whose replacement was killed halfway is recovered
    first.
    """
    folder = Path(os.path.realpath(path))
    with error_context(f"bundle {quoted(os.fspath(path))}"), one_bundle(folder):
        manifest = parse_manifest(manifest_bytes(folder))
        if sizes is not None:
            sizes(manifest)
        with readable():
            _check_files(folder, manifest)
            seen = Seen.of(folder, loaded_later(manifest))  # before they are read
            _check_contents(folder, manifest, progress)
        _check_pipeline(manifest)
        if environment is not None:
            environment(manifest)
    return Bundle(folder=folder, manifest=manifest, seen=seen)


def manifest_bytes(folder: Path) -> bytes:
    """The manifest at ``folder`` as it lies there, unchecked, at most one byte more than it may
    have. Raises BundleNotFound, PathEscape or ManifestInvalid.
    """
    path = folder / MANIFEST_NAME
    try:
        recover(folder)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise linked(MANIFEST_NAME)
        if not stat.S_ISREG(status.st_mode):
            invalid(f"{MANIFEST_NAME} is not a regular file", "a regular file")
        with path.open("rb") as file:
            return file.read(min(status.st_size, MAX_MANIFEST_BYTES) + 1)
    except OSError as error:
        what = f"{MANIFEST_NAME} in it" if _is_folder(folder) else "it"
        raise BundleNotFound(
            f"{what} cannot be read ({error.strerror or error})",
            expected="a folder that 'fresco-trt build' wrote",
            fix="pass the bundle's folder, or build one with 'fresco-trt build'",
        ) from error


def _is_folder(path: Path) -> bool:
    """As ``is_dir``, also of a path that is too long to be one."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Every listed file is there with its size, and nothing else is."""
    listed = {file.path: file.bytes for file in manifest.files}
    found = dict(walk(folder, listed=sorted((*listed, *UNLISTED))))
    _check_signature(found.get(SIGNATURE_NAME, SIGNATURE_BYTES))
    for name, size in listed.items():
        if name not in found:
            raise missing(name)
        if found[name] != size:
            raise DigestMismatch(
                f"{quoted(name)} has {found[name]} bytes",
                expected=f"{size} bytes as in {MANIFEST_NAME}",
                fix=COPY,
            )


def _check_signature(size: int) -> None:
    """Whose it is, is asked where it matters (``trust.py``); here, that it can be one."""
    if size != SIGNATURE_BYTES:
        raise FileUnexpected(
            f"{SIGNATURE_NAME!r} has {size} bytes",
            expected=f"an ed25519 signature of {SIGNATURE_BYTES} bytes, or no such file",
            fix="sign the bundle again with 'fresco-trt sign', or remove the file",
        )


def _check_contents(folder: Path, manifest: Manifest, progress: Progress | None) -> None:
    listed = {file.path: file for file in manifest.files}
    sizes = {file.path: file.bytes for file in manifest.files}
    for name, digest in digests(folder, sizes, progress):
        require_digest(quoted(name), digest, listed[name].sha256)


def _check_pipeline(manifest: Manifest) -> None:
    """The pipeline folder is the one recorded; its files need no second reading."""
    record = manifest.pipeline
    inside = f"{record.folder}/"
    rows = [
        (file.path.removeprefix(inside), file.bytes, file.sha256)
        for file in manifest.files
        if file.path.startswith(inside)
    ]
    digest = parts_digest(record.folder, rows, record.parts)
    require_digest(f"the pipeline folder {quoted(record.folder)}", digest, record.digest)


# --- writing ----------------------------------------------------------------------------------


class BundleWriter:
    """Writes a bundle beside ``out`` and renames it into place when it is complete.

    ``with BundleWriter(out) as writer:`` fill ``writer.folder``, then ``writer.commit(draft)``.
    Leaving without a commit, by whatever exception, removes what was written and leaves an older
    bundle at ``out`` as it was; after ``kill -9`` the next writer or opener of the same name
    does. Only an older bundle or an empty folder is ever replaced. Two writers of one name may
    run at once; the last commit stays.

    Raises OutputNotWritable and DiskFull, the latter also in place of any exception in the scope
    that says the disk is full; RuntimeError outside the scope or after the commit.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._out = Path(os.path.realpath(out))
        self._held: Held | None = None

    @property
    def folder(self) -> Path:
        """The folder to fill."""
        return self._writing().folder

    def __enter__(self) -> Self:
        if self._held is not None:
            raise RuntimeError("this BundleWriter is already in use")
        with written_to(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            sweep(self._out)
            _require_replaceable(self._out)
            self._held = create_partial(self._out)
        return self

    def commit(self, draft: ManifestDraft, *, progress: Progress | None = None) -> Bundle:
        """Hash all files, write the manifest last, make it durable, swap it in; the new bundle.

        Empty folders are dropped. Raises what :func:`open_bundle` would raise about the result
        (links, bad names, engine files that are not there, a wrong pipeline digest), DiskFull and
        OutputNotWritable.
        """
        held = self._writing()
        with error_context(f"bundle {quoted(str(self._out))}"), written_to(self._out):
            _drop_empty_folders(held.folder)
            manifest = _manifest_of(held.folder, draft, progress)
            _write_durably(held.folder, manifest)
            seen = Seen.of(held.folder, loaded_later(manifest))
            _require_replaceable(self._out)
            put_in_place(held, self._out)
        self._held = None
        held.release()
        return Bundle(folder=self._out, manifest=manifest, seen=seen)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            remove(held.folder)
            held.release()
        if is_disk_full(error):
            raise disk_full(self._out) from error

    def _writing(self) -> Held:
        if self._held is None:
            raise RuntimeError("a BundleWriter works inside its 'with' block, until its commit")
        return self._held


def _require_replaceable(out: Path) -> None:
    """Refuse to replace anything but a bundle or an empty folder."""
    if not os.path.lexists(out):
        return
    problem = _foreign(out)
    if problem is not None:
        raise OutputNotWritable(
            f"{quoted(str(out))} {problem}",
            expected="a new name, an empty folder or an older bundle with nothing added to it",
            fix="choose another --out, or move away what is there",
        )


def _foreign(out: Path) -> str | None:
    """What at ``out`` was not put there by a writer, if anything."""
    if not _is_folder(out):
        return "is not a folder"
    if os.path.ismount(out):
        return "is a mount point, which cannot be swapped in one step"
    try:
        for _ in walk(out, listed=_claimed_files(out)):
            pass
    except BundleError as error:
        return f"holds what no bundle put there: {error.given}"
    return None


def _claimed_files(out: Path) -> list[str]:
    """The files that a manifest at ``out``, of this or another schema, says are the bundle's."""
    try:
        raw = bounded_json(manifest_bytes(out))
    except BundleError:
        return []
    files = raw.get("files")
    if type(raw.get("schema_version")) is not int or not isinstance(files, list):
        return []
    paths = [file.get("path") for file in files if isinstance(file, dict)]
    return sorted((*UNLISTED, *(path for path in paths if isinstance(path, str))))


def _drop_empty_folders(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        if Path(path) != folder and not any(Path(path).iterdir()):
            Path(path).rmdir()


def _manifest_of(folder: Path, draft: ManifestDraft, progress: Progress | None) -> Manifest:
    """The finished manifest, read back from its own bytes as an opener will read it."""
    sizes = dict(walk(folder))
    for name in set(UNLISTED) & sizes.keys():
        raise RuntimeError(f"{name} is written by commit or a signer, not by the one who fills it")
    for name in sizes:
        check_path(name)
    files = [
        FileRecord(path=name, bytes=sizes[name], sha256=digest)
        for name, digest in digests(folder, sizes, progress)
    ]
    manifest = parse_manifest(finished(draft, files).to_bytes())
    _check_pipeline(manifest)
    return manifest


def _write_durably(folder: Path, manifest: Manifest) -> None:
    """The manifest last, and everything on the disk before the folder gets its name."""
    for record in manifest.files:
        _sync_file(folder / record.path)
    with (folder / MANIFEST_NAME).open("xb") as file:
        file.write(manifest.to_bytes())
        file.flush()
        os.fsync(file.fileno())
    for path, _, _ in os.walk(folder):
        sync_folder(Path(path))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
