"""Whatever is wrong with the engine cache, the call is right: the engine is built, told once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.compile import counters, engine, messages, store
from fresco_trt.compile.store import DAMAGE, ENTRY, SCHEMA, EngineStore
from fresco_trt.errors import OutputNotWritable, UnsupportedGraph
from fresco_trt.files.cache_folder import cache_folder
from fresco_trt.files.canonical_json import canonical_json
from fresco_trt.files.process_folder import process_folder
from tests.compile.compiling import KEY, SIGNATURE, compiled, entries, filled, since
from tests.compile.test_messages import FOREIGN

pytestmark = pytest.mark.usefixtures("torch_tensorrt")  # the quickest to build, and native code

OPENED: list[str] = []
_WATCHED: list[Path] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED and event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if path.startswith(str(_WATCHED[0])):
            OPENED.append(path)


sys.addaudithook(_hook)  # which cannot be taken away again: it is idle without something to watch


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the cache, in which nothing may be opened."""
    folder = tmp_path / "outside"
    folder.mkdir()
    yield folder
    _WATCHED.clear()
    OPENED.clear()


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_TOLD", set())


def twice(x: Tensor) -> Tensor:
    return x * 2.0


def called(cache: Path, rows: int = 2, **options: object) -> None:
    """A new compilation, as of a new process, whose result is right."""
    torch._dynamo.reset()
    fast = compiled(twice, cache, backend="torch-tensorrt", **options)
    assert torch.equal(fast(torch.ones(rows, 2)), torch.full((rows, 2), 2.0))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of the package."""
    records = [each for each in caplog.records if each.name.startswith("fresco_trt")]
    return [each.getMessage() for each in records if each.levelname == "WARNING"]


def code(entry: Path) -> Path:
    (path,) = (path for path in entry.iterdir() if path.name != ENTRY)
    return path


# --- entries ----------------------------------------------------------------------------------


def changed(entry: Path, **values: object) -> None:
    """Other values in an entry, its digests made right."""
    found = json.loads((entry / ENTRY).read_bytes()) | values
    for file in found["files"]:
        path = entry / file["path"]
        if path.is_file():
            data = path.read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del found["digest"]
    found["digest"] = hashlib.sha256(canonical_json(found)).hexdigest()
    (entry / ENTRY).write_bytes(canonical_json(found))


def undigested(entry: Path, outside: Path) -> None:
    text = (entry / ENTRY).read_text()
    (entry / ENTRY).write_text(text.replace('"shape":[1]', '"shape":[2]', 1))


def another_signature(entry: Path, outside: Path) -> None:
    signature = json.loads((entry / ENTRY).read_bytes())["signature"]
    signature["outputs"][0]["shape"] = [9]
    changed(entry, signature=signature)


def named_outside(entry: Path, outside: Path) -> None:
    shutil.copy(code(entry), outside / "code")
    changed(entry, engine=[code(entry).name, "../../../outside/code"])


def listed_outside(entry: Path, outside: Path) -> None:
    name = "../../../outside/code"
    shutil.move(code(entry), outside / "code")
    changed(entry, engine=[name], files=[{"path": name, "bytes": 0, "sha256": ""}])


def linked(entry: Path, outside: Path) -> None:
    shutil.move(entry, outside / "entry")
    entry.symlink_to(outside / "entry")


def linked_file(entry: Path, outside: Path) -> None:
    path = code(entry)
    shutil.move(path, outside / "code")
    path.symlink_to(outside / "code")


def linked_entry(entry: Path, outside: Path) -> None:
    shutil.move(entry / ENTRY, outside / ENTRY)
    (entry / ENTRY).symlink_to(outside / ENTRY)


def pipe(entry: Path, outside: Path) -> None:
    (entry / ENTRY).unlink()
    os.mkfifo(entry / ENTRY)


def a_file(entry: Path, outside: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("in the way")


def no_engine(entry: Path, outside: Path) -> None:
    (code(entry)).write_bytes(b"no program")
    changed(entry)


def another_engine(entry: Path, outside: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.sum(),)

    torch.export.save(torch.export.export(Sum(), (torch.ones(2, 2),)), code(entry))
    changed(entry)


def written_by_others(entry: Path, outside: Path) -> None:
    (code(entry)).chmod(0o666)


SPOILED = [
    undigested,
    another_signature,
    named_outside,
    listed_outside,
    linked,
    linked_file,
    linked_entry,
    pipe,
    a_file,
    written_by_others,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda each: each.__name__)
def test_an_altered_entry_is_found_out_leads_nowhere_and_is_replaced(
    cache: Path, outside: Path, spoil: Callable[[Path, Path], None]
) -> None:
    at = EngineStore(cache, native=True)
    entry = at.build(KEY, {}, SIGNATURE, filled(b"code"))
    spoil(entry.folder, outside)
    kept = sorted(outside.rglob("*"))
    _WATCHED.append(outside)
    with pytest.raises(DAMAGE):
        at.find(KEY, SIGNATURE)
    assert at.build(KEY, {}, SIGNATURE, filled(b"more"), replace=True) == entry
    assert OPENED == []
    assert sorted(outside.rglob("*")) == kept
    assert at.find(KEY, SIGNATURE) == entry
    assert {path.name for path in at.folder.iterdir()} == {KEY, "weights"}


@pytest.mark.parametrize("spoil", [linked, no_engine, another_engine], ids=lambda e: e.__name__)
def test_an_engine_that_is_none_of_the_graph_is_built_again_and_told(
    cache: Path,
    outside: Path,
    spoil: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = counters()
    called(cache)
    (entry,) = entries(cache)
    spoil(entry, outside)
    called(cache)
    assert since(before) == (2, 0, 0)
    (text,) = said(caplog)
    assert "is damaged: " in text
    assert not FOREIGN.search(text)
    called(cache)
    assert since(before) == (2, 1, 0)


def test_many_damaged_entries_of_a_cache_are_told_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = counters()
    for rows in (1, 2):
        called(cache, rows)
    for entry in entries(cache):
        (entry / ENTRY).write_text("{}")
    for rows in (1, 2):
        called(cache, rows)
    assert since(before) == (4, 0, 0)
    assert len(said(caplog)) == 1


# --- the folder -------------------------------------------------------------------------------


def in_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")


def links_away(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / f"compile-{SCHEMA}").symlink_to(cache.parent)


def open_to_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / f"compile-{SCHEMA}").mkdir(parents=True)
    (cache / f"compile-{SCHEMA}").chmod(0o777)


def no_entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As to a user who may not search it."""
    mkdir = Path.mkdir

    def refuse(self: Path, *given: Any, **named: Any) -> None:
        if cache in self.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        mkdir(self, *given, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)


