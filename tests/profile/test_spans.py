"""Laws of recorded spans: they nest, their own times add up, and shares add up to 100%."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.profile.spans import (
    HOST,
    Part,
    Place,
    Recorder,
    Span,
    in_order,
    parts_of,
    place_of,
    tenths,
)
from fresco_trt.run.trace import NAMES, recording, span


def clock(*lengths: int) -> Iterator[int]:
    """Readings that lie so far apart, and 1 from then on."""
    yield from accumulate(lengths)
    yield from range(sum(lengths) + 1, 10**6)


def recorder(*lengths: int) -> Recorder:
    readings = clock(*lengths)
    return Recorder(clock=lambda: next(readings))


def drawn(sink: Recorder, stages: int = 2, steps: int = 2) -> None:
    """The spans of a request, as the pipeline and the sampler open them."""
    with recording(sink), span("request"):
        with span("text"):
            pass
        for stage in range(1, stages + 1):
            with span("stage", stage):
                for step in range(1, steps + 1):
                    with span("step", (stage - 1) * steps + step), span("full"):
                        pass
                if stage < stages:
                    with span("transition", stage):
                        pass
        with span("decode"):
            pass


def inside(inner: Span, outer: Span) -> bool:
    assert inner.end is not None
    assert outer.end is not None
    return outer.begin <= inner.begin <= inner.end <= outer.end


def test_nobody_is_told_outside_of_a_recording() -> None:
    sink = recorder()
    with span("request"):
        pass
    assert span("request") is span("step", 3)
    with recording(sink), span("request"), recording(other := recorder()), span("text"):
        pass
    with span("request"):
        pass
    assert [each.name for each in sink.spans] == ["request"]
    assert [each.name for each in other.spans] == ["text"]


def test_an_error_ends_the_spans_it_leaves_and_the_recording() -> None:
    sink = recorder()
    with pytest.raises(ValueError, match="why"), recording(sink), span("request"), span("text"):
        raise ValueError("why")
    assert all(each.end is not None for each in sink.spans)
    with span("decode"):
        pass
    assert len(sink.spans) == 2


def test_every_nanosecond_of_a_request_is_in_one_part() -> None:
    sink = recorder(*(3 * index for index in range(1, 25)))
    drawn(sink)
    request = sink.spans[0]
    parts = parts_of(sink.spans)
    assert sum(part.nanoseconds for part in parts) == request.duration
    assert {part.place.part for part in parts} == {"text", "full", HOST, "transition", "decode"}
    assert [str(part.place) for part in parts] == [
        "text",
        "stage 1, step 1, full",
        "stage 1, step 1, host",
        "stage 1, step 2, full",
        "stage 1, step 2, host",
        "stage 1, transition",
        "stage 1, host",
        "stage 2, step 3, full",
        "stage 2, step 3, host",
        "stage 2, step 4, full",
        "stage 2, step 4, host",
        "stage 2, host",
        "decode",
        "host",
    ]


Trees = st.recursive(st.just(()), lambda inner: st.lists(inner, max_size=4).map(tuple))


@given(
    tree=Trees,
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=7),
    lengths=st.lists(st.integers(0, 1000), max_size=40),
)
def test_any_spans_nest_and_add_up(
    tree: tuple[object, ...], names: list[str], lengths: list[int]
) -> None:
    sink = recorder(*lengths)

    def walk(node: tuple[object, ...], depth: int) -> None:
        with span(names[depth % len(names)], depth + 1):
            for child in node:
                assert isinstance(child, tuple)
                walk(child, depth + 1)

    with recording(sink):
        walk(tree, 0)
        walk((), 0)
    for each in sink.spans:
        assert each.parent is None or inside(each, each.parent)
    roots = [each for each in sink.spans if each.parent is None]
    parts = parts_of(sink.spans)
    assert sum(part.nanoseconds for part in parts) == sum(root.duration for root in roots)
    assert all(part.nanoseconds >= 0 for part in parts)
    assert sum(part.calls for part in parts) == len(sink.spans)
    assert Counter(part.place for part in parts).most_common(1)[0][1] == 1
    assert [part.place for part in parts] == in_order(part.place for part in reversed(parts))


def test_spans_that_end_out_of_turn_are_ended_with_what_held_them() -> None:
    # Two samplers that one thread takes turns with.
    sink = recorder()
    first = sink.begin("stage", 1)
    second = sink.begin("stage", 1)
    sink.end(first)
    assert second.end == first.end
    sink.end(second)
    third = sink.begin("stage", 2)
    assert third.parent is None
    sink.end(third)
    assert sum(part.nanoseconds for part in parts_of(sink.spans)) > 0


def test_threads_have_spans_of_their_own() -> None:
    sink = recorder()
    held = sink.begin("request", None)
    thread = threading.Thread(target=lambda: sink.end(sink.begin("request", None)))
    thread.start()
    thread.join()
    sink.end(held)
    first, second = sink.spans
    assert first.parent is second.parent is None
    assert first.thread != second.thread


def test_a_span_that_ends_on_another_thread_is_ended_on_its_own() -> None:
    # A generator of steps may be taken up by whichever thread is free.
    sink = recorder()
    begun = sink.begin("request", None)
    thread = threading.Thread(target=sink.end, args=(begun,))
    thread.start()
    thread.join()
    assert begun.end is not None
    later = sink.begin("request", None)
    sink.end(later)
    assert later.parent is None


def test_a_request_within_another_has_no_place_of_it() -> None:
    sink = recorder()
    with recording(sink), span("request"), span("stage", 1), span("request"), span("decode"):
        pass
    assert [place_of(each) for each in sink.spans] == [
        Place(None, None, HOST),
        Place(1, None, HOST),
        Place(None, None, HOST),
        Place(None, None, "decode"),
    ]


def test_the_device_is_waited_for_at_both_ends() -> None:
    told: list[str] = []
    sink = Recorder(wait=lambda: told.append("wait"), clock=lambda: told.append("clock") or 0)
    with recording(sink), span("full"):
        told.append("engine")
    assert told == ["wait", "clock", "engine", "wait", "clock"]


def test_an_open_span_has_no_length() -> None:
    sink = recorder()
    sink.begin("request", None)
    with pytest.raises(ValueError, match="open"):
        parts_of(sink.spans)


def test_engines_are_told_from_the_rest() -> None:
    parts = [Part(place=Place(None, None, name), calls=1, nanoseconds=1) for name in NAMES]
    inside = [part.place.part for part in parts if part.place.in_engine]
    assert inside == ["full", "bypass", "replay"]


@given(st.lists(st.integers(0, 10**15), max_size=60))
def test_shares_add_up_to_all_and_none_is_far_off(values: list[int]) -> None:
    shares, whole = tenths(values), sum(values)
    assert len(shares) == len(values)
    assert sum(shares) == (1000 if whole else 0)
    for share, value in zip(shares, values, strict=True):
        assert abs(share * whole - value * 1000) <= whole


def test_the_missing_tenths_go_to_the_largest_remainders() -> None:
    assert tenths([1, 1, 1]) == [334, 333, 333]
    assert tenths([0, 5]) == [0, 1000]
    assert tenths([]) == []
