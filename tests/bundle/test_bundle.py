"""Laws of the bundle writer: whole or not at all, whatever ends it, and readable once there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from fresco_trt.bundle import Bundle, BundleWriter, open_bundle
from fresco_trt.bundle.manifest import (
    BackendRecord,
    BuiltRecord,
    EngineRecord,
    Manifest,
    ManifestDraft,
    ModelRecord,
    PipelineRecord,
)
from fresco_trt.errors import (
    BundleError,
    BundleNotFound,
    DigestMismatch,
    DiskFull,
    EnvironmentMismatch,
    FrescoError,
    ManifestInvalid,
    OutputNotWritable,
    PathEscape,
)
from fresco_trt.files.canonical_json import build_key
from fresco_trt.files.digests import folder_digest
from fresco_trt.plan.config import TargetConfig
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.plan.stages import Stage, StagePlan

if TYPE_CHECKING:
    from tests.preloaded import Preloaded

ZERO = "0" * 64


def plan() -> StagePlan:
    grid = Grid(height=4, width=4, scale=1.0)
    stage = Stage(grid=grid, sigmas=(1.0, 0.3, 0.0), actions=("full", "full"))
    return StagePlan(model="toy", size=(16, 16), stages=(stage,), transitions=())


def signature() -> GraphSignature:
    latents = TensorSpec(name="latents", dtype="float32", shape=(1, 4, 16))
    velocity = TensorSpec(name="velocity", dtype="float32", shape=(1, 4, 16))
    return GraphSignature(inputs=(latents,), outputs=(velocity,))


def draft(pipeline: PipelineRecord, **changes: Any) -> ManifestDraft:
    fields: dict[str, Any] = {
        "model": ModelRecord(name="toy", weights_sha256=ZERO, config={"hidden": 8}),
        "plan": plan(),
        "text_tokens": 4,
        "precision": "fp32",
        "calibration": None,
        "backend": BackendRecord(
            name="eager", library="torch", library_version="2", target=TargetConfig()
        ),
        "engines": (
            EngineRecord(
                name="stage1.full", family="flux", files=("a.onnx",), signature=signature()
            ),
        ),
        "pipeline": pipeline,
        "built": BuiltRecord(version="0", python="3", torch="2", seconds=1.5, options={"k": 3}),
        "key": build_key({"model": "toy"}),
    }
    return ManifestDraft(**{**fields, **changes})


def fill(folder: Path, content: bytes) -> ManifestDraft:
    (folder / "a.onnx").write_bytes(content)
    (folder / "shared").mkdir()
    (folder / "shared" / "weights.bin").write_bytes(content * 3)
    (folder / "pipeline" / "vae").mkdir(parents=True)
    (folder / "pipeline" / "model_index.json").write_bytes(b"{}")
    (folder / "pipeline" / "vae" / "empty").write_bytes(b"")
    return draft(PipelineRecord(folder="pipeline", digest=folder_digest(folder / "pipeline")))


def write(out: Path, content: bytes) -> Bundle:
    with BundleWriter(out) as writer:
        return writer.commit(fill(writer.folder, content))


def content_of(out: Path) -> bytes:
    """The engine's bytes, after the whole bundle was found valid."""
    return (open_bundle(out).folder / "a.onnx").read_bytes()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below ``folder``, hidden siblings of a bundle included."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


# --- what is written is what is read ----------------------------------------------------------


def test_opening_gives_back_what_was_committed(tmp_path: Path) -> None:
    committed = write(tmp_path / "b", b"engine")
    opened = open_bundle(tmp_path / "b")
    assert opened == committed
    assert opened.plan == plan()
    assert opened.engine("stage1.full").signature == signature()
    assert (opened.pipeline_folder / "model_index.json").is_file()
    with pytest.raises(KeyError, match=r"stage1\.full"):
        opened.engine("stage2.full")


def test_the_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", b"engine")
    on_disk = {name for name, data in snapshot(bundle.folder).items() if data is not None}
    assert {file.path for file in bundle.manifest.files} == on_disk - {"manifest.json"}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, b"engine").folder for name in "bc")
    assert snapshot(first) == snapshot(second)
    assert (first / "manifest.json").read_bytes().endswith(b"}\n")


