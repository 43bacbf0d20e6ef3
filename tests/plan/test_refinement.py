"""Laws of refinements: what one is, which grid its stage is on, and how far it may look back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.refinement import (
    DEFAULT_WINDOW,
    SELECTIONS,
    VARIANCE_RULES,
    Selection,
    TokenRefinement,
    check_window,
    grid_levels,
)

LAW = settings(deadline=None, max_examples=100, database=None)


@pytest.mark.parametrize("rule", SELECTIONS)
def test_json_gives_exactly_the_refinement_back(rule: Selection) -> None:
    refinement = TokenRefinement(rule=rule, count=7)
    assert refinement.to_json() == {"rule": rule, "count": 7}
    tube = TokenRefinement(rule=rule, count=7, tube=True)
    assert tube.to_json() == {"rule": rule, "count": 7, "tube": True}
    for each in (refinement, tube):
        assert TokenRefinement.from_json(each.to_json()) == each


@pytest.mark.parametrize(
    "stored",
    [
        {"rule": "edge"},
        {"rule": "edge", "count": 7, "share": 0.5},
        {"rule": "all", "count": 7},
        {"rule": "edge", "count": 0},
        {"rule": "edge", "count": 7.0},
        {"rule": "edge", "count": True},
        {"rule": "edge", "count": 7, "tube": 1},
        {"rule": "edited", "count": 7, "tube": True},
        ["edge", 7],
    ],
)
def test_anything_else_is_no_refinement(stored: object) -> None:
    with pytest.raises(InvalidPlan):
        TokenRefinement.from_json(stored)


@pytest.mark.parametrize("rule", SELECTIONS)
def test_a_variance_needs_two_steps_and_the_rest_one(rule: Selection) -> None:
    least = 2 if "converged" in rule or "changing" in rule else 1
    assert (rule in VARIANCE_RULES) == (least == 2)
    check_window(least, [rule])
    with pytest.raises(InvalidPlan, match=f"expected {least} or more"):
        check_window(least - 1, [rule])


def test_a_window_that_nothing_reads_says_nothing() -> None:
    check_window(DEFAULT_WINDOW, [])
    with pytest.raises(InvalidPlan, match=f"expected {DEFAULT_WINDOW}"):
        check_window(DEFAULT_WINDOW + 1, [])


@LAW
@given(st.lists(st.booleans(), max_size=8))
def test_a_grid_doubles_once_for_each_run_of_partial_switches(partial: list[bool]) -> None:
    levels = grid_levels(partial)
    assert len(levels) == len(partial) + 1
    assert levels[0] == 0
    for index, (before, after) in enumerate(pairwise(levels)):
        leaves_a_mixed_stage = index > 0 and partial[index - 1]
        assert after - before == (0 if leaves_a_mixed_stage else 1)
