"""Laws of reading an export: every nanosecond of the device at its place, whatever the version."""

from __future__ import annotations

import json
import os
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fresco_trt.errors import DiskFull, ExportInvalid
from fresco_trt.profile.files import Profile
from fresco_trt.profile.nsight import export as exporting
from fresco_trt.profile.nsight import launches, ranges, read_export
from fresco_trt.profile.spans import Place
from tests.profile.exports import NEW, OLD, THREAD, VERSIONS, Export, requests


def read(made: Export | Path) -> Profile:
    path = made if isinstance(made, Path) else made.path
    return read_export(path, lambda phase, fraction: None)


def device(found: Profile) -> dict[Place, int]:
    """Nanoseconds of the device by place."""
    rows = found.document["device"]["rows"]
    return {
        Place(row["stage"], row["step"], row["part"]): round(1e9 * row["seconds"]) for row in rows
    }


def adds_up(found: Profile) -> bool:
    """Whether parts are the whole and shares are all, on both sides."""
    document = found.document
    seconds = document["device"]["seconds"]
    busy = sum(row["seconds"] for row in document["device"]["rows"])
    gaps = sum(gap["seconds"] for gap in document["device"]["gaps"])
    shares = [document["rows"], *(document["device"][name] for name in ("rows", "gaps", "kernels"))]
    assert busy == pytest.approx(seconds["busy"], abs=1e-9)
    assert gaps == pytest.approx(seconds["gaps"], abs=1e-9)
    assert busy + gaps == pytest.approx(seconds["span"], abs=1e-9)
    assert sum(row["seconds"] for row in document["rows"]) == pytest.approx(
        document["seconds"]["total"], abs=1e-8
    )
    assert all(sum(row["share"] for row in rows) == pytest.approx(1) for rows in shares if rows)
    json.dumps(document, allow_nan=False)
    return True


# --- what is true of requests -------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kernel_is_counted_where_it_was_launched(tmp_path: Path, version: str) -> None:
    made = requests(Export(tmp_path / "made.sqlite", version))
    found = read(made)
    assert adds_up(found)
    assert device(found) == made.busy
    assert round(1e9 * found.document["device"]["seconds"]["gaps"]) == made.gaps
    assert found.document["requests"] == len(made.requests)
    assert found.document["request_seconds"]["median"] == pytest.approx(made.requests[0] / 1e9)
    assert found.document["notes"] == []
    names = {each["name"]: each["calls"] for each in found.document["device"]["kernels"]}
    assert names["void axpy<float>()"] == 6
    assert found.document["export"].get("product_version") == (
        "2026.1.1" if version == NEW else None
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_host_and_device_are_tracks_of_the_first_request(tmp_path: Path, version: str) -> None:
    host, gpu = read(requests(Export(tmp_path / "made.sqlite", version))).tracks
    assert (host.name, gpu.name) == ("host", "GPU")
    assert host.bars[0].begin == 0
    assert [bar.label for bar in host.bars[:4]] == ["request", "text", "stage 1", "step 1"]
    assert all(a.end <= b.begin for a, b in zip(gpu.bars, gpu.bars[1:], strict=False))
    assert max(bar.end for bar in gpu.bars) < 3_000


def test_gaps_are_named_by_what_is_around_them(tmp_path: Path) -> None:
    found = read(requests(Export(tmp_path / "made.sqlite")))
    gaps = {(each["before"], each["after"]): each for each in found.document["device"]["gaps"]}
    assert gaps["text", "stage 1, step 1, full"]["calls"] == 2
    assert gaps["between requests", "between requests"]["calls"] == 1
    assert gaps["between requests", "between requests"]["longest_seconds"] > 300e-9


def test_pieces_side_by_side_count_once_and_kernels_in_full(tmp_path: Path) -> None:
    made = Export(tmp_path / "made.sqlite")
    made.range("request", 0, 100)
    made.range("decode", 10, 90)
    first, second = made.launch(20), made.launch(30)
    made.kernel("a", 40, 80, first, Place(None, None, "decode"))
    made.kernel("b", 50, 70, second, Place(None, None, "decode"))
    found = read(made)
    assert adds_up(found)
    assert device(found) == {Place(None, None, "decode"): 40}
    kernels = {each["name"]: each["seconds"] for each in found.document["device"]["kernels"]}
    assert kernels == {"void a<float>()": 4e-8, "void b<float>()": 2e-8}


# --- graphs -----------------------------------------------------------------------------------


def replayed(made: Export) -> Export:
    """A stage of two steps as one launch; nodes 1 and 2 are the captured ones, 11 and 12 clones."""
    made.range("request", 1_000, 2_000)
    made.range("stage", 1_100, 1_300, 1)
    made.range("replay", 1_110, 1_290)
    call = made.launch(1_120, "cudaGraphLaunch")
    made.kernel("one", 1_200, 1_250, call, Place(1, 1, "full"), node=11)
    made.kernel("two", 1_260, 1_290, call, Place(1, 2, "bypass"), node=12)
    return made


def test_kernels_of_a_replay_are_of_the_steps_they_were_captured_in(tmp_path: Path) -> None:
    made = Export(tmp_path / "made.sqlite")
    made.range("request", 0, 900)
    made.range("stage", 10, 800, 1)
    for step, name in ((1, "full"), (2, "bypass")):
        made.range("step", 100 * step, 100 * step + 50, step)
        made.range(name, 100 * step + 10, 100 * step + 40)
        made.node(100 * step + 20, step)
    made.node(700, 11, original=1)
    made.node(701, 12, original=2)
    replayed(made)
    found = read(made)
    assert device(found) == made.busy
    assert found.document["notes"] == []


def test_without_the_capture_a_replay_is_one_part_and_that_is_said(tmp_path: Path) -> None:
    made = replayed(Export(tmp_path / "made.sqlite"))
    with made.connected() as file:
        file.execute("DROP TABLE CUDA_GRAPH_NODE_EVENTS")
    found = read(made)
    assert device(found) == {Place(1, None, "replay"): 80}
    assert "capture" in " ".join(found.document["notes"])


def test_a_graph_that_was_traced_whole_is_one_piece_of_its_stage(tmp_path: Path) -> None:
    made = Export(tmp_path / "made.sqlite")
    made.range("request", 0, 900)
    made.range("stage", 10, 800, 2)
    made.range("replay", 20, 700)
    call = made.launch(30, "cudaGraphLaunch")
    with made.connected() as file:
        file.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER, end INTEGER, deviceId"
            " INTEGER, correlationId INTEGER, globalPid INTEGER, graphId INTEGER)"
        )
        file.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (100, 400, 0, ?, ?, 9)",
            (call, THREAD >> 24 << 24),
        )
    found = read(made)
    assert device(found) == {Place(2, None, "replay"): 300}
    assert [each["name"] for each in found.document["device"]["kernels"]] == ["graph 9"]
    assert "--cuda-graph-trace=node" in " ".join(found.document["notes"])


