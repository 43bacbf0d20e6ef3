"""Laws of plans of selective edits: their stages, what they cost, and how they are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_KONTEXT
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.plan.config import PresetConfig
from fresco_trt.plan.cost import flops_of_step, path_flops, plan_cost, plan_summary
from fresco_trt.plan.editing import SELECTIVE_PRESET, EditPlan
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan, TokenRefinement, Transition
from fresco_trt.plan.stored import check_plan, read_plan

EDIT = EditPlan(discrepancy="latent", threshold=0.5)
PLAN = make_plan(FLUX_KONTEXT, stages=5, preset=SELECTIVE_PRESET)


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_a_preset_is_a_draft_alternatives_of_growing_size_and_the_whole_grid(stages: int) -> None:
    plan = make_plan(FLUX_KONTEXT, stages=stages, preset=SELECTIVE_PRESET)
    assert plan.edit is not None
    assert plan.stages[0].grid.scale == 0.5
    assert plan.stages[0].sigmas[-1] == 0.0, "the draft is complete"
    refined = plan.refined[1:-1]
    assert list(refined) == sorted(set(refined))
    assert refined[0] > 0
    assert plan.refined[-1] == 0
    assert len({stage.sigmas for stage in plan.stages[1:]}) == 1
    assert plan.paths == tuple((0, other) for other in range(1, stages))


def test_a_request_takes_the_draft_and_one_stage_more() -> None:
    draft, *others = (stage.steps for stage in PLAN.stages)
    assert PLAN.nfe == PLAN.full_steps == draft + others[0]
    assert [PLAN.steps_before(stage) for stage in range(5)] == [0, *[draft] * 4]
    plain = make_plan(FLUX_KONTEXT, stages=3)
    assert [plain.steps_before(stage) for stage in range(3)] == [0, 6, 13]
    assert plain.paths == ((0, 1, 2),)


def test_a_mixed_stages_source_has_the_tokens_of_its_target() -> None:
    assert PLAN.mirrors == (False, True, True, True, False)
    assert PLAN.reference_tokens == PLAN.tokens
    for stage, tokens in enumerate(PLAN.tokens):
        signature = stage_signature(FLUX_KONTEXT, PLAN, stage, text_tokens=512)
        assert signature.input("latents").shape == (1, 2 * tokens, 64)
        assert signature.output("velocity").shape == (1, tokens, 64)


def test_a_path_costs_the_draft_and_its_stage() -> None:
    by_hand = [
        10 * flops_of_step(FLUX_DEV, 2 * 1024) + 6 * flops_of_step(FLUX_DEV, 2 * tokens)
        for tokens in (1408, 1792, 2560, 4096)
    ]
    assert path_flops(FLUX_KONTEXT, PLAN) == pytest.approx(by_hand)
    cost = plan_cost(FLUX_KONTEXT, PLAN, 28)
    assert cost.flops == pytest.approx(by_hand[2]), "the most that is not the whole picture"
    summary = plan_summary(FLUX_KONTEXT, PLAN, 28)
    ratios = [cost.baseline_flops / flops for flops in by_hand]
    assert summary["path_flops_ratios"] == pytest.approx(ratios)
    staged = plan_summary(FLUX_DEV, make_plan(FLUX_DEV, stages=3))
    assert staged["path_flops_ratios"] == [staged["flops_ratio"]]


def test_json_gives_exactly_the_plan_back(tmp_path: Any) -> None:
    stored = json.loads(json.dumps(PLAN.to_json()))
    assert StagePlan.from_json(stored) == PLAN
    assert "edit" not in make_plan(FLUX_KONTEXT, stages=3).to_json(), "as before edits"
    summary = tmp_path / "plan.json"
    summary.write_text(json.dumps(plan_summary(FLUX_KONTEXT, PLAN)))
    assert read_plan(summary) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"discrepancy": "guess"},
        {"threshold": 0.0},
        {"threshold": "0.2"},
        {"dilation": -1},
        {"dilation": 17},
        {"coverage": 1},
        {"blend": -1},
        {"recheck": -1},
        {"keep_source": 1},
        {"more": 1},
    ],
)
def test_anything_else_is_no_edit(change: dict[str, object]) -> None:
    assert EditPlan.from_json(EDIT.to_json()) == EDIT
    with pytest.raises(InvalidPlan):
        EditPlan.from_json({**EDIT.to_json(), **change})


def _with(index: int, **changes: Any) -> tuple[Transition, ...]:
    listed = list(PLAN.transitions)
    listed[index] = replace(listed[index], **changes)
    return tuple(listed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"edit": None}, "without an edit"),
        (
            {"transitions": _with(1, refinements=(TokenRefinement(rule="even", count=128),))},
            "only 'edited'",
        ),
        ({"transitions": _with(2, lift="nearest")}, "one restart, lift and noise"),
        (
            {
                "stages": (
                    *PLAN.stages[:4],
                    replace(PLAN.stages[4], sigmas=(0.75, 0.0), actions=("full",)),
                )
            },
            "the same",
        ),
        (
            {"transitions": tuple(replace(each, noise="fresh") for each in PLAN.transitions)},
            "'field' or 'parent'",
        ),
    ],
)
def test_alternatives_are_alike_and_nothing_else_is_edited(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidPlan, match=named):
        replace(PLAN, **changes)


def test_an_edit_has_room_for_less_than_all_and_for_all() -> None:
    preset = Preset(
        steps=(2, 2), switch=(0.0,), restart=(0.7,), edit=EDIT
    )  # a draft and the whole grid
    with pytest.raises(InvalidPlan, match="one mixed stage or more"):
        plan_from_preset(FLUX_KONTEXT, preset)
    with pytest.raises(InvalidPlan, match="0 after each alternative"):
        replace(preset, steps=(2, 2, 2), switch=(0.0, 0.1), restart=(0.7, 0.7))


def test_only_a_model_that_edits_has_such_a_plan() -> None:
    check_plan(PLAN, FLUX_KONTEXT)
    with pytest.raises(InvalidPlan, match="edits nothing"):
        check_plan(replace(PLAN, model="flux"), FLUX_DEV)


def test_the_threshold_is_a_users_own() -> None:
    plan = make_plan(FLUX_KONTEXT, stages=3, preset="specedit,threshold=0.4")
    assert plan.edit is not None
    assert (plan.edit.threshold, plan.preset) == (0.4, None)
    assert PresetConfig.parse("specedit,threshold=0.4").threshold == 0.4
    with pytest.raises(IncompatibleOptions, match="draws every token"):
        make_plan(FLUX_KONTEXT, stages=3, preset="threshold=0.4")
    with pytest.raises(PlanError, match="above 0"):
        make_plan(FLUX_KONTEXT, stages=3, preset="specedit,threshold=-1")


def test_a_fine_source_takes_its_own_tokens_in_every_stage() -> None:
    for preset in ("fast", SELECTIVE_PRESET):
        plan = make_plan(FLUX_KONTEXT, stages=3, preset=f"{preset},references=fine")
        assert (plan.preset, set(plan.reference_tokens)) == (None, {plan.tokens[-1]})
        assert not any(plan.mirrors)
        assert StagePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        for stage, tokens in enumerate(plan.tokens):
            shape = stage_signature(FLUX_KONTEXT, plan, stage, text_tokens=8).input("latents").shape
            assert shape == (1, tokens + plan.tokens[-1], FLUX_KONTEXT.in_channels)
        coarse = make_plan(FLUX_KONTEXT, stages=3, preset=f"{preset},references=coarse")
        assert coarse.preset == preset
        assert plan_cost(FLUX_KONTEXT, plan).flops > plan_cost(FLUX_KONTEXT, coarse).flops


def test_a_fine_source_where_nothing_would_differ_is_refused() -> None:
    for facts, stages in ((FLUX_KONTEXT, 1), (FLUX_DEV, 3)):
        with pytest.raises(IncompatibleOptions, match="are the same here"):
            make_plan(facts, stages=stages, preset="fast,references=fine")
    with pytest.raises(PlanError, match="coarse or fine"):
        make_plan(FLUX_KONTEXT, stages=3, preset="fast,references=big")
    plan = make_plan(FLUX_KONTEXT, stages=3, preset="fast,references=fine")
    with pytest.raises(InvalidPlan, match="takes no pictures"):
        check_plan(replace(plan, model="flux"), FLUX_DEV)
    with pytest.raises(InvalidPlan, match="both say the same"):
        replace(make_plan(FLUX_KONTEXT, stages=1), references="fine")
    with pytest.raises(InvalidPlan, match="coarse, fine"):
        replace(plan, references="big")  # type: ignore[arg-type]


def test_a_cache_lays_its_schedule_over_every_alternative() -> None:
    plan = make_plan(FLUX_KONTEXT, stages=5, preset=SELECTIVE_PRESET, cache="hicache")
    assert len({stage.actions for stage in plan.stages[1:]}) == 1
    assert plan.full_steps < plan.nfe
