"""Cached plans: which steps are skipped, what is refused, and the way to JSON and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import (
    CachePlan,
    cache_names,
    cache_traits,
    interval_actions,
    spelling_of,
    spelt_actions,
)
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import flops_of_bypass, flops_of_step, plan_cost
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan

FLUX, TINY = model_facts("flux"), model_facts("flux-tiny")


def planned(stages: int = 1, **choice: object) -> StagePlan:
    chosen = CacheConfig(**{"name": "hicache", **choice})  # type: ignore[arg-type]
    return make_plan(TINY, stages=stages, cache=chosen)


# --- which steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "full"), [(3, 18), (4, 14), (5, 12), (6, 10), (7, 9), (8, 8), (9, 8)]
)
def test_fifty_steps_have_the_published_number_of_full_ones(interval: int, full: int) -> None:
    # TaylorSeer's, HiCache's and SVD-Cache's FLOPs columns follow from these counts.
    assert interval_actions(50, interval, 3).count("full") == full


def test_video_starts_after_one_step() -> None:
    assert [interval_actions(50, n, 1).count("full") for n in (5, 6)] == [10, 9]


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_an_interval_of_one_skips_nothing(steps: int) -> None:
    assert interval_actions(steps, 1, 1) == ("full",) * steps


def test_full_steps_are_as_far_apart_as_the_interval_says() -> None:
    actions = interval_actions(20, 4, 2)
    assert spelling_of(actions) == "FFBBBFBBBFBBBFBBBFBB"


@pytest.mark.parametrize(("interval", "warmup"), [(0, 1), (1, 0), (-3, 2)])
def test_rules_below_one_are_refused(interval: int, warmup: int) -> None:
    with pytest.raises(PlanError, match="1 or more"):
        interval_actions(9, interval, warmup)


def test_every_stage_starts_in_full() -> None:
    plan = planned(3, interval=2, warmup_steps=1)
    assert all(stage.actions[0] == "full" for stage in plan.stages)
    assert plan.full_steps < plan.nfe == make_plan(TINY, stages=3).nfe


def test_spelt_actions_are_taken_as_they_are() -> None:
    words = tuple("F" + "B" * (stage.steps - 1) for stage in make_plan(TINY, stages=3).stages)
    plan = planned(3, actions=words)
    assert tuple(spelling_of(stage.actions) for stage in plan.stages) == words
    assert spelt_actions("FBF") == ("full", "bypass", "full")


def test_graphs_are_those_that_are_called() -> None:
    words = ["F" * stage.steps for stage in make_plan(TINY, stages=3).stages]
    words[1] = "F" + "B" * (len(words[1]) - 1)
    plan = planned(3, actions=tuple(words))
    assert plan.graphs == ((0, "full"), (1, "full"), (1, "bypass"), (2, "full"))


@pytest.mark.parametrize("name", cache_names())
def test_the_order_of_extrapolation_is_the_chosen_one(name: str) -> None:
    traits = cache_traits(name)
    for order in traits.orders:
        plan = planned(3, name=name, interval=2, warmup_steps=1, max_order=order)
        assert plan.cache == replace(traits.settings(), max_order=order)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "none", "interval": 3}, "none,interval=3, which asks"),
        ({"name": "none", "actions": ("FB",)}, "none,actions=FB, which asks"),
        ({"actions": ("FB",), "warmup_steps": 2}, "leave one of the two out"),
        ({"actions": ("BFFFFF",)}, "FFFFFF for that stage"),
        ({"actions": ("FB",)}, "1 words of 6 letters"),
        ({"actions": ("FBFBFB", "FB")}, "1 words of 6 letters"),
        ({"name": "none", "site": "trunk"}, "none,site=trunk, which asks"),
        ({"name": "svd", "site": "trunk"}, "site=trunk in --cache svd; expected final"),
        ({"name": "none", "max_order": 1}, "none,max_order=1, which asks"),
        ({"name": "reuse", "max_order": 1}, "max_order=1 in --cache reuse; expected 0"),
        (
            {"name": "coarse_velocity", "max_order": 2},
            "max_order=2 in --cache coarse_velocity; expected 0",
        ),
        ({"name": "taylor", "max_order": 4}, "max_order=4 in --cache taylor; expected 1 or 2 or 3"),
        ({"name": "svd", "max_order": 0}, "max_order=0 in --cache svd"),
        ({"basis": Path("b")}, "basis=b in --cache reuse; expected no basis: only svd reads one"),
        ({"site": "head"}, "site=head in --cache reuse; .* nothing has that name"),
        ({"interval": 1}, "skips none of the steps FFFFFF"),
        ({"warmup_steps": 40}, "skips none"),
    ],
)
def test_options_that_do_not_fit_are_refused(choice: dict[str, object], message: str) -> None:
    plain = make_plan(TINY, stages=1, steps=6)
    assert plain.nfe == 6
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(TINY, stages=1, steps=6, cache=CacheConfig(**{"name": "reuse", **choice}))  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "near"), [("hicach", "hicache"), ("dbcache", "hicache")])
def test_an_unknown_cache_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(PlanError, match=f"did you mean {near}|one of none, reuse"):
        planned(name=name)


def test_letters_that_are_none_are_refused() -> None:
    with pytest.raises(PlanError, match="F \\(full\\) and B"):
        planned(actions=("FXB",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "fora"},
        {"max_order": 4},
        {"max_order": -1},
        {"site": "head"},
        {"name": "svd", "site": "trunk"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan):
        CachePlan(**{"name": "hicache", "max_order": 2, **wrong})  # type: ignore[arg-type]


def test_a_plan_skips_steps_if_and_only_if_it_has_a_cache() -> None:
    plan = planned(3, interval=2, warmup_steps=1)
    with pytest.raises(InvalidPlan, match="without a cache"):
        replace(plan, cache=None)
    with pytest.raises(InvalidPlan, match="a bypass step"):
        replace(make_plan(TINY, stages=3), cache=plan.cache)


# --- what follows -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", cache_names())
def test_plans_with_every_cache_survive_json(name: str) -> None:
    plan = planned(3, name=name, interval=2, warmup_steps=1)
    assert plan.cache == cache_traits(name).settings()
    assert StagePlan.from_json(plan.to_json()) == plan
    assert plan.digest() != make_plan(TINY, stages=3).digest()


@pytest.mark.parametrize("name", cache_names())
def test_settings_survive_json(name: str) -> None:
    for order in cache_traits(name).orders:
        settings = replace(cache_traits(name).settings(), max_order=order)
        assert settings.to_json().keys() == {"name", "max_order", "site"}
        assert CachePlan.from_json(settings.to_json()) == settings


def test_a_predictor_that_needs_a_whole_grid_skips_no_step_of_a_mixed_one() -> None:
    preset = Preset(steps=(4, 4, 4), switch=(0.9, 0.6), refine=((("even", 0.25),), ()))
    asked = CacheConfig(name="freqca", interval=2, warmup_steps=1)
    plan = plan_from_preset(TINY, replace(preset, cache=asked))
    assert plan.refined[1]
    assert ["bypass" in stage.actions for stage in plan.stages] == [True, False, True]
    spelt = CacheConfig(name="freqca", actions=("FBFF", "FBFF", "FBFF"))
    with pytest.raises(IncompatibleOptions, match="B in stage 1 and 3 only"):
        plan_from_preset(TINY, replace(preset, cache=spelt))


def test_skipped_steps_cost_next_to_nothing() -> None:
    plan = make_plan(FLUX, stages=1, steps=50, cache=CacheConfig(name="hicache"))
    assert plan.full_steps == 9
    full = flops_of_step(FLUX, plan.tokens[0])
    assert flops_of_bypass(FLUX, plan.tokens[0]) < 0.001 * full
    assert plan_cost(FLUX, plan).ratio == pytest.approx(50 / 9, rel=0.01)
