"""What spans cost, as arithmetic: shares of a request, and ratios of neighbours in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.tracing import rows_of, span_seconds, take_turns


def test_the_share_of_nobody_profiling_is_that_of_its_spans() -> None:
    taken = {"nobody": [1.0, 3.0, 3.0], "recorder": [1.1, 3.3, 3.3]}
    nobody, recorder = rows_of(taken, spans=30, seconds=1e-6)
    assert nobody["share"] == pytest.approx(1e-5)
    assert nobody["within_limit"]
    # The machine slows down threefold after the first round; each pair still says the same.
    assert recorder["ratio"] == {"median": 1.1, "low": 1.1, "high": 1.1}
    assert not rows_of({"nobody": [1e-3]}, spans=30, seconds=1e-6)[0]["within_limit"]


def test_requests_take_turns_and_who_begins_moves_on() -> None:
    told: list[str] = []

    def scope(name: str) -> Iterator[None]:
        told.append(name)
        yield

    scopes = {name: lambda name=name: contextmanager(scope)(name) for name in ("a", "b", "c")}
    taken = take_turns(lambda: None, scopes, 3)
    assert "".join(told) == "abcbcacab"
    assert {name: len(each) for name, each in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_span_that_nobody_records_takes_some_time() -> None:
    assert span_seconds(10) > 0
