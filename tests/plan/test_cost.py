"""Laws of the cost model, and the published figures it must reproduce."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from fresco_trt.errors import InvalidPlan, PlanError
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.cost import (
    activation_bytes,
    flops_of_bypass,
    flops_of_step,
    plan_cost,
    plan_summary,
    stage_flops,
)
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import Action

PRESETS = ("quality", "balanced", "fast", "turbo")
FLUX = model_facts("flux")


def test_a_step_of_flux_costs_what_was_published() -> None:
    assert flops_of_step(FLUX, 4096) == pytest.approx(3719.50e12 / 50, rel=1e-3)


@pytest.mark.parametrize(
    ("expanded", "tera"), [(0.0, 21.48), (0.1, 26.2), (0.2, 31.0), (0.25, 33.5), (0.5, 46.3)]
)
def test_a_step_on_a_smaller_or_mixed_grid(expanded: float, tera: float) -> None:
    tokens = round(1024 * (1 + 3 * expanded))
    assert flops_of_step(FLUX, tokens) / 1e12 == pytest.approx(tera, rel=3e-3)


@pytest.mark.parametrize("name", model_names())
def test_more_tokens_cost_more_and_ever_more(name: str) -> None:
    facts = model_facts(name)
    costs = [flops_of_step(facts, tokens) for tokens in (256, 512, 768, 1024)]
    gaps = [later - earlier for earlier, later in pairwise(costs)]
    assert all(gap > 0 for gap in gaps)
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_ratio_is_baseline_over_plan(name: str, preset: str, stages: int) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=stages, preset=preset)
    cost = plan_cost(facts, plan, 40)
    pictures = 1 + facts.references
    by_hand = [
        facts.passes * stage.steps * flops_of_step(facts, pictures * stage.grid.tokens)
        for stage in plan.stages
    ]
    full = plan.stages[-1].grid.tokens
    assert cost.flops == pytest.approx(sum(by_hand))
    assert cost.baseline_flops == 40 * facts.passes * flops_of_step(facts, pictures * full)
    assert cost.ratio == cost.baseline_flops / cost.flops
    assert plan_cost(facts, plan, 80).ratio == pytest.approx(2 * cost.ratio)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_plain_sampler_saves_nothing(name: str, steps: int) -> None:
    facts = model_facts(name)
    assert plan_cost(facts, make_plan(facts, stages=1, steps=steps), steps).ratio == 1.0


@pytest.mark.parametrize("name", ["flux", "flux-kontext"])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(
    ("preset", "ratio"), [("quality", 3.0), ("balanced", 5.0), ("fast", 7.0), ("turbo", 10.0)]
)
def test_presets_of_flux_save_what_they_are_named_for(
    name: str, stages: int, preset: str, ratio: float
) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=stages, preset=preset)
    assert plan_cost(facts, plan, 50).ratio == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_each_preset_saves_more_than_the_one_before(name: str, stages: int) -> None:
    facts = model_facts(name)
    plans = [make_plan(facts, stages=stages, preset=preset) for preset in PRESETS]
    ratios = [plan_cost(facts, plan).ratio for plan in plans]
    assert ratios == sorted(set(ratios))
    assert ratios[0] >= 1.0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_mixed_stage_costs_what_its_tokens_do(share: float) -> None:
    preset = Preset(steps=(2, 3, 4), switch=(0.8, 0.6), refine=((("edge", share),), ()), window=1)
    costs = stage_flops(FLUX, plan_from_preset(FLUX, preset))
    coarse, fine = flops_of_step(FLUX, 1024), flops_of_step(FLUX, 4096)
    mixed = flops_of_step(FLUX, 1024 + 3 * round(1024 * share))
    assert costs == (2 * coarse, 3 * mixed, 4 * fine)
    assert coarse < mixed < fine


@pytest.mark.parametrize(
    ("preset", "tera", "ratio"),
    [("fresco-30", 1295.99, 2.87), ("fresco-18", 788.03, 4.72), ("fresco-11", 486.85, 7.64)],
)
def test_the_points_of_fresco_cost_what_was_published(
    preset: str, tera: float, ratio: float
) -> None:
    plan = make_plan(FLUX, stages=3, preset=preset)
    cost = plan_cost(FLUX, plan, 50)
    assert plan.nfe == int(preset.removeprefix("fresco-"))
    assert cost.flops / 1e12 == pytest.approx(tera, rel=0.003)
    assert cost.ratio == pytest.approx(ratio, rel=0.003)


def test_activations_are_those_of_the_largest_stage_mixed_or_not() -> None:
    plan = make_plan(FLUX, stages=3, preset="fresco-18")
    cost = plan_cost(FLUX, plan)
    assert cost.activation_bytes["bf16"] == activation_bytes(FLUX, max(plan.tokens), "bf16")


def test_a_bypass_step_costs_next_to_nothing() -> None:
    plan = make_plan(FLUX, stages=1, steps=4)
    actions: tuple[Action, ...] = ("full", "bypass", "full", "bypass")
    stages = (replace(plan.stages[0], actions=actions),)
    cached = replace(plan, stages=stages, cache=cache_traits("reuse").settings())
    full, bypass = flops_of_step(FLUX, 4096), flops_of_bypass(FLUX, 4096)
    assert sum(stage_flops(FLUX, cached)) == pytest.approx(2 * full + 2 * bypass)
    assert 0 < bypass < full / 1000


def test_weights_and_activations_follow_the_precision() -> None:
    cost = plan_cost(FLUX, make_plan(FLUX, stages=3))
    bytes_each = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
    assert cost.weight_bytes == {name: FLUX.parameters * size for name, size in bytes_each.items()}
    assert cost.activation_bytes["fp32"] == 2 * cost.activation_bytes["bf16"]
    assert activation_bytes(FLUX, 4096, "bf16") == cost.activation_bytes["bf16"]


def test_another_models_plan_has_no_price() -> None:
    with pytest.raises(InvalidPlan, match="flux-tiny"):
        plan_cost(FLUX, make_plan(model_facts("flux-tiny"), stages=3))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_baseline_has_steps(steps: int) -> None:
    with pytest.raises(PlanError, match="--steps"):
        plan_cost(FLUX, make_plan(FLUX, stages=3), steps)


def test_aligned_attention_is_charged_for_the_pairs_that_it_evaluates() -> None:
    plan = make_plan(FLUX, stages=3, preset="fresco-18")
    aligned = replace(plan, positions="aligned")
    costs = zip(stage_flops(FLUX, plan), stage_flops(FLUX, aligned), strict=True)
    saved = [before - after for before, after in costs]
    # Each of 768 coarse queries leaves out three of the four children of 256 tokens.
    pairs = 768 * 3 * 256
    mixed = plan.stages[1].steps * FLUX.blocks * 4 * FLUX.hidden * pairs
    assert saved == [0, pytest.approx(mixed), 0]


def test_the_summary_says_how_a_mixed_stage_is_made_up() -> None:
    plan = make_plan(FLUX, stages=3, preset="fresco-18")
    summary: Any = plan_summary(FLUX, plan, 50)
    assert [(stage["tokens"], stage["refined"]) for stage in summary["stages"]] == [
        (1024, 0),
        (768 + 4 * 256, 256),
        (4096, 0),
    ]
    rules = [each["refinements"] for each in summary["transitions"]]
    assert rules == [[{"rule": "converged-latent", "count": 256}], []]
    assert (summary["solver"], summary["positions"]) == ("euler", "fine")


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_summary_has_what_scripts_rely_on(stages: int) -> None:
    plan = make_plan(FLUX, stages=stages, preset="fast")
    summary = plan_summary(FLUX, plan, 50)
    assert summary["flops_ratio"] == plan_cost(FLUX, plan, 50).ratio
    assert {key: summary[key] for key in plan.to_json()} == plan.to_json()
    assert {"model", "size", "nfe", "flops_ratio", "stages"} <= set(summary)
    for stage in plan.to_json()["stages"]:  # type: ignore[attr-defined]
        assert {"grid", "tokens", "steps", "sigma_start", "sigma_end", "actions"} <= set(stage)
    assert summary["tflops"] == pytest.approx(sum(summary["stage_tflops"]))  # type: ignore[call-overload]
    assert summary["baseline"] == {"steps": 50, "tflops": pytest.approx(3718.1, rel=1e-4)}


@pytest.mark.parametrize("name", model_names())
def test_a_preset_that_no_weights_chose_says_what_tunes_it(name: str) -> None:
    facts = model_facts(name)
    plan = make_plan(facts, stages=2)
    summary = plan_summary(facts, plan)
    assert summary["preset_tuned"] is (name == "flux-tiny")
    command = summary["tune_command"]
    assert (command is not None) == (name != "flux-tiny" and facts.calibrated)
    assert command is None or re.fullmatch(
        rf"fresco-trt tune --model {re.escape(name)} --speed [0-9.]+ --prompts FILE", str(command)
    )
    found = plan_summary(facts, replace(plan, preset=None))
    assert found["preset_tuned"] is found["tune_command"] is None
