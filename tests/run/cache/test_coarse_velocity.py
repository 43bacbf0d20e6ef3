"""Coarse steps: what the small grid is asked, what its answer changes, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.eager import module_runner
from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import CachePlan
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import cache_bytes, flops_of_step, plan_cost, stage_flops
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.signature import GraphSignature
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.cache.coarse_velocity import pooled_sample, pooled_velocity
from fresco_trt.run.noise import NoisePyramid
from fresco_trt.run.sampler import Conditioning, Step, engine_name, sample

FACTS = replace(
    model_facts("flux-tiny"), hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
PATCHIFIER = FluxPatchifier(FACTS, FACTS.text_tokens)
MODEL = load_transformer("random", FACTS, seed=3)
SIZE = (64, 64)
SIGMAS = (0.999, 0.9, 0.5, 0.1)


def plan_of(actions: str, size: tuple[int, int] = SIZE) -> StagePlan:
    cache = CacheConfig(name="coarse_velocity", actions=(actions,))
    return make_plan(FACTS, stages=1, size=size, steps=len(actions), cache=cache)


def inputs_of() -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {
        "text": torch.randn(1, FACTS.text_tokens, FACTS.text_dim, generator=drawn),
        "pooled": torch.randn(1, FACTS.pooled_dim, generator=drawn),
        "guidance": torch.tensor([3.5]),
    }


def sampled(plan: StagePlan, runners: Mapping[str, Any], seed: int = 0) -> list[Step]:
    pyramid = NoisePyramid.of_plan(plan, seed, channels=FACTS.latent_channels, device="cpu")
    steps = []
    for step in sample(plan, runners, Conditioning(inputs=inputs_of()), pyramid, PATCHIFIER):
        steps.append(replace(step, tokens=step.tokens.clone(), velocity=step.velocity.clone()))
    return steps


def drawn(plan: StagePlan, seed: int = 0) -> list[Step]:
    with ExitStack() as scope:
        runners = {}
        for index, action in plan.graphs:
            signature = stage_signature(FACTS, plan, index, action, text_tokens=FACTS.text_tokens)
            graph = graph_from_signature(MODEL, signature)
            runners[engine_name(index, action)] = scope.enter_context(
                module_runner(graph, signature)
            )
        return sampled(plan, runners, seed)


class Field:
    """A runner with a flow of its own: velocity [B,C,H,W] of (latents, sigma)."""

    def __init__(self, signature: GraphSignature, flow: Any) -> None:
        self.signature, self._flow = signature, flow
        self.calls: list[float] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        tokens, sigma = inputs["latents"], float(inputs["timestep"][0])
        self.calls.append(sigma)
        rows = int(tokens.shape[1] ** 0.5)
        grid = plan_of("FB").stages[0].grid
        grid = replace(grid, height=2 * rows, width=2 * rows)
        return {"velocity": PATCHIFIER.pack(self._flow(PATCHIFIER.unpack(tokens, grid), sigma))}


def fields(plan: StagePlan, flow: Any) -> dict[str, Field]:
    return {
        engine_name(index, action): Field(
            stage_signature(FACTS, plan, index, action, text_tokens=FACTS.text_tokens), flow
        )
        for index, action in plan.graphs
    }


def gaussian(spread: float) -> Any:
    """The exact flow of clean latents that are all N(0, spread^2), whatever the grid.

    With x = (1-s) z + s n the best estimate of z is linear in x (Song et al. 2021).
    """

    def flow(x: Tensor, sigma: float) -> Tensor:
        variance = (1 - sigma) ** 2 * spread**2 + sigma**2
        clean = (1 - sigma) * spread**2 / variance * x
        noise = sigma / variance * x
        return noise - clean

    return flow


# --- the small grid ---------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, *SIGMAS])
def test_a_pooled_sample_is_on_the_small_grids_own_path(sigma: float) -> None:
    torch.manual_seed(0)
    clean = torch.randn(1, 4, 2, 2).repeat_interleave(4, -1).repeat_interleave(4, -2)
    noise = torch.randn(1, 4, 8, 8)
    sample_, level = pooled_sample((1 - sigma) * clean + sigma * noise, sigma, 4)
    small_noise = functional.avg_pool2d(noise, 4) * 4
    wanted = (1 - level) * clean[..., ::4, ::4] + level * small_noise
    torch.testing.assert_close(sample_, wanted)
    assert level <= sigma


def test_pooled_noise_has_unit_variance_on_the_small_grid() -> None:
    noise = torch.randn(1, 4, 256, 256, generator=torch.Generator().manual_seed(0))
    sample_, level = pooled_sample(noise, 1.0, 4)
    assert level == 1.0
    assert sample_.std().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_pooled_velocity_is_that_of_the_large_grid(sigma: float) -> None:
    torch.manual_seed(1)
    clean = torch.randn(1, 4, 2, 2).repeat_interleave(4, -1).repeat_interleave(4, -2)
    noise = torch.randn(1, 4, 8, 8)
    sample_, level = pooled_sample((1 - sigma) * clean + sigma * noise, sigma, 4)
    small_noise, small_clean = functional.avg_pool2d(noise, 4) * 4, clean[..., ::4, ::4]
    found = pooled_velocity(sample_, small_noise - small_clean, level, 4)
    torch.testing.assert_close(found, functional.avg_pool2d(noise - clean, 4), atol=1e-5, rtol=1e-4)


# --- steps ------------------------------------------------------------------------------------


def test_without_a_change_on_the_small_grid_a_step_is_the_last_full_one() -> None:
    plan = plan_of("FBBF")

    def still(x: Tensor, sigma: float) -> Tensor:
        """On the small grid what makes the pooled velocity 0; on the large one x itself."""
        return x if x.shape[-1] > 4 else 0.75 * x / ((1 - sigma) / 4 + sigma)

    steps = sampled(plan, fields(plan, still))
    for step in steps[1:3]:
        torch.testing.assert_close(step.velocity, steps[0].velocity, atol=1e-5, rtol=0)
    assert not torch.allclose(steps[3].velocity, steps[0].velocity)


def test_a_step_changes_by_what_the_small_grid_says_and_by_nothing_within_a_cell() -> None:
    plan = plan_of("FB")
    grid = plan.stages[0].grid
    first, second = drawn(plan)
    change = PATCHIFIER.unpack(second.velocity - first.velocity, grid)
    cells = functional.avg_pool2d(change, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    torch.testing.assert_close(change, cells, atol=1e-5, rtol=0)
    assert change.abs().max() > 1e-4


def test_a_coarse_velocity_follows_the_pooled_latents_of_an_exact_flow() -> None:
    """On constant latents pooling loses nothing but noise, and there is none in them."""
    plan, every = plan_of("FBFBFBFB"), plan_of("FBBBBBBB")
    coarse, once = (sampled(each, fields(each, gaussian(1.0))) for each in (plan, every))
    full = make_plan(FACTS, stages=1, size=SIZE, steps=8)
    exact = sampled(full, fields(full, gaussian(1.0)))

    def error(steps: list[Step]) -> float:
        pooled = [
            functional.avg_pool2d(PATCHIFIER.unpack(each[-1].tokens, full.stages[0].grid), 4)
            for each in (steps, exact)
        ]
        return float((pooled[0] - pooled[1]).norm() / pooled[1].norm())

    halved = make_plan(FACTS, stages=1, size=SIZE, steps=4)
    coarser = sampled(halved, fields(halved, gaussian(1.0)))
    assert error(coarse) < error(coarser)
    assert error(coarse) < error(once)


def test_a_full_step_runs_the_coarse_grid_only_where_a_coarse_step_follows() -> None:
    plan = plan_of("FBFFB")
    runners = fields(plan, gaussian(1.0))
    sampled(plan, runners)
    assert len(runners["stage1.full"].calls) == 3
    assert len(runners["stage1.bypass"].calls) == 4
    assert runners["stage1.bypass"].calls[0] == 1.0
    step = flops_of_step(FACTS, 64)
    small = flops_of_step(FACTS, 4)
    assert stage_flops(FACTS, plan) == (3 * step + 4 * small,)


def test_full_steps_are_the_plain_samplers_bit_for_bit() -> None:
    plan, plain = plan_of("FFFB"), make_plan(FACTS, stages=1, size=SIZE, steps=4)
    for one, two in zip(drawn(plan)[:3], drawn(plain)[:3], strict=True):
        assert torch.equal(one.tokens, two.tokens)


def test_two_requests_share_nothing() -> None:
    plan = plan_of("FBFB")
    alone = [drawn(plan, seed)[-1].tokens for seed in (0, 1)]
    with ExitStack() as scope:
        runners: dict[str, EngineRunner] = {}
        for index, action in plan.graphs:
            signature = stage_signature(FACTS, plan, index, action, text_tokens=FACTS.text_tokens)
            graph = graph_from_signature(MODEL, signature)
            runners[engine_name(index, action)] = scope.enter_context(
                module_runner(graph, signature)
            )
        pyramids = [
            NoisePyramid.of_plan(plan, seed, channels=FACTS.latent_channels) for seed in (0, 1)
        ]
        turns = [
            sample(plan, runners, Conditioning(inputs=inputs_of()), each, PATCHIFIER)
            for each in pyramids
        ]
        for steps in zip(*turns, strict=True):
            last = [step.tokens for step in steps]
        for one, two in zip(last, alone, strict=True):
            assert torch.equal(one, two)


# --- plans ------------------------------------------------------------------------------------


def test_the_rule_is_a_coarse_step_after_every_full_one() -> None:
    plan = make_plan(FACTS, stages=1, size=SIZE, steps=5, cache=CacheConfig(name="coarse_velocity"))
    assert [action[0] for action in plan.stages[0].actions] == list("fbfbf")
    assert plan.cache == CachePlan(name="coarse_velocity", max_order=0, site="velocity")
    assert plan.velocity_grid is not None
    assert plan.velocity_grid.tokens * 16 == plan.tokens[-1]
    assert StagePlan.from_json(plan.to_json()) == plan
    assert plan_cost(FACTS, plan).ratio > 2
    assert cache_bytes(FACTS, plan) == (64 + 4) * FACTS.in_channels * 4


def test_only_the_full_grid_has_coarse_steps() -> None:
    cache = CacheConfig(name="coarse_velocity")
    plan = make_plan(FACTS, stages=2, size=(128, 128), preset="quality", cache=cache)
    assert "bypass" not in plan.stages[0].actions
    assert "bypass" in plan.stages[1].actions
    word = ",".join("F" + "B" * (stage.steps - 1) for stage in plan.stages)
    spelt = CacheConfig(name="coarse_velocity", actions=tuple(word.split(",")))
    with pytest.raises(IncompatibleOptions, match="with skipped steps in stage 1"):
        make_plan(FACTS, stages=2, size=(128, 128), preset="quality", cache=spelt)
    coarse = replace(plan.stages[0], actions=("full", *("bypass",) * (plan.stages[0].steps - 1)))
    with pytest.raises(InvalidPlan, match="full grid only"):
        replace(plan, stages=(coarse, plan.stages[1]))


@pytest.mark.parametrize(
    ("choice", "size", "said"),
    [
        ({"actions": ("BF",)}, SIZE, "first step is a bypass"),
        ({"actions": ("FF",)}, SIZE, "skips none"),
        ({"site": "final"}, SIZE, "site=final in --cache coarse_velocity"),
        ({}, (80, 80), "--cache coarse_velocity on a grid of 20x20"),
    ],
)
def test_impossible_coarse_velocities_are_refused(
    choice: dict[str, Any], size: tuple[int, int], said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(
            FACTS, stages=1, size=size, steps=2, cache=CacheConfig(name="coarse_velocity", **choice)
        )


def test_no_other_cache_keeps_the_velocity() -> None:
    with pytest.raises(IncompatibleOptions, match="site=velocity in --cache taylor"):
        make_plan(
            FACTS, stages=1, steps=6, cache=CacheConfig(name="taylor", site="velocity", interval=2)
        )
    with pytest.raises(InvalidPlan):
        CachePlan(name="coarse_velocity", max_order=0)
    with pytest.raises(InvalidPlan):
        CachePlan(name="taylor", max_order=2, site="velocity")