# --- whose ranges and calls -------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_other_domains_threads_and_processes_are_not_ours(tmp_path: Path, version: str) -> None:
    made = requests(Export(tmp_path / "made.sqlite", version))
    expected = device(read(made))
    # Ranges of the same names in another domain, on the same thread.
    other = Export(made.path, version, domain=4)
    with other.connected() as file:
        file.execute("UPDATE NVTX_EVENTS SET text = 'torch' WHERE eventType = 75 AND domainId = 4")
    other.range("step", 1_001, 1_200, 99)
    # The same correlation numbers in another process, whose kernels run outside of any request.
    stranger = Export(made.path, version, thread=(8 << 24) | 42)
    with stranger.connected() as file:
        file.execute("DELETE FROM NVTX_EVENTS WHERE globalTid = ?", (stranger.thread,))
    call = stranger.launch(1_100)
    stranger.kernel("stranger", 900_000, 900_100, call)
    found = device(read(made))
    assert found.pop(Place(None, None, "outside requests")) == 100
    assert found == expected


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("StringIds", None),
        ("NVTX_EVENTS", "no NVTX range"),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "no table of CUDA calls"),
        ("CUPTI_ACTIVITY_KIND_KERNEL", None),
        ("CUPTI_ACTIVITY_KIND_MEMCPY", None),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_that_is_missing_is_missed_and_said(
    tmp_path: Path, version: str, table: str, words: str | None
) -> None:
    made = requests(Export(tmp_path / "made.sqlite", version), count=1)
    with made.connected() as file:
        file.execute(f"DROP TABLE {table}")
    found = read(made)
    assert adds_up(found)
    notes = " ".join(found.document["notes"])
    if words is not None:
        assert words in notes
        assert device(found).keys() == {Place(None, None, "outside requests")}
    if table == "CUPTI_ACTIVITY_KIND_KERNEL":
        assert device(found) == {}
        assert found.document["requests"] == 1


