"""Cached sampling: what a bypass starts from, and that stages and requests share nothing."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.eager import module_runner
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import (
    FEATURES,
    cache_names,
    cache_traits,
)
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.stages import SOLVERS, Solver, StagePlan
from fresco_trt.profile.spans import Recorder
from fresco_trt.run.cache import predictor
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.noise import NoisePyramid
from fresco_trt.run.sampler import Conditioning, Step, engine_name, sample
from fresco_trt.run.trace import recording

FACTS = replace(
    model_facts("flux-tiny"), hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
PATCHIFIER = FluxPatchifier(FACTS, FACTS.text_tokens)
MODEL = load_transformer("random", FACTS, seed=3)
SIZE = (64, 64)

BASIS = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(1)))[0]


def plan_of(stages: int, **choice: Any) -> StagePlan:
    cache = CacheConfig(**choice)
    if stages == 1:
        return make_plan(FACTS, stages=1, size=SIZE, steps=7, cache=cache)
    return make_plan(FACTS, stages=stages, size=SIZE, preset="quality", cache=cache)


class Listening:
    """A runner that keeps copies of what it was called with and what it gave."""

    def __init__(self, runner: EngineRunner) -> None:
        self.signature, self._runner = runner.signature, runner
        self.calls: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = self._runner(inputs)
        copies = [{k: v.clone() for k, v in each.items()} for each in (inputs, outputs)]
        self.calls.append((copies[0], copies[1]))
        return outputs


def runners_of(plan: StagePlan, scope: ExitStack, batch: int = 1) -> dict[str, Listening]:
    found = {}
    for index, action in plan.graphs:
        signature = stage_signature(
            FACTS, plan, index, action, text_tokens=FACTS.text_tokens, batch=batch
        )
        graph = graph_from_signature(MODEL, signature)
        runner = scope.enter_context(module_runner(graph, signature))
        found[engine_name(index, action)] = Listening(runner)
    return found


def inputs_of(seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(1, FACTS.text_tokens, FACTS.text_dim, generator=drawn),
        "pooled": torch.randn(1, FACTS.pooled_dim, generator=drawn),
        "guidance": torch.tensor([3.5]),
    }


def steps_of(plan: StagePlan, runners: Mapping[str, Listening], seed: int = 0) -> Any:
    pyramid = NoisePyramid.of_plan(plan, seed, channels=FACTS.latent_channels, device="cpu")
    basis = BASIS if plan.cache is not None and plan.cache.traits.needs_basis else None
    return sample(
        plan, runners, Conditioning(inputs=inputs_of(seed)), pyramid, PATCHIFIER, basis=basis
    )


def drawn(plan: StagePlan, seed: int = 0) -> tuple[list[Step], dict[str, Listening]]:
    with ExitStack() as scope:
        runners = runners_of(plan, scope)
        return list(steps_of(plan, runners, seed)), runners


def test_a_caller_who_stops_leaves_nothing_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[weakref.ref[StageCache]] = []
    features: list[weakref.ref[Tensor]] = []
    observe = StageCache.observe

    def observed(self: StageCache, feature: Tensor, step: int) -> None:
        observe(self, feature, step)
        caches.append(weakref.ref(self))
        features.append(weakref.ref(self._state))

    monkeypatch.setattr(StageCache, "observe", observed)
    plan = plan_of(1, name="reuse", interval=3, warmup_steps=1)
    with ExitStack() as scope:
        steps = steps_of(plan, runners_of(plan, scope))
        latents = [weakref.ref(next(steps).tokens) for _ in range(2)]
        held = (*latents, *caches, *features)
        assert len(held) == 4
        assert all(each() is not None for each in held)
        steps.close()
        assert [each() for each in held] == [None] * 4


@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_bypass_from_the_true_feature_is_the_full_step(site: str) -> None:
    plan = plan_of(1, name="reuse", interval=2, warmup_steps=1, site=site)
    feature = FEATURES["trunk" if site == "trunk" else "final"]
    with ExitStack() as scope:
        runners = runners_of(plan, scope)
        first = next(steps_of(plan, runners))
        inputs, outputs = runners["stage1.full"].calls[0]
        bypass = runners["stage1.bypass"]
        given = {**inputs, feature: outputs[feature]}
        velocity = bypass({spec.name: given[spec.name] for spec in bypass.signature.inputs})
        # At the trunk the residual is added back to what it was taken from: one rounding.
        bound = 0.0 if site == "final" else 1e-5
        torch.testing.assert_close(velocity["velocity"], first.velocity, rtol=bound, atol=bound)


def test_the_trunk_runs_its_first_block_on_its_own_latents() -> None:
    plan = plan_of(1, name="reuse", actions=("FBBBBBB",), site="trunk")
    _, runners = drawn(plan)
    given = [inputs for inputs, _ in runners["stage1.bypass"].calls]
    assert all(torch.equal(given[0]["residual"], each["residual"]) for each in given)
    assert not torch.equal(given[0]["latents"], given[1]["latents"])
    assert plan_cost(FACTS, plan).flops > plan_cost(FACTS, replace_site(plan)).flops


def replace_site(plan: StagePlan) -> StagePlan:
    assert plan.cache is not None
    return replace(plan, cache=replace(plan.cache, site="final"))


@pytest.mark.parametrize("name", cache_names("feature"))
@pytest.mark.parametrize("stages", [1, 3])
def test_every_cache_draws_with_every_number_of_stages(name: str, stages: int) -> None:
    plan = plan_of(stages, name=name, interval=2, warmup_steps=1)
    steps, runners = drawn(plan)
    assert [step.action for step in steps] == [a for s in plan.stages for a in s.actions]
    assert steps[-1].tokens.isfinite().all()
    calls = {name: len(runner.calls) for name, runner in runners.items()}
    for index, stage in enumerate(plan.stages):
        assert calls[engine_name(index, "full")] == stage.actions.count("full")


@pytest.mark.parametrize("name", ["reuse", "coarse_velocity"])
def test_every_call_of_an_engine_is_a_span_of_its_action(name: str) -> None:
    plan = plan_of(1, name=name, interval=2, warmup_steps=1)
    with recording(sink := Recorder()):
        _, runners = drawn(plan)
    for action in ("full", "bypass"):
        spans = [each for each in sink.spans if each.name == action]
        assert len(spans) == len(runners[engine_name(0, action)].calls) > 0
        assert {each.parent.name for each in spans if each.parent is not None} == {"step"}


def test_reuse_gives_the_last_full_feature_to_every_bypass() -> None:
    plan = plan_of(1, name="reuse", actions=("FBBFBBB",))
    _, runners = drawn(plan)
    features = [outputs["feature"] for _, outputs in runners["stage1.full"].calls]
    given = [inputs["feature"] for inputs, _ in runners["stage1.bypass"].calls]
    assert [next(i for i, f in enumerate(features) if torch.equal(f, g)) for g in given] == [
        0,
        0,
        1,
        1,
        1,
    ]


def test_a_stage_begins_with_an_empty_cache() -> None:
    """The first bypass of a stage, after one full step of it, can only have that step's feature."""
    plan = plan_of(3, name="hicache", interval=2, warmup_steps=1)
    _, runners = drawn(plan)
    for index in range(3):
        feature = runners[engine_name(index, "full")].calls[0][1]["feature"]
        given = runners[engine_name(index, "bypass")].calls[0][0]["feature"]
        assert torch.equal(feature, given)


