"""Plans that give stages less of the text: what they say, cost and refuse; others are untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.config import PresetConfig, TargetConfig
from fresco_trt.plan.cost import activation_bytes, flops_of_step, plan_cost, stage_flops
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.memory import Parameters, graph_memory
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan
from fresco_trt.plan.stored import check_plan
from tests.plan.preset_sizes import size_for

FLUX = model_facts("flux")
CUT = (128, 256, 512)
STAGE_KEYS = ["grid", "tokens", "refined", "steps", "sigma_start", "sigma_end", "actions", "sigmas"]


def plan_of(*text: int, **options: Any) -> StagePlan:
    preset = PresetConfig(name="turbo", text_tokens=text)
    return make_plan(FLUX, **{"stages": 3, "preset": preset, **options})


# --- plans that cut nothing -------------------------------------------------------------------


@pytest.mark.parametrize("name", model_names())
def test_a_plan_that_cuts_nothing_is_written_as_it_always_was(name: str) -> None:
    facts = model_facts(name)
    for preset, schedules in facts.presets.items():
        for stages in schedules:
            size = size_for(facts, preset)
            plan = make_plan(facts, stages=stages, preset=preset, size=size)
            written: Any = plan.to_json()
            assert [list(stage) for stage in written["stages"]] == [STAGE_KEYS] * stages
            whole = PresetConfig(name=preset, text_tokens=(facts.text_tokens,) * stages)
            spelt = make_plan(facts, stages=stages, preset=whole, size=size)
            assert (spelt, spelt.digest()) == (plan, plan.digest())


def test_choices_are_the_whole_text_and_what_halves_of_it_are_whole() -> None:
    found = {name: model_facts(name).text_choices for name in ("flux", "flux-tiny")}
    assert found == {"flux": (128, 256, 512), "flux-tiny": (32, 64, 128)}
    assert [replace(FLUX, text_tokens=count).text_choices for count in (1, 5, 6)] == [
        (1,),
        (5,),
        (3, 6),
    ]


# --- plans that cut ---------------------------------------------------------------------------


def test_only_cut_stages_say_so_and_all_are_read_back() -> None:
    plan = plan_of(*CUT)
    assert plan.preset is None
    assert plan.text_tokens(512) == CUT
    assert plan.text_tokens(200) == (128, 200, 200)
    written: Any = json.loads(json.dumps(plan.to_json()))
    assert [stage.get("text_tokens") for stage in written["stages"]] == [128, 256, None]
    assert StagePlan.from_json(written) == plan
    assert plan.digest() != plan_of().digest()
    check_plan(plan, FLUX)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "128", None])
def test_a_stored_text_that_is_no_number_of_tokens_is_refused(value: object) -> None:
    written: Any = plan_of(*CUT).to_json()
    written["stages"][0]["text_tokens"] = value
    with pytest.raises(InvalidPlan, match=r"text.tokens"):
        StagePlan.from_json(written)


@pytest.mark.parametrize("count", [512, 100, 1024])
def test_a_stored_text_that_the_model_has_no_choice_of_is_refused(count: int) -> None:
    plan = plan_of(*CUT)
    first = replace(plan.stages[0], text_tokens=count)
    with pytest.raises(InvalidPlan, match=f"{count} text tokens.*128 or 256"):
        check_plan(replace(plan, stages=(first, *plan.stages[1:])), FLUX)


@pytest.mark.parametrize("text", [(128, 256), (128, 256, 512, 512), (100, 256, 512), (0, 512, 512)])
def test_other_texts_are_refused_with_the_spelling(text: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=r"128, 256 or 512.*text_tokens=256\+512\+512"):
        plan_of(*text)
    with pytest.raises(PlanError):
        plan_from_preset(FLUX, Preset(steps=(2, 2, 2), switch=(0.9, 0.7), text_tokens=text))


def test_every_door_has_the_same_spelling() -> None:
    spelt = "turbo,text_tokens=128+256+512"
    plan = plan_of(*CUT)
    config = PresetConfig(name="turbo", text_tokens=CUT)
    assert str(config) == spelt
    assert fresco_trt.plan("flux", stages=3, preset=spelt) == plan
    built = resolve(BuildRequest(model="flux", preset=config, backend="eager", weights="random"))
    assert built.plan == plan
    assert str(built.preset) == spelt


# --- what it costs ----------------------------------------------------------------------------


def test_flops_are_those_of_each_stages_own_text() -> None:
    plan, whole = plan_of(*CUT), plan_of()
    rows = zip(plan.stages, plan.tokens, CUT, strict=True)
    by_hand = [len(s.actions) * flops_of_step(FLUX, n, text_tokens=t) for s, n, t in rows]
    assert list(stage_flops(FLUX, plan)) == pytest.approx(by_hand)
    cost, before = plan_cost(FLUX, plan), plan_cost(FLUX, whole)
    assert cost.baseline_flops == before.baseline_flops
    assert cost.ratio > before.ratio
    assert stage_flops(FLUX, plan)[2] == stage_flops(FLUX, whole)[2]
    assert flops_of_step(FLUX, 256, text_tokens=128) < 0.5 * flops_of_step(FLUX, 256)
    assert cost.activation_bytes == before.activation_bytes  # of the last stage, which is whole


def test_the_widest_stage_may_be_one_with_less_text() -> None:
    plan = plan_of(512, 512, 128)
    widest = activation_bytes(FLUX, 4096, "bf16", text_tokens=128)
    assert plan_cost(FLUX, plan).activation_bytes["bf16"] == widest


@pytest.mark.parametrize("cache", ["hicache", "hicache,site=trunk", "coarse_velocity"])
def test_a_cache_pays_for_the_text_where_it_is_read(cache: str) -> None:
    stages = 1 if cache == "coarse_velocity" else 3
    text = (128,) * stages
    whole = plan_of(stages=stages, cache=cache)
    plan = plan_of(*text, stages=stages, cache=cache)
    for index, action in plan.graphs:
        signature = stage_signature(FLUX, plan, index, action, text_tokens=512)
        given = {spec.name: spec.shape for spec in signature.inputs}
        assert given.get("text", (1, 128))[1] == 128
        tokens = signature.output("velocity").shape[1]
        assert given.get("rope_cos", (128 + tokens,))[0] == 128 + tokens
    assert all(
        a < b for a, b in zip(stage_flops(FLUX, plan), stage_flops(FLUX, whole), strict=True)
    )


def test_signatures_of_aligned_stages_have_the_shorter_text_in_both_tables() -> None:
    tiny = model_facts("flux-tiny")
    preset = Preset(
        steps=(2, 2, 2),
        switch=(0.85, 0.7),
        refine=((("even", 0.25),), ()),
        window=1,
        positions="aligned",
        text_tokens=(64, 32, 128),
    )
    plan = plan_from_preset(tiny, preset, size=(64, 64))
    signature = stage_signature(tiny, plan, 1, text_tokens=128)
    assert signature.input("rope_cos").shape[0] == 32 + plan.tokens[1]
    assert signature.input("rope_cos_coarse").shape[0] == 32 + 16
    found = graph_memory(tiny, "stage2.full", signature, Parameters(whole=1), "fp32")
    assert found.activations == activation_bytes(tiny, plan.tokens[1], "fp32", text_tokens=32)


def test_engines_with_profiles_are_refused_a_text_of_their_own() -> None:
    request = BuildRequest(
        model="flux-tiny",
        preset="turbo,text_tokens=64+64+128",
        backend="tensorrt-rtx",
        target=TargetConfig(layout="profiles"),
    )
    with pytest.raises(IncompatibleOptions, match=r"layout=profiles.*text_tokens"):
        resolve(request)
    resolve(replace(request, preset="turbo"))
    resolve(replace(request, target=""))