def full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = store.put_in_place

    def fill(held: Any, target: Path) -> None:
        if cache in target.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(held, target)

    monkeypatch.setattr(store, "put_in_place", fill)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (in_the_way, "cannot be written"),
        (links_away, "is a link"),
        (open_to_others, "can be written to by others"),
        (no_entry, "Permission denied"),
        (full, "is full"),
    ],
)
def test_without_a_cache_engines_are_built_for_the_process_and_that_is_told_once(
    cache: Path,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    told: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(cache, monkeypatch)
    before, there = counters(), sorted(process_folder().iterdir())
    for rows in (1, 2):
        called(cache, rows, strict=True)
    assert since(before) == (2, 0, 0)
    (text,) = said(caplog)
    assert told in text
    assert "options={'cache': ...}" in text
    assert not FOREIGN.search(text)
    assert sorted(process_folder().iterdir()) == there
    assert not entries(cache)


def test_a_user_without_a_home_has_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FRESCO_TRT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(OutputNotWritable, match="Fix: set FRESCO_TRT_CACHE to a folder"):
        cache_folder()
    fast = torch.compile(twice, backend="fresco_trt", options={"backend": "torch-tensorrt"})
    assert torch.equal(fast(torch.ones(2, 2)), torch.full((2, 2), 2.0))
    assert "in the home of a user who has none" in caplog.text


def test_without_any_room_torch_runs_the_graph(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.write_text("in the way")
    monkeypatch.setattr(engine, "process_folder", none)
    before = counters()
    called(cache)
    assert since(before) == (0, 0, 1)
    assert "neither in the cache nor in a temporary folder" in caplog.text
    with pytest.raises(UnsupportedGraph, match="an engine has no room"):
        called(cache, strict=True)


# --- whose engines they are ---------------------------------------------------------------------


def test_code_is_taken_from_nothing_that_others_may_write_to_and_data_is(cache: Path) -> None:
    own, any_ones = EngineStore(cache, native=True), EngineStore(cache)
    entry = own.build(KEY, {}, SIGNATURE, filled(b"code"))
    for path in (entry.folder, entry.folder / "engine"):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | 0o020)
        with pytest.raises(DAMAGE, match="can be written to by others"):
            own.find(KEY, SIGNATURE)
        assert any_ones.find(KEY, SIGNATURE) == entry
        path.chmod(mode)
    assert own.find(KEY, SIGNATURE) == entry
    own.folder.chmod(0o770)
    with pytest.raises(OutputNotWritable, match="can be written to by others"):
        own.find(KEY, SIGNATURE)
    assert any_ones.find(KEY, SIGNATURE) == entry


def test_a_user_whose_files_are_their_groups_has_engines_of_their_own(cache: Path) -> None:
    own, mask = EngineStore(cache, native=True), os.umask(0o002)
    try:
        entry = own.build(KEY, {}, SIGNATURE, filled(os.urandom(1_100_000)))
        (pooled,) = (own.folder / "weights").iterdir()
        pooled.chmod(0o666)  # is not taken for another entry
        data = (entry.folder / "engine").read_bytes()
        other = own.build("1" * 64, {}, SIGNATURE, filled(data))
    finally:
        os.umask(mask)
    assert own.find("1" * 64, SIGNATURE) == other
    entry_ = own.folder / KEY / "engine"
    assert not entry_.samefile(other.folder / "engine")


def test_a_pool_that_leads_away_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"only here")
    at = EngineStore(cache)
    at.folder.mkdir(parents=True)
    (at.folder / "weights").symlink_to(tmp_path / "mine")
    at.build(KEY, {}, SIGNATURE, filled(os.urandom(1_100_000)))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    assert (at.folder / "weights").is_dir()
    assert not (at.folder / "weights").is_symlink()