@pytest.mark.parametrize("name", ["hicache", "reuse"])
@pytest.mark.parametrize("solver", SOLVERS[1:])
def test_a_skipped_step_and_the_one_after_it_are_eulers(name: str, solver: Solver) -> None:
    """Only where two steps on end are full has a second-order solver something to continue."""
    plan = replace(plan_of(1, name=name, actions=("FFBFFBB",)), solver=solver)
    with ExitStack() as scope:
        steps = steps_of(plan, runners_of(plan, scope))
        latents, euler = next(steps).tokens.clone(), []
        for step in steps:
            stepped = latents + (step.sigma_next - step.sigma) * step.velocity
            euler.append(torch.equal(step.tokens, stepped))
            latents = step.tokens.clone()
    assert euler == [False, True, True, False, True, True]


def test_the_bypass_is_told_its_own_noise_level() -> None:
    plan = plan_of(1, name="taylor", actions=("FBFBFBF",))
    _, runners = drawn(plan)
    told = [inputs["timestep"].item() for inputs, _ in runners["stage1.bypass"].calls]
    assert told == pytest.approx([plan.stages[0].sigmas[i] for i in (1, 3, 5)])


@pytest.mark.parametrize("name", cache_names("feature"))
def test_interleaved_requests_share_nothing(name: str) -> None:
    plan = plan_of(3, name=name, interval=2, warmup_steps=1)
    alone = [drawn(plan, seed)[0][-1].tokens for seed in (0, 1)]
    with ExitStack() as scope:
        runners = runners_of(plan, scope)
        pairs = list(zip(*(steps_of(plan, runners, seed) for seed in (0, 1)), strict=True))
    for mine, step in zip(alone, pairs[-1], strict=True):
        assert torch.equal(mine, step.tokens)


@pytest.mark.parametrize("name", [*cache_names("feature"), "coarse_velocity"])
def test_pictures_of_one_run_are_predicted_apart(name: str) -> None:
    """Each to the rounding of larger products: what is kept of one is never read for another."""
    choice = {} if name == "coarse_velocity" else {"interval": 2, "warmup_steps": 1}
    plan = plan_of(1 if name == "coarse_velocity" else 3, name=name, **choice)
    seeds = (0, 1)
    alone = [drawn(plan, seed)[0][-1].tokens for seed in seeds]
    given = [inputs_of(seed) for seed in seeds]
    inputs = {key: torch.cat([each[key] for each in given]) for key in given[0]}
    basis = BASIS if plan.cache is not None and plan.cache.traits.needs_basis else None
    pyramid = NoisePyramid.of_plan(plan, seeds, channels=FACTS.latent_channels)
    with ExitStack() as scope:
        *_, last = sample(
            plan,
            runners_of(plan, scope, batch=2),
            Conditioning(inputs=inputs),
            pyramid,
            PATCHIFIER,
            basis=basis,
        )
    torch.testing.assert_close(last.tokens, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_svd_without_a_basis_is_refused_before_any_engine_runs() -> None:
    plan = plan_of(1, name="svd", interval=3, warmup_steps=2)
    with ExitStack() as scope:
        runners = runners_of(plan, scope)
        pyramid = NoisePyramid.from_seed(
            0, channels=4, height=16, width=16, coarsest=1.0, device="cpu"
        )
        with pytest.raises(IncompatibleOptions, match="basis"):
            sample(plan, runners, Conditioning(inputs=inputs_of()), pyramid, PATCHIFIER)
        assert not any(runner.calls for runner in runners.values())


@pytest.mark.parametrize("name", cache_names("feature"))
def test_a_state_keeps_no_more_than_the_plan_says(name: str) -> None:
    cache = cache_traits(name).settings()
    found = predictor(cache, grid=(1, 16, 16), basis=BASIS)
    one = 256 * FACTS.hidden * 4
    assert found.nbytes(one) <= cache.kept_features * one
