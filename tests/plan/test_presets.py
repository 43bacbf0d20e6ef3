"""Laws of presets and of the plans made from them, over every model, preset and stage count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import (
    FrescoError,
    IncompatibleOptions,
    InvalidPlan,
    PlanError,
    UnknownPreset,
    UnsupportedSize,
    UnsupportedStages,
)
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset, Share
from fresco_trt.plan.schedule import plain_sigmas, rewind_sigma, stage_sigmas, unshift_sigma
from fresco_trt.plan.stages import POSITIONS, SOLVERS, Positions, Solver, StagePlan

PRESETS = ("quality", "balanced", "fast", "turbo")
POINTS = [
    (name, preset, stages)
    for name in model_names()
    for preset in PRESETS
    for stages in model_facts(name).stage_counts
]

TINY = model_facts("flux-tiny")


@pytest.mark.parametrize(("name", "preset", "stages"), POINTS)
def test_a_plan_is_what_its_preset_says(name: str, preset: str, stages: int) -> None:
    facts = model_facts(name)
    recipe = facts.presets[preset][stages]
    plan = make_plan(facts, stages=stages, preset=preset)
    assert tuple(stage.steps for stage in plan.stages) == recipe.steps
    assert tuple(each.sigma for each in plan.transitions) == recipe.switch
    assert tuple(each.restart for each in plan.transitions) == recipe.restarts
    assert {(each.lift, each.noise) for each in plan.transitions} <= {(recipe.lift, recipe.noise)}
    assert (plan.model, plan.size, plan.preset) == (name, facts.default_size, preset)
    assert all(action == "full" for stage in plan.stages for action in stage.actions)


@pytest.mark.parametrize(("name", "preset", "stages"), POINTS)
def test_scales_double_up_to_the_picture(name: str, preset: str, stages: int) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=stages, preset=preset)
    assert [stage.grid.scale for stage in plan.stages] == [0.25, 0.5, 1.0][-stages:]
    last = plan.stages[-1].grid
    assert (last.width * facts.vae_scale, last.height * facts.vae_scale) == plan.size[:2]
    assert plan.stages[0].sigmas[0] == 1.0


@pytest.mark.parametrize(("name", "preset", "stages"), POINTS)
def test_a_stage_keeps_the_shift_of_the_full_resolution_unless_it_has_its_own(
    name: str, preset: str, stages: int
) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=stages, preset=preset)
    own = facts.presets[preset][stages].shift
    full = facts.shift_factor(plan.stages[-1].grid.tokens)
    # Which of the last stage's sigmas another rule moves, `tests/plan/test_schedule.py` says.
    whole = plan.stages if facts.shift is None or not facts.shift.terminal else plan.stages[:-1]
    for index, stage in enumerate(whole):
        h = full if own is None else own[index]
        gaps = [a - b for a, b in pairwise(unshift_sigma(sigma, h) for sigma in stage.sigmas)]
        assert max(gaps) == pytest.approx(min(gaps), abs=1e-5)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_one_stage_is_the_plain_sampler(name: str, steps: int) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=1, steps=steps)
    h = facts.shift_factor(plan.stages[0].grid.tokens)
    terminal = 0.0 if facts.shift is None else facts.shift.terminal
    fixed = facts.shift is None
    assert plan.stages[0].sigmas == plain_sigmas(steps, h, fixed=fixed, terminal=terminal)
    assert plan.transitions == ()
    assert plan == make_plan(facts, stages=1, preset="fast", steps=steps)
    assert plan.preset is None


@pytest.mark.parametrize("name", model_names())
def test_one_stage_unasked_takes_the_models_own_steps(name: str) -> None:
    facts = model_facts(name)
    assert make_plan(facts, stages=1).nfe == facts.default_steps


@pytest.mark.parametrize("stages", [2, 3])
def test_the_baselines_length_does_not_change_the_plan(stages: int) -> None:
    assert make_plan(TINY, stages=stages, steps=50) == make_plan(TINY, stages=stages)


def test_balanced_is_what_is_meant_when_nothing_is_said() -> None:
    assert make_plan(TINY, stages=3) == make_plan(TINY, stages=3, preset="balanced")


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (32, 32), (512, 512), (64, 416)])
def test_grids_follow_the_size(size: tuple[int, int]) -> None:
    plan = make_plan(TINY, stages=3, size=size)
    assert plan.size == size
    for stage in plan.stages:
        assert stage.grid.width == size[0] * stage.grid.scale / TINY.vae_scale
        assert stage.grid.height == size[1] * stage.grid.scale / TINY.vae_scale


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: make_plan(TINY, stages=4), UnsupportedStages, "1, 2 or 3 .below 1/4"),
        (lambda: make_plan(TINY, stages=0), UnsupportedStages, "1, 2 or 3"),
        (lambda: make_plan(TINY, stages=-1), UnsupportedStages, "1, 2 or 3"),
        (lambda: make_plan(TINY, stages=3, preset="tubro"), UnknownPreset, "--preset turbo"),
        (lambda: make_plan(TINY, stages=3, preset="best"), UnknownPreset, "quality, balanced"),
        (lambda: make_plan(TINY, stages=1, steps=0), PlanError, "--steps"),
        (lambda: make_plan(TINY, stages=3, steps=-4), PlanError, "--steps"),
        (lambda: make_plan(TINY, stages=3, steps=10**6), PlanError, "1000"),
        (lambda: make_plan(TINY, stages=3, size=(250, 256)), UnsupportedSize, "224x256"),
    ],
)
def test_a_wrong_request_is_named(
    call: Callable[[], object], kind: type[FrescoError], said: str
) -> None:
    with pytest.raises(kind, match=said) as raised:
        call()
    assert raised.value.exit_code == 2


GOOD = Preset(steps=(2, 3, 4), switch=(0.8, 0.6))
HALF: tuple[Share, ...] = (("edge", 0.5),)
MIXED = replace(GOOD, refine=((("edge", 0.25), ("even", 0.1)), ()), window=1)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (2, 0, 4)},
        {"steps": ()},
        {"steps": (2, 3)},
        {"switch": (0.8,)},
        {"switch": (0.6, 0.8)},
        {"switch": (0.8, 0.8)},
        {"switch": (1.0, 0.8)},
        {"switch": (0.8, 0.0)},
        {"switch": (float("nan"), 0.5)},
        {"restart": (0.9,)},
        {"restart": (0.79, 0.65)},
        {"restart": (0.9, 0.5)},
        {"restart": (1.1, 0.7)},
        {"noise": "rewind", "lift": "bilinear"},
        {"solver": "heun"},
        {"shift": (2.0, 2.0)},
        {"shift": ()},
        {"shift": (2.0, 0.0, 2.0)},
        {"shift": (2.0, float("nan"), 2.0)},
        {"window": 2},
        {"positions": "coarse"},
        {"positions": "aligned"},
        {"refine": ((), ()), "positions": "coarse"},
        {"refine": ((("edge", 0.5),),)},
        {"refine": ((), (("edge", 0.5),))},
        {"refine": ((("best", 0.5),), ())},
        {"refine": ((("edge", 0.0),), ())},
        {"refine": ((("edge", 1.0),), ())},
        {"refine": ((("edge", float("nan")),), ())},
        {"refine": ((("edge", 0.5), ("even", 0.5)), ())},
        {"refine": ((("edge", 0.5), ("even", -0.1)), ())},
        {"refine": ((("edge", 0.5),), ()), "positions": "middle"},
        {"refine": ((("edge", 0.5),), ()), "window": 0},
        {"refine": ((("changing", 0.5),), ()), "window": 1},
        {"steps": (2, 3, 4, 5), "switch": (0.8, 0.6, 0.4), "refine": (HALF, HALF, ())},
    ],
)
def test_a_preset_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan):
        replace(GOOD, **change)  # type: ignore[arg-type]


def test_restarts_are_rewound_kept_or_given() -> None:
    assert GOOD.restarts == tuple(rewind_sigma(sigma) for sigma in GOOD.switch)
    assert replace(GOOD, restart="same").restarts == GOOD.switch
    assert replace(GOOD, restart=(0.95, 0.7)).restarts == (0.95, 0.7)


def test_a_mixed_stage_stays_on_its_grid() -> None:
    plan = plan_from_preset(TINY, MIXED)
    assert [stage.grid.scale for stage in plan.stages] == [0.5, 1.0, 1.0]
    assert plan.tokens == (256, 256 + 3 * (64 + 26), 1024)
    assert [each.rule for each in plan.transitions[0].refinements] == ["edge", "even"]
    assert [each.window for each in plan.transitions] == [1, 3]


@pytest.mark.parametrize(
    ("refine", "scales", "refined"),
    [
        ((), [0.125, 0.25, 0.5, 1.0], (0, 0, 0, 0)),
        ((HALF, (), ()), [0.25, 0.5, 0.5, 1.0], (0, 32, 0, 0)),
        (((), HALF, ()), [0.25, 0.5, 1.0, 1.0], (0, 0, 128, 0)),
        (((("edge", 0.25),), (("even", 0.5),), ()), [0.5, 1.0, 1.0, 1.0], (0, 64, 192, 0)),
    ],
)
def test_refinements_may_come_at_any_switch_but_the_last(
    refine: Any, scales: list[float], refined: tuple[int, ...]
) -> None:
    window = 1 if refine else 3
    preset = Preset(steps=(2, 2, 2, 2), switch=(0.9, 0.8, 0.7), refine=refine, window=window)
    plan = plan_from_preset(TINY, preset)
    assert [stage.grid.scale for stage in plan.stages] == scales
    assert plan.refined == refined


def test_a_new_coarse_grid_starts_its_shares_anew() -> None:
    preset = Preset(
        steps=(1,) * 5, switch=(0.9, 0.8, 0.7, 0.6), refine=(HALF, (), HALF, ()), window=1
    )
    assert plan_from_preset(TINY, preset).refined == (0, 32, 0, 128, 0)


@pytest.mark.parametrize(("share", "count"), [(1e-6, 1), (0.4, 102), (1 - 1e-6, 255)])
def test_a_share_is_at_least_one_token_and_not_all(share: float, count: int) -> None:
    plan = plan_from_preset(TINY, replace(MIXED, refine=((("edge", share),), ())))
    assert plan.refined == (0, count, 0)


def test_refinements_that_leave_no_token_coarse_are_refused() -> None:
    crowded = replace(MIXED, refine=((("edge", 0.5), ("even", 0.49)), ()))
    with pytest.raises(InvalidPlan, match="4 tokens refined of 4"):
        plan_from_preset(TINY, crowded, size=(32, 32))


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (48, 272)])
def test_the_size_must_fit_the_coarse_grid_of_a_mixed_preset(size: tuple[int, int]) -> None:
    assert plan_from_preset(TINY, MIXED, size=size).size == size
    with pytest.raises(UnsupportedSize, match=r"multiple of 16 .*coarsest of 2 grids"):
        plan_from_preset(TINY, MIXED, size=(size[0] + 8, size[1]))


def test_each_stage_may_have_a_shift_of_its_own() -> None:
    plan = plan_from_preset(TINY, replace(GOOD, shift=(5.0, 2.0, 1.0)))
    ends = [(1.0, 0.8), (rewind_sigma(0.8), 0.6), (rewind_sigma(0.6), 0.0)]
    rows = zip(ends, GOOD.steps, (5.0, 2.0, 1.0), strict=True)
    expected = [stage_sigmas(*pair, steps, h) for pair, steps, h in rows]
    assert [stage.sigmas for stage in plan.stages] == expected


def test_the_models_shift_is_what_is_meant_when_none_is_given() -> None:
    h = TINY.shift_factor(1024)
    assert plan_from_preset(TINY, replace(GOOD, shift=(h, h, h))) == plan_from_preset(TINY, GOOD)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_is_asked_for_by_its_name(solver: Solver) -> None:
    """The preset's own changes nothing, not even what the plan is called."""
    spelt = fresco_trt.plan("flux-tiny", stages=3, preset=f"balanced,solver={solver}")
    plain = fresco_trt.plan("flux-tiny", stages=3)
    preset = "balanced" if solver == plain.solver else None
    assert spelt == replace(plain, solver=solver, preset=preset)


