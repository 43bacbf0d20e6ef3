"""The search of steps to skip: what may compete, and what it competes with."""

from __future__ import annotations

from typing import Any

import pytest

from bench.search import cache_schedule as schedules
from bench.search import command
from bench.search.command import contests
from bench.search.halving import SLACK
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset

TINY = model_facts("flux-tiny")


@pytest.mark.parametrize("budget", schedules.BUDGETS)
def test_candidates_skip_steps_and_keep_to_their_budget(budget: str) -> None:
    pool = schedules.candidates(TINY, budget, 24)
    assert len({each.preset for each in pool}) == len({each.name for each in pool}) == 24
    for each in pool:
        plan = plan_from_preset(TINY, each.preset)
        assert len(plan.stages) == 1
        assert 0 < plan.full_steps < plan.nfe
        least = schedules.BUDGETS[budget]
        assert least <= plan_cost(TINY, plan).ratio <= SLACK * least


def test_the_same_seed_gives_the_same_candidates() -> None:
    assert schedules.candidates(TINY, "8x", 5) == schedules.candidates(TINY, "8x", 5)
    assert schedules.candidates(TINY, "8x", 5) != schedules.candidates(TINY, "8x", 5, seed=1)


@pytest.mark.parametrize("budget", schedules.BUDGETS)
def test_controls_are_full_steps_that_keep_to_the_budget_and_one_more(budget: str) -> None:
    controls = schedules.controls(TINY, budget)
    assert len({each.name for each in controls}) == len(controls) == schedules.CONTROL_ROUNDS[0][0]
    plans = [plan_from_preset(TINY, each.preset) for each in controls]
    assert all(plan.full_steps == plan.nfe for plan in plans)
    fewer, more = sorted({plan.nfe for plan in plans})
    assert (fewer, TINY.default_steps / fewer >= schedules.BUDGETS[budget]) == (more - 1, True)
    assert TINY.default_steps / more < schedules.BUDGETS[budget]


def test_those_left_are_stored_beside_the_controls() -> None:
    contest = contests(TINY, 1, 3)["12x"]
    order = [each.name for each in (*contest.pool, *contest.controls)]

    def gallery(wanted: Any, number: int) -> dict[str, dict[str, Any]]:
        return {
            each.name: {"right": True, "ssim": 1 / (2 + order.index(each.name))} for each in wanted
        }

    result = command._result(TINY, contest, gallery)  # type: ignore[arg-type]
    assert [each["ssim"] for each in result["finalists"]] == pytest.approx([1 / 2, 1 / 3, 1 / 4])
    assert [each["ssim"] for each in result["controls"]] == pytest.approx([1 / 5, 1 / 6])
    assert all(each["scenes"] == 32 for each in (*result["finalists"], *result["controls"]))
    assert all(each["flops_ratio"] >= 12.0 for each in result["finalists"])


def test_stages_compete_with_nobody() -> None:
    for stages in (2, 3):
        for contest in contests(TINY, stages, 3).values():
            assert contest.controls == ()
            assert len(contest.pool) == 3
