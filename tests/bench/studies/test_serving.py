"""What serving costs, as arithmetic over requests that were measured."""

from __future__ import annotations

import pytest

from bench.lean import needed
from bench.serving import by_place, overhead_of


def test_overhead_is_what_a_request_takes_beside_its_drawing() -> None:
    """However long each picture took: in the second pair the machine was three times slower."""
    found = overhead_of([(2.01, 2.0), (6.01, 6.0)], [(1.03, 1.0), (3.03, 3.0)])
    assert found["overhead_seconds"]["median"] == pytest.approx(0.02)
    assert (found["overhead"]["low"], found["overhead"]["high"]) == pytest.approx(
        (0.02 / 3, 0.02), abs=1e-4
    )
    assert found["drawing_ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_a_line_of_requests_is_fair_and_one_that_was_overtaken_is_not() -> None:
    fair = [(2.0 * place, place) for place in (3, 1, 2, 4)]
    assert by_place(fair)["p99_ratio"] == 1.0
    assert by_place(fair)["places"] == {1: 1, 2: 1, 3: 1, 4: 1}
    overtaken = [(8.0, 1), (2.0, 2), (4.0, 3), (6.0, 4)]
    assert by_place(overtaken)["p99_ratio"] > 1.5


def test_a_server_is_deployed_without_what_developers_have() -> None:
    found = needed("serve")
    assert found.keys() >= {"torch", "transformers", "fastapi", "prometheus-client", "starlette"}
    assert not found.keys() & {"pytest", "scipy", "mypy", "nvidia-modelopt", "openai"}
