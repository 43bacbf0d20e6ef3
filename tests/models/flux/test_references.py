"""Laws of a FLUX stage with reference pictures (FLUX.1-Kontext): what it takes, gives and costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fresco_trt.errors import InvalidPlan
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_KONTEXT, FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import full_signature, stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import flops_of_bypass, flops_of_step, plan_cost, stage_flops
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.memory import graph_memory
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.positions import whole_tables

FACTS = replace(
    FLUX_TINY,
    hidden=64,
    heads=2,
    double_blocks=2,
    single_blocks=2,
    text_tokens=5,
    text_dim=32,
    references=1,
)
PLAN = make_plan(FACTS, stages=2, preset="turbo", size=(64, 64))


def test_every_stage_takes_its_reference_at_its_own_size_and_gives_the_picture_alone() -> None:
    for stage, tokens in enumerate(PLAN.tokens):
        signature = stage_signature(FACTS, PLAN, stage, text_tokens=5, feature=True)
        assert signature.input("latents").shape == (1, 2 * tokens, FACTS.in_channels)
        assert signature.input("rope_cos").shape == (5 + 2 * tokens, FACTS.head_dim)
        assert signature.output("velocity").shape == (1, tokens, FACTS.in_channels)
        assert signature.output("feature").shape == (1, tokens, FACTS.hidden)


def test_a_mixed_stages_reference_is_on_its_fine_grid() -> None:
    preset = Preset(steps=(2, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1)
    plan = plan_from_preset(FACTS, preset, size=(64, 64))
    mixed = stage_signature(FACTS, plan, 1, text_tokens=5)
    fine = plan.stages[1].grid.tokens
    assert plan.tokens[1] < fine
    assert mixed.input("latents").shape[1] == plan.tokens[1] + fine


def test_the_graph_is_diffusers_transformer_over_both_pictures() -> None:
    tokens = 16
    signature = full_signature(FACTS, tokens, 5, references=tokens)
    model = random_transformer(FACTS)
    graph = graph_from_signature(model, signature)
    generator = torch.Generator().manual_seed(1)
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}
    patchifier = FluxPatchifier(FACTS, 5)
    square = make_plan(FACTS, stages=1, size=(32, 32)).stages[0].grid
    inputs |= whole_tables(patchifier, square, 1)
    ids = torch.cat([patchifier.positions(square, image) for image in range(2)])
    assert ids[:tokens, 0].unique().tolist() == [0.0]
    assert ids[tokens:, 0].unique().tolist() == [1.0]
    with torch.no_grad():
        (velocity,) = graph(*inputs.values())
        whole = model(
            hidden_states=inputs["latents"],
            encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"],
            timestep=inputs["timestep"],
            guidance=inputs["guidance"],
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]
    assert torch.allclose(velocity, whole[:, :tokens], atol=1e-5)


def test_the_velocity_depends_on_the_reference() -> None:
    signature = full_signature(FACTS, 4, 5, references=4)
    graph = graph_from_signature(random_transformer(FACTS), signature)
    inputs = {spec.name: torch.ones(spec.shape) for spec in signature.inputs}
    with torch.no_grad():
        (before,) = graph(*inputs.values())
        inputs["latents"][:, 4:] = -1.0
        (after,) = graph(*inputs.values())
    assert not torch.equal(before, after)


def test_a_reference_costs_its_tokens() -> None:
    kontext = make_plan(FLUX_KONTEXT, stages=3, preset="balanced")
    by_hand = [
        stage.steps * flops_of_step(FLUX_DEV, 2 * stage.grid.tokens) for stage in kontext.stages
    ]
    assert stage_flops(FLUX_KONTEXT, kontext) == pytest.approx(by_hand)
    cost = plan_cost(FLUX_KONTEXT, kontext, 28)
    assert cost.baseline_flops == 28 * flops_of_step(FLUX_DEV, 2 * 4096)
    assert flops_of_step(FLUX_DEV, 4096, references=4096) == flops_of_step(FLUX_DEV, 8192)
    trunk = flops_of_bypass(FLUX_DEV, 4096, "trunk", references=4096)
    assert trunk > flops_of_bypass(FLUX_DEV, 4096, "trunk")
    assert flops_of_bypass(FLUX_DEV, 4096, references=4096) == flops_of_bypass(FLUX_DEV, 4096)


def test_a_reference_takes_memory() -> None:
    from fresco_trt.models.flux.layers import graph_parameters

    plain, beside = (
        graph_memory(
            FACTS,
            "stage1.full",
            full_signature(FACTS, 16, 5, references=references),
            graph_parameters(FACTS),
            "fp32",
        )
        for references in (0, 16)
    )
    assert beside.activations * 21 == plain.activations * 37  # 16 + 5 tokens, and 16 more
    assert beside.weights == plain.weights


MIXED = Preset(
    steps=(2, 1, 1),
    switch=(0.8, 0.5),
    refine=((("even", 0.25),), ()),
    window=1,
    positions="aligned",
)


@pytest.mark.parametrize(
    ("plan", "stage", "words"),
    [
        (
            make_plan(
                FACTS,
                stages=2,
                preset="quality",
                size=(64, 64),
                cache=CacheConfig(name="coarse_velocity"),
            ),
            0,
            "coarse velocities",
        ),
        (plan_from_preset(FACTS, MIXED, size=(64, 64)), 1, "phase-aligned attention"),
    ],
)
def test_what_takes_the_pictures_own_tokens_alone_is_refused(
    plan: StagePlan, stage: int, words: str
) -> None:
    with pytest.raises(InvalidPlan, match=words):
        stage_signature(FACTS, plan, stage, text_tokens=5)