def test_empty_folders_are_dropped(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        (writer.folder / "left" / "over").mkdir(parents=True)
        writer.commit(fill(writer.folder, b"engine"))
    assert not (open_bundle(tmp_path / "b").folder / "left").exists()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """In data files always; in the manifest unless it changes nothing (white space)."""
    bundle = write(tmp_path / "b", bytes(range(40)))
    for path in sorted(p for p in bundle.folder.rglob("*") if p.is_file()):
        good = path.read_bytes()
        for at in range(0, len(good), max(1, len(good) // 97)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x11]) + good[at + 1 :])
            if path.name == "manifest.json" and good[at : at + 1].isspace():
                continue
            with pytest.raises(BundleError):
                open_bundle(bundle.folder)
        path.write_bytes(good)
    assert open_bundle(bundle.folder) == bundle


def test_progress_rises_to_one(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", b"engine")
    seen: list[float] = []
    open_bundle(bundle.folder, progress=lambda _phase, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_checking_holds_one_buffer_however_large_a_file_is(tmp_path: Path) -> None:
    write(tmp_path / "b", bytes(8 * 1024 * 1024))
    tracemalloc.start()
    try:
        open_bundle(tmp_path / "b")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3 * 1024 * 1024


def test_the_environment_is_asked_last_and_decides(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", b"engine")

    def refuse(manifest: Manifest) -> None:
        assert manifest == bundle.manifest
        raise EnvironmentMismatch("torch 1", expected="torch 2", fix="install it")

    with pytest.raises(EnvironmentMismatch, match=r"bundle .*torch 1"):
        open_bundle(bundle.folder, environment=refuse)
    (bundle.folder / "a.onnx").write_bytes(b"enginE")
    with pytest.raises(DigestMismatch, match=r"a\.onnx"):
        open_bundle(bundle.folder, environment=refuse)


# --- the pipeline folder ----------------------------------------------------------------------


def test_parts_limit_what_of_the_pipeline_counts(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        whole = fill(writer.folder, b"engine")
        digest = folder_digest(writer.folder / "pipeline", ("vae",))
        record = PipelineRecord(folder="pipeline", digest=digest, parts=("vae",))
        writer.commit(whole.model_copy(update={"pipeline": record}))
    assert open_bundle(tmp_path / "b").pipeline_folder == tmp_path / "b" / "pipeline"


def test_a_pipeline_outside_the_bundle_is_refused_by_its_writer(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_bytes(b"decoder")
    record = PipelineRecord(folder=str(tmp_path / "own"), digest=folder_digest(tmp_path / "own"))
    with BundleWriter(tmp_path / "b") as writer:
        (writer.folder / "a.onnx").write_bytes(b"engine")
        with pytest.raises(PathEscape):
            writer.commit(draft(record))


# --- build key --------------------------------------------------------------------------------


def test_the_build_key_depends_on_every_part_and_on_no_order() -> None:
    parts = {"a": 1, "b": [1, 2], "c": {"x": None, "y": "1"}}
    variants: list[dict[str, object]] = [
        {**parts, "a": 1.5},
        {**parts, "a": "1"},
        {**parts, "b": [2, 1]},
        {**parts, "c": {"x": None}},
        {**parts, "c": {"x": None, "y": 1}},
        {**parts, "d": None},
    ]
    assert build_key(dict(reversed(parts.items()))) == build_key(parts)
    assert len({build_key(each) for each in (parts, *variants)}) == 1 + len(variants)


@pytest.mark.parametrize(
    ("value", "error"),
    [({1: 2}, TypeError), ({1, 2}, TypeError), (Path("x"), TypeError), (float("nan"), ValueError)],
)
def test_the_build_key_refuses_what_has_no_one_spelling(
    value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        build_key({"part": value})


# --- the old bundle stays until the new one is whole ------------------------------------------


def test_a_new_bundle_replaces_the_old_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "b", b"old")
    write(tmp_path / "b", b"new")
    assert content_of(tmp_path / "b") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def raising(error: BaseException) -> Callable[[BundleWriter], None]:
    def body(writer: BundleWriter) -> None:
        fill(writer.folder, b"new")
        raise error

    return body


def raising_in_commit(error: BaseException) -> Callable[[BundleWriter], None]:
    def interrupt(_phase: str, _fraction: float) -> None:
        raise error

    def body(writer: BundleWriter) -> None:
        writer.commit(fill(writer.folder, b"new"), progress=interrupt)

    return body


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES: list[tuple[Callable[[BundleWriter], None], type[BaseException] | None]] = [
    (lambda _: None, None),
    (raising(ZeroDivisionError()), ZeroDivisionError),
    (raising(KeyboardInterrupt()), KeyboardInterrupt),
    (raising(SystemExit(3)), SystemExit),
    (raising(FULL), DiskFull),
    (raising(OSError(errno.EDQUOT, "quota")), DiskFull),
    (raising(RuntimeError("I/O error: No space left on device (os error 28)")), DiskFull),
    (raising_in_commit(KeyboardInterrupt()), KeyboardInterrupt),
    (raising_in_commit(FULL), DiskFull),
    (raising_in_commit(OSError(errno.EROFS, "Read-only")), OutputNotWritable),
]


@pytest.mark.parametrize("old", [True, False], ids=["replacing", "fresh"])
@pytest.mark.parametrize(("body", "error"), FAILURES)
def test_leaving_without_commit_changes_nothing(
    tmp_path: Path,
    body: Callable[[BundleWriter], None],
    error: type[BaseException] | None,
    old: bool,
) -> None:
    if old:
        write(tmp_path / "b", b"old")
    before = snapshot(tmp_path)
    caught: BaseException | None = None
    try:
        with BundleWriter(tmp_path / "b") as writer:
            body(writer)
    except BaseException as raised:
        caught = raised
    assert type(caught) is (error or type(None))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("call", range(9))  # 4 files, the manifest, 4 folders
def test_a_disk_that_fills_up_at_any_sync_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Up to the swap; where allocation is delayed, writing succeeds and only syncing fails."""
    write(tmp_path / "b", b"old")
    before = snapshot(tmp_path)
    calls = iter(range(1000))
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise FULL
        real(descriptor)

    with BundleWriter(tmp_path / "b") as writer:
        contents = fill(writer.folder, b"new")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull, match="full"):
            writer.commit(contents)
    assert snapshot(tmp_path) == before


def test_the_old_bundle_comes_back_if_the_new_cannot_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "b", b"old")
    before = snapshot(tmp_path)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and target.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputNotWritable, match="Permission denied"):
        write(tmp_path / "b", b"new")
    assert snapshot(tmp_path) == before


# --- killed writers ---------------------------------------------------------------------------


def run_killed(preloaded: Preloaded, out: Path, killer: str) -> None:
    """Replace ``out`` in another process that ``killer`` (code) ends with SIGKILL."""
    code = f"""
        import importlib.util, os, signal, sys
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = importlib.util.module_from_spec(spec)
        sys.modules["helpers"] = helpers
        spec.loader.exec_module(helpers)
        def die(): os.kill(os.getpid(), signal.SIGKILL)
    """
    program = textwrap.dedent(code) + textwrap.dedent(killer)
    assert preloaded.run(program, out.parent, "-c", str(out)).status == -signal.SIGKILL


def test_kill_9_while_writing_leaves_the_old_bundle_and_the_next_writer_cleans(
    tmp_path: Path, preloaded: Preloaded
) -> None:
    write(tmp_path / "b", b"old")
    run_killed(
        preloaded,
        tmp_path / "b",
        """
        with helpers.BundleWriter(sys.argv[1]) as writer:
            helpers.fill(writer.folder, b"new")
            die()
        """,
    )
    assert content_of(tmp_path / "b") == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    with BundleWriter(tmp_path / "b") as writer:
        assert set(tmp_path.iterdir()) == {tmp_path / "b", writer.folder}


@pytest.mark.parametrize(
    ("renames", "survivor"), [(0, b"old"), (1, b"old"), (2, b"new"), (3, b"new")]
)
def test_kill_9_at_every_rename_leaves_one_whole_bundle(
    tmp_path: Path, preloaded: Preloaded, renames: int, survivor: bytes
) -> None:
    write(tmp_path / "b", b"old")
    run_killed(
        preloaded,
        tmp_path / "b",
        f"""
        done, real = [], Path.rename
        def rename(self, target):
            if len(done) == {renames}: die()
            done.append(real(self, target))
            if len(done) == 3: die()
            return done[-1]
        Path.rename = rename
        helpers.write(Path(sys.argv[1]), b"new")
        """,
    )
    assert content_of(tmp_path / "b") == survivor
    write(tmp_path / "b", b"next")
    assert content_of(tmp_path / "b") == b"next"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_opener_between_the_renames_does_not_undo_the_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "b", b"old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        if self == tmp_path / "b":
            with pytest.raises(BundleNotFound):
                open_bundle(tmp_path / "b")
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    write(tmp_path / "b", b"new")
    assert content_of(tmp_path / "b") == b"new"


def test_the_next_writer_recovers_the_old_bundle_even_if_it_then_fails(tmp_path: Path) -> None:
    write(tmp_path / "b", b"old")
    (tmp_path / "b").rename(tmp_path / ".b.previous-1-0123abcd")
    with BundleWriter(tmp_path / "b"):
        pass
    assert content_of(tmp_path / "b") == b"old"


def test_a_live_writer_is_not_swept_and_the_last_commit_stays(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as slow:
        contents = fill(slow.folder, b"slow")
        write(tmp_path / "b", b"quick")
        assert content_of(tmp_path / "b") == b"quick"
        slow.commit(contents)
    assert content_of(tmp_path / "b") == b"slow"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_without_locks_the_process_id_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    live = tmp_path / f".b.partial-{os.getpid()}-00000000"
    dead = tmp_path / f".b.partial-{ended.pid}-00000000"
    live.mkdir()
    dead.mkdir()
    write(tmp_path / "b", b"new")
    assert live.exists()
    assert not dead.exists()


def test_only_leftovers_of_this_name_are_swept(tmp_path: Path) -> None:
    others = [".b.partial-notes", ".c.partial-1-00000000", "b.partial-1-00000000", ".b.partial"]
    for name in others:
        (tmp_path / name).mkdir()
    write(tmp_path / "b", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"b", *others}


# --- what is at the output path already -------------------------------------------------------


def file_there(out: Path) -> None:
    out.write_text("mine")


def folder_there(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def foreign_manifest_there(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')


def bundle_with_notes_there(out: Path) -> None:
    write(out, b"old")
    (out / "shared" / "notes.txt").write_text("mine")


def bundle_with_link_there(out: Path) -> None:
    write(out, b"old")
    (out / "shared" / "elsewhere").symlink_to("/")


def bundle_with_broken_manifest_there(out: Path) -> None:
    write(out, b"old")
    (out / "manifest.json").write_text("{")


def parent_is_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_text("mine")


@pytest.mark.parametrize(
    "put",
    [
        file_there,
        folder_there,
        foreign_manifest_there,
        bundle_with_notes_there,
        bundle_with_link_there,
        bundle_with_broken_manifest_there,
        parent_is_a_file,
    ],
)
def test_what_no_writer_put_there_is_never_replaced(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    out = tmp_path / "folder" / "b"
    out.parent.mkdir()
    put(out)
    before = snapshot(tmp_path)
    with pytest.raises(OutputNotWritable) as caught, BundleWriter(out):
        pytest.fail("the writer started")
    assert_message(caught.value)
    assert snapshot(tmp_path) == before


def test_a_file_added_during_the_build_is_not_deleted(tmp_path: Path) -> None:
    write(tmp_path / "b", b"old")
    with BundleWriter(tmp_path / "b") as writer:
        contents = fill(writer.folder, b"new")
        (tmp_path / "b" / "notes.txt").write_text("mine")
        with pytest.raises(OutputNotWritable, match=r"notes\.txt"):
            writer.commit(contents)
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


def test_a_mount_point_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "b")
    with pytest.raises(OutputNotWritable, match="mount point"), BundleWriter(tmp_path / "b"):
        pytest.fail("the writer started")


def test_an_empty_folder_and_a_damaged_bundle_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", b"old")
    (tmp_path / "b" / "a.onnx").unlink()
    (tmp_path / "b" / "shared" / "weights.bin").write_bytes(b"damaged")
    write(tmp_path / "b", b"new")
    assert content_of(tmp_path / "b") == b"new"


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "v1", b"old")
    (tmp_path / "current").symlink_to("v1")
    write(tmp_path / "current", b"new")
    assert (tmp_path / "current").is_symlink()
    assert content_of(tmp_path / "current") == content_of(tmp_path / "v1") == b"new"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "x" / "y" / "b", b"new")
    assert content_of(tmp_path / "x" / "y" / "b") == b"new"


# --- commit refuses what open would refuse ----------------------------------------------------


def add_link(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / "link").symlink_to("a.onnx")
    return contents


def add_bad_name(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / "a\\b").write_bytes(b"")
    return contents


def add_undecodable_name(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    return contents


def lose_engine(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / "a.onnx").unlink()
    return contents


def change_pipeline(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / "pipeline" / "model_index.json").write_bytes(b"[]")
    return contents


def write_manifest(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    (folder / "manifest.json").write_bytes(b"{}")
    return contents


def point_into_itself(folder: Path, contents: ManifestDraft) -> ManifestDraft:
    record = PipelineRecord(folder=str(folder / "pipeline"), digest=ZERO)
    return contents.model_copy(update={"pipeline": record})


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (add_link, PathEscape),
        (add_bad_name, PathEscape),
        (add_undecodable_name, PathEscape),
        (lose_engine, ManifestInvalid),
        (change_pipeline, DigestMismatch),
        (write_manifest, RuntimeError),
        (point_into_itself, PathEscape),
    ],
)
def test_a_bundle_that_would_not_open_is_not_put_in_place(
    tmp_path: Path,
    spoil: Callable[[Path, ManifestDraft], ManifestDraft],
    error: type[Exception],
) -> None:
    write(tmp_path / "b", b"old")
    before = snapshot(tmp_path)
    with pytest.raises(error), BundleWriter(tmp_path / "b") as writer:
        writer.commit(spoil(writer.folder, fill(writer.folder, b"new")))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["/home/someone/flux", "--weights=/data/flux", "~/flux", "C:\\flux", "file:///flux", "a /b"],
)
def test_no_path_of_the_building_machine_gets_in(text: str) -> None:
    with pytest.raises(ValidationError, match="machine"):
        BuiltRecord(version="0", python="3", torch=None, seconds=0.0, options={"k": [text]})
    with pytest.raises(ValidationError, match="machine"):
        ModelRecord(name="toy", weights_sha256=ZERO, config={"a": {"b": text}})


@pytest.mark.parametrize("text", ["black-forest-labs/FLUX.1-dev", "256x256", "https://a.b/c", ""])
def test_names_with_slashes_do(text: str) -> None:
    ModelRecord(name="toy", weights_sha256=ZERO, config={"name": text})


def test_a_writer_works_in_its_scope_only(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "b")
    with pytest.raises(RuntimeError):
        _ = writer.folder
    with writer:
        contents = fill(writer.folder, b"new")
        with pytest.raises(RuntimeError):
            writer.__enter__()
        writer.commit(contents)
        with pytest.raises(RuntimeError):
            writer.commit(contents)
    assert content_of(tmp_path / "b") == b"new"


# --- messages ---------------------------------------------------------------------------------


def assert_message(error: FrescoError) -> None:
    text = str(error)
    assert error.given in text
    assert error.expected in text
    assert f"Fix: {error.fix}" in text
    assert all((error.given, error.expected, error.fix))
    assert len(text.splitlines()) <= 2


def test_a_full_disk_is_said_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as caught, BundleWriter(tmp_path / "b"):
        raise FULL
    assert_message(caught.value)
    assert str(tmp_path) in str(caught.value)
