"""Trajectories of a plan by the eager model, every step in full: what calibrations look at.

Beside the build. The sampler is the one that requests are drawn by, so the features seen here are
those that a cache will meet: every stage's grid, at its own noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.backends.eager import module_runner
from fresco_trt.models.flux import FluxLayout, full_signature, graph_from_signature
from fresco_trt.models.flux_parts import FluxPrompt
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.sampler import engine_name, sample
from fresco_trt.run.transition import draws

if TYPE_CHECKING:
    from fresco_trt.backends.base import EngineRunner, Progress
    from fresco_trt.lower.principal import Reference
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import Action, StagePlan


def in_full(plan: StagePlan) -> StagePlan:
    """The plan with every step in full."""
    full: list[Action] = ["full"]
    stages = tuple(replace(stage, actions=tuple(full * stage.steps)) for stage in plan.stages)
    return replace(plan, stages=stages, cache=None)


def features(reference: Reference, plan: StagePlan, progress: Progress) -> Iterator[Tensor]:
    """What the last block gives, [1,N,H], at every step of every prompt."""
    facts = reference.facts
    encode = FluxPrompt(reference.pipeline, facts.text_tokens)
    layout = FluxLayout(facts=facts, text_tokens=facts.text_tokens)
    total = len(reference.prompts) * plan.nfe
    done = 0
    with ExitStack() as scope:
        taps = _taps(reference, plan, scope)
        for number, prompt in enumerate(reference.prompts):
            seed = reference.seed + number
            inputs = _inputs(facts, encode(prompt))
            fresh = fresh_generator(seed) if any(map(draws, plan.transitions)) else None
            pyramid = _pyramid(facts, plan, seed)
            for step in sample(plan, taps, inputs, pyramid, layout, fresh=fresh):
                progress("measuring principal directions", done / total)
                done += 1
                yield taps[engine_name(step.stage, "full")].feature
    progress("measuring principal directions", 1.0)


class _Tap:
    """A runner that keeps the feature and passes on the velocity."""

    def __init__(self, runner: EngineRunner) -> None:
        self.signature = runner.signature
        self.feature: Tensor = torch.empty(0)
        self._runner = runner

    def __enter__(self) -> _Tap:
        return self

    def __exit__(self, *_: object) -> None:
        """The runner is left by its owner."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = self._runner(inputs)
        self.feature = outputs["feature"]
        return {"velocity": outputs["velocity"]}


def _taps(reference: Reference, plan: StagePlan, scope: ExitStack) -> dict[str, _Tap]:
    facts = reference.facts
    taps: dict[str, _Tap] = {}
    for index, (tokens, promoted) in enumerate(zip(plan.tokens, plan.aligned, strict=True)):
        signature = full_signature(
            facts, tokens, facts.text_tokens, promoted=promoted, feature=True
        )
        graph = graph_from_signature(reference.transformer, signature)
        runner = scope.enter_context(module_runner(graph, signature))
        taps[engine_name(index, "full")] = _Tap(runner)
    return taps


def _inputs(facts: ModelFacts, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
    if facts.guidance_default is None:
        return encoded
    return {**encoded, "guidance": torch.tensor([facts.guidance_default])}


def _pyramid(facts: ModelFacts, plan: StagePlan, seed: int) -> NoisePyramid:
    full = plan.stages[-1].grid
    return NoisePyramid.from_seed(
        seed,
        channels=facts.latent_channels,
        height=full.height,
        width=full.width,
        coarsest=plan.stages[0].grid.scale,
        device="cpu",
    )
