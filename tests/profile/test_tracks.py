"""Laws of what is drawn of spans: a trace that Perfetto takes, shares that add up, a whole PNG."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fresco_trt.profile.files import DOCUMENT, TIMELINE, TRACE, Profile, shares_by_part, store
from fresco_trt.profile.spans import Place, Recorder
from fresco_trt.profile.summary import host_summary
from fresco_trt.profile.tracks import Bar, Track, chrome_trace, median_request, track_of
from fresco_trt.run.trace import recording, span


def recorded(requests: int = 3) -> Recorder:
    """Requests, each longer than the one before."""
    readings, length = count(1_000_000_007, 1), [0]

    def clock() -> int:
        length[0] += 17 * next(readings) % 1_000
        return length[0]

    sink = Recorder(clock=clock)
    for _ in range(requests):
        with recording(sink), span("request"):
            with span("text"):
                pass
            for stage in (1, 2):
                with span("stage", stage):
                    for step in (2 * stage - 1, 2 * stage):
                        with span("step", step), span("full" if step % 2 else "bypass"):
                            pass
                    with span("transition", stage):
                        pass
            with span("decode"):
                pass
    return sink


def document(sink: Recorder) -> dict[str, Any]:
    return {"source": "spans", "model": "flux-tiny", "backend": "eager"} | host_summary(sink.spans)


def is_taken_by_perfetto(trace: dict[str, Any]) -> bool:
    """The rules of Chrome's JSON object format, as Perfetto reads it: complete events of numbers,
    and those of a thread apart or one in the other.
    """
    stacks: dict[tuple[int, int], list[float]] = defaultdict(list)
    named = set()
    for event in trace["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert all(type(event[key]) is int for key in ("pid", "tid"))
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            named.add(event["tid"])
            continue
        assert event["ph"] == "X"
        begin, duration = event["ts"], event["dur"]
        assert math.isfinite(begin)
        assert begin >= 0
        assert duration >= 0
        assert isinstance(event["args"], dict)
        assert event["tid"] in named
        stack = stacks[event["pid"], event["tid"]]
        while stack and stack[-1] <= begin:
            stack.pop()
        end = round(begin + duration, 6)
        assert not stack or end <= stack[-1], event
        stack.append(end)
    return trace["displayTimeUnit"] in ("ms", "ns")


def test_a_trace_is_one_that_perfetto_takes() -> None:
    sink = recorded()
    device = Track(
        name="GPU",
        bars=[Bar(name="full", place=Place(1, 1, "full"), begin=n, end=n + 5) for n in (0, 5, 12)],
    )
    made = chrome_trace([track_of(median_request(sink.spans)), device], {"model": "flux-tiny"})
    made = json.loads(json.dumps(made, allow_nan=False))
    assert is_taken_by_perfetto(made)
    full = [event for event in made["traceEvents"] if event.get("cat") == "full"]
    assert full[0]["args"] == {"stage": 1, "step": 1}
    assert {event["name"] for event in made["traceEvents"]} >= {"stage 2", "step 4", "request"}


def test_the_check_sees_what_perfetto_would_not_take() -> None:
    bars = [Bar(name="full", place=Place(1, 1, "full"), begin=n, end=n + 5) for n in (0, 3)]
    with pytest.raises(AssertionError):
        is_taken_by_perfetto(chrome_trace([Track(name="GPU", bars=bars)], {}))


def test_the_request_in_the_middle_is_drawn() -> None:
    sink = recorded()
    lengths = sorted(each.duration for each in sink.spans if each.name == "request")
    drawn = track_of(median_request(sink.spans)).bars
    assert drawn[0].end - drawn[0].begin == lengths[1]
    assert len(drawn) == len(sink.spans) / 3
    assert median_request([]) == []


def test_a_document_adds_up() -> None:
    found = document(recorded())
    seconds = found["seconds"]
    parts = ("engines", "text", "transition", "decode", "host")
    assert sum(seconds[name] for name in parts) == pytest.approx(seconds["total"])
    assert sum(row["seconds"] for row in found["rows"]) == pytest.approx(seconds["total"])
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1)
    assert found["outside_engines"] == pytest.approx(1 - seconds["engines"] / seconds["total"])
    assert all(row["calls"] == 1 for row in found["rows"] if row["part"] != "host")
    length = found["request_seconds"]
    assert length["low"] <= length["median"] <= length["high"]
    assert sum(shares_by_part(found["rows"]).values()) == 1000


def test_nothing_recorded_is_nothing_spent() -> None:
    found = host_summary([])
    assert found["rows"] == []
    assert (found["requests"], found["request_seconds"], found["outside_engines"]) == (0, None, 0)


def test_three_files_are_left_and_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sink = recorded()
    made = Profile(document=document(sink), tracks=[track_of(median_request(sink.spans))])
    stored = store(made, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {DOCUMENT, TRACE, TIMELINE}
    assert json.loads((tmp_path / "out" / DOCUMENT).read_text()) == stored
    assert is_taken_by_perfetto(json.loads((tmp_path / "out" / TRACE).read_text()))
    assert all(Path(path).is_file() for path in stored["files"].values())
    assert stored["left_out"] == []
    with Image.open(tmp_path / "out" / TIMELINE) as drawn:
        drawn.load()
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(2**24) or ()}
    # Engines, text, transition and decoder each have their own.
    assert {(0, 114, 178), (230, 159, 0), (213, 94, 0), (204, 121, 167)} <= colours


def test_without_matplotlib_the_timeline_is_left_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fresco_trt.profile.files.find_spec", lambda name: None)
    sink = recorded(1)
    made = Profile(document=document(sink), tracks=[track_of(median_request(sink.spans))])
    stored = store(made, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {DOCUMENT, TRACE}
    assert "fresco-trt[bench]" in stored["left_out"][0]["reason"]
