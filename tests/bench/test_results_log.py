"""A killed run goes on where it was, and never mixes two requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fresco_trt.bench.results_log import PACKAGE, ResultsLog, sources_digest
from fresco_trt.errors import OutputNotWritable

HEADER = {"command": "fresco-trt bench", "commit": "abc"}


def started(path: Path) -> ResultsLog:
    log = ResultsLog(path, HEADER)
    log.add_scene(0, {"scores": {"plain": {"seconds": 1.0}}})
    log.add_note("peak", 12.5)
    log.add_scene(1, {"scores": {}})
    return log


def test_the_same_request_goes_on(tmp_path: Path) -> None:
    first = started(tmp_path / "run.jsonl")
    again = ResultsLog(first.path, HEADER)
    assert (again.scenes, again.notes) == (first.scenes, first.notes)
    assert "2 scenes" in again.said
    again.add_scene(2, {})
    assert sorted(ResultsLog(first.path, HEADER).scenes) == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_costs_one_scene(tmp_path: Path, cut: int) -> None:
    path = started(tmp_path / "run.jsonl").path
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = ResultsLog(path, HEADER)
    assert sorted(again.scenes) == ([0, 1] if cut == 1 else [0])  # the line end alone costs none
    again.add_scene(2, {"scores": {}})
    assert sorted(ResultsLog(path, HEADER).scenes) == [*again.scenes]


@pytest.mark.parametrize("key", ["command", "commit"])
def test_another_request_starts_anew_and_says_why(tmp_path: Path, key: str) -> None:
    path = started(tmp_path / "run.jsonl").path
    other = ResultsLog(path, {**HEADER, key: "other"})
    assert not other.scenes
    assert not other.notes
    assert f"anew: {key} differ" in other.said
    assert not ResultsLog(path, {**HEADER, key: "other"}).scenes


def test_a_completed_run_is_measured_anew(tmp_path: Path) -> None:
    log = started(tmp_path / "run.jsonl")
    log.complete()
    assert "completed" in ResultsLog(log.path, HEADER).said
    assert not ResultsLog(log.path, HEADER).scenes


def test_what_is_no_log_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("[]\nnot json\n")
    assert not ResultsLog(path, HEADER).scenes
    started(path)
    assert sorted(ResultsLog(path, HEADER).scenes) == [0, 1]


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable):
        ResultsLog(tmp_path / "file" / "run.jsonl", HEADER)


def test_the_digest_is_that_of_the_code() -> None:
    assert sources_digest(PACKAGE) == sources_digest(PACKAGE) != sources_digest(PACKAGE / "bench")
    assert len(sources_digest(PACKAGE)) == 64