COLUMNS = {
    "NVTX_EVENTS": ("globalTid", "domainId", "eventType", "int64Value", "text", "textId"),
    "CUPTI_ACTIVITY_KIND_RUNTIME": ("globalTid", "nameId"),
    "CUPTI_ACTIVITY_KIND_KERNEL": ("deviceId", "globalPid", "demangledName", "shortName"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_column_that_has_moved_is_done_without(tmp_path: Path, version: str) -> None:
    whole = requests(Export(tmp_path / "made.sqlite", version), count=1)
    data = whole.path.read_bytes()
    told = "text" if version == OLD else "textId"
    for table, columns in COLUMNS.items():
        for column in columns:
            whole.path.write_bytes(data)
            with whole.connected() as file:
                file.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
            found = read(whole)
            assert adds_up(found)
            attributed = column != told
            assert (device(found) == whole.busy) is attributed, column


def test_the_number_of_a_range_is_its_payload_or_its_turn(tmp_path: Path) -> None:
    made = Export(tmp_path / "made.sqlite")
    made.range("request", 0, 1_000)
    made.range("stage", 10, 500, 3)
    made.range("step", 20, 100, 17)
    made.range("step", 110, 200, 0)
    rows = read(made).document["rows"]
    assert [(row["stage"], row["step"]) for row in rows] == [
        *((3, 2), (3, 17), (3, None), (None, None)),
    ]


# --- bad input --------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """What is said of a file: one printable line, and how to make a right one."""
    with pytest.raises(ExportInvalid) as told:
        read(path)
    said = str(told.value)
    assert said.isprintable()
    assert len(said) < 1_000
    assert told.value.exit_code == 2
    return said


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export. Read only."""
    path = tmp_path_factory.mktemp("honest") / "made.sqlite"
    return requests(Export(path), count=1).path


def test_what_is_no_file_or_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite"
    assert "cannot be read" in refused(path)
    path.write_bytes(b"")
    assert "no SQLite database" in refused(path)
    path.write_bytes(b"nsys-rep" * 100)
    assert "nsys export --type=sqlite" in refused(path)
    assert "is no file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(tmp_path / "pipe")
    assert "cannot be read" in refused(Path("a\0b"))


def test_a_database_of_another_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE bookmarks (url TEXT)")
        file.commit()
    assert "without a table of Nsight Systems" in refused(path)
    # A view runs what the file says; only a table is one.
    with closing(sqlite3.connect(path)) as file:
        file.execute(
            "CREATE VIEW NVTX_EVENTS AS WITH RECURSIVE n(start) AS (SELECT 1 UNION ALL SELECT start"
            " FROM n) SELECT start, start AS end, 'request' AS text FROM n"
        )
        file.commit()
    assert "without a table of Nsight Systems" in refused(path)


def test_an_export_without_anything_in_it_is_refused(tmp_path: Path) -> None:
    assert "neither NVTX ranges" in refused(Export(tmp_path / "made.sqlite").path)


def test_a_truncated_export_is_refused_wherever_it_ends(tmp_path: Path, honest: Path) -> None:
    path, whole = tmp_path / "made.sqlite", honest.read_bytes()
    for kept in (16, 50, 4_096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert "truncated" in refused(path)


Sixteen = st.binary(min_size=16, max_size=16)


def is_read_or_refused(path: Path) -> bool:
    try:
        return adds_up(read(path))
    except ExportInvalid as error:
        return str(error).isprintable()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), Sixteen), min_size=1, max_size=4))
def test_a_damaged_export_is_read_or_refused(
    tmp_path: Path, honest: Path, changes: list[tuple[int, bytes]]
) -> None:
    path = tmp_path / "made.sqlite"
    damaged = bytearray(honest.read_bytes())
    for at, data in changes:
        at %= len(damaged) - len(data)
        damaged[at : at + len(data)] = data
    path.write_bytes(damaged)
    assert is_read_or_refused(path)
    assert {each.name for each in tmp_path.iterdir()} == {"made.sqlite"}


def test_an_export_that_is_being_written_is_refused(
    tmp_path: Path, honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PATIENCE", 0.01)
    path = tmp_path / "made.sqlite"
    path.write_bytes(honest.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert "is locked" in refused(path)
    assert adds_up(read(path))


def changed(tmp_path: Path, honest: Path, *statements: str) -> Path:
    path = tmp_path / "made.sqlite"
    path.write_bytes(honest.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)
    return path


HOSTILE = {
    "no numbers": "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = 'soon', correlationId = x'00'",
    "before they began": "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start - 5",
    "never ended": "UPDATE NVTX_EVENTS SET end = NULL",
    "the widest numbers": "UPDATE NVTX_EVENTS SET start = -9223372036854775808,"
    " end = 9223372036854775807",
    "no names": "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET demangledName = 10000000",
    "names that turn the terminal": "UPDATE StringIds SET value = char(27) || '[2J' || value"
    " || char(8238) WHERE value LIKE 'void%'",
    "names that are bytes": "UPDATE StringIds SET value = x'ff00fe' WHERE value LIKE 'void%'",
    "payloads that are no numbers": "UPDATE NVTX_EVENTS SET int64Value = 'first'",
    "threads that are no numbers": "UPDATE NVTX_EVENTS SET globalTid = 'main'",
}


@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_column_holds_is_counted_or_left_out(
    tmp_path: Path, honest: Path, statement: str
) -> None:
    assert adds_up(read(changed(tmp_path, honest, statement)))


def test_a_text_of_a_gigabyte_is_not_read(
    tmp_path: Path, honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "LONGEST_VALUE", 20_000)
    long = "UPDATE StringIds SET value = printf('%.*c', 100000, 'x') WHERE value LIKE 'void%'"
    assert "string or blob too big" in refused(changed(tmp_path, honest, long))


def test_ranges_without_end_in_one_another_and_places_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Export(tmp_path / "made.sqlite")
    for depth in range(8):
        made.range("step", depth, 1_000 - depth, depth)
        made.launch(depth)
    monkeypatch.setattr(launches, "MOST_PLACES", 4)
    assert "more than 4 stages and steps" in refused(made.path)
    monkeypatch.setattr(ranges, "DEEPEST", 5)
    assert "5 deep" in refused(made.path)


@pytest.mark.parametrize(
    ("name", "kind", "fix"),
    [
        ("SQLITE_FULL", DiskFull, "TMPDIR"),
        ("SQLITE_IOERR_RDLOCK", ExportInvalid, "copy the file to a disk"),
        ("SQLITE_LOCKED", ExportInvalid, "wait until it is"),
    ],
)
def test_what_the_system_refuses_has_a_fix_of_its_own(
    honest: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception], fix: str
) -> None:
    def refuse(*given: Any) -> None:
        error = sqlite3.OperationalError("refused")
        error.sqlite_errorname = name
        raise error

    monkeypatch.setattr(exporting, "_tables_of", refuse)
    with pytest.raises(kind, match=fix):
        read(honest)


def test_an_interrupt_while_it_sorts_is_one(
    tmp_path: Path, honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(tmp_path, honest)

    def interrupted(connection: sqlite3.Connection) -> Any:
        connection.set_progress_handler(lambda: 1, 1)
        return connection.execute("SELECT count(*) FROM StringIds").fetchall()

    monkeypatch.setattr(exporting, "_tables_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(path)


def many(made: Export, kernels: int) -> None:
    """So many kernels in one range, with as many calls."""
    made.range("request", 0, 10 * kernels)
    made.range("decode", 1, 10 * kernels - 1)
    name = made.string("void many<float>()")
    with made.connected() as file:
        file.execute("BEGIN")
        file.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME (start, end, eventClass, globalTid,"
            " correlationId, nameId, returnValue) VALUES (?, ?, 0, ?, ?, 0, 0)",
            ((10 * each + 2, 10 * each + 3, THREAD, each) for each in range(kernels)),
        )
        file.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL (start, end, deviceId, contextId, streamId,"
            " correlationId, globalPid, demangledName, shortName)"
            " VALUES (?, ?, 0, 0, 0, ?, ?, ?, ?)",
            (
                (10 * each + 5, 10 * each + 9, each, THREAD >> 24 << 24, name, name)
                for each in range(kernels)
            ),
        )
        file.execute("COMMIT")


def peak(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_export(tmp_path: Path) -> None:
    small, large = Export(tmp_path / "small.sqlite"), Export(tmp_path / "large.sqlite")
    many(small, 2_000)
    many(large, 8_000)
    read(small)
    growth = peak(lambda: read(large)) - peak(lambda: read(small))
    assert growth < 300_000
    assert read(large).document["device"]["rows"][0]["calls"] == 8_000