@pytest.mark.parametrize(
    ("steps", "solver", "cache", "missing"),
    [
        (1, "multistep", "none", "steps F,"),
        (2, "dpmpp_2m", "none", "steps FF,"),
        (2, "unipc", "none", "second of which is not the last"),
        (5, "multistep", "reuse,actions=FBFBF", "steps FBFBF,"),
        (5, "unipc", "reuse,actions=FBBFF", "steps FBBFF,"),
    ],
)
def test_a_solver_that_no_step_reads_is_refused(
    steps: int, solver: str, cache: str, missing: str
) -> None:
    def planned(steps: int, cache: str) -> StagePlan:
        preset = f"balanced,solver={solver}"
        return fresco_trt.plan("flux-tiny", stages=1, steps=steps, preset=preset, cache=cache)

    with pytest.raises(IncompatibleOptions, match=missing):
        planned(steps, cache)
    assert planned(steps + 1, "none").solver == solver


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_plan_has_the_presets_solver_and_positions(positions: Positions) -> None:
    plan = plan_from_preset(TINY, replace(MIXED, solver="multistep", positions=positions))
    assert (plan.solver, plan.positions) == ("multistep", positions)


def test_a_preset_with_one_number_of_stages_says_which() -> None:
    with pytest.raises(UnsupportedStages, match=r"'fresco-18' of flux; expected 3\. Fix: .* 3"):
        make_plan(model_facts("flux"), stages=2, preset="fresco-18")


def test_a_preset_of_ones_own_makes_an_unnamed_plan() -> None:
    plan = plan_from_preset(TINY, GOOD, size=(128, 128))
    assert plan.preset is None
    assert [stage.steps for stage in plan.stages] == [2, 3, 4]
