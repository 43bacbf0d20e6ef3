"""Trajectories of a plan by the eager model, every step in full: what calibrations look at.

Beside the build. The sampler is the one that requests are drawn by, so the features seen here are
those that a cache will meet: every stage's grid, at its own noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.backends.eager import module_runner
from fresco_trt.errors import CalibrationError, error_context
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning
from fresco_trt.run.sampler import Step, engine_name

if TYPE_CHECKING:
    from fresco_trt.backends.base import EngineRunner, Progress, Runner
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import Action, StagePlan


def in_full(plan: StagePlan) -> StagePlan:
    """The plan with every step in full."""
    full: list[Action] = ["full"]
    stages = tuple(replace(stage, actions=tuple(full * stage.steps)) for stage in plan.stages)
    return replace(plan, stages=stages, cache=None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """One full step of a trajectory: its stage and step in it, counted from 0, sigma, what the last
    block gave [1,N,H], the velocity [1,N,4C], and the inputs that a bypass takes beside a feature.
    """

    stage: int
    step: int
    sigma: float
    feature: Tensor
    velocity: Tensor
    inputs: Mapping[str, Tensor]


def walks(reference: Reference, plan: StagePlan, scope: ExitStack) -> list[Iterator[Seen]]:
    """One trajectory a prompt, in step with one another if they are asked in turn.

    What a step gave is valid until the same prompt is asked for the next.
    """
    taps = _taps(reference, plan, scope)
    return [
        _walk(reference, plan, taps, given, number)
        for number, given in enumerate(conditions(reference))
    ]


def features(reference: Reference, plan: StagePlan, progress: Progress) -> Iterator[Tensor]:
    """What the last block gives, [1,N,H], at every step of every prompt."""
    with ExitStack() as scope:
        steps = chain.from_iterable(walks(reference, plan, scope))
        total = len(reference.prompts) * plan.nfe
        for done, seen in enumerate(steps):
            progress("measuring the SVD basis", done / total)
            yield seen.feature
    progress("measuring the SVD basis", 1.0)


def _walk(
    reference: Reference,
    plan: StagePlan,
    taps: Mapping[str, _Tap],
    given: Conditioning,
    number: int,
) -> Iterator[Seen]:
    before, stage = 0, 0
    for step in drawn(reference, plan, taps, given, number):
        if step.stage != stage:
            before, stage = step.step, step.stage
        yield Seen(
            stage=step.stage,
            step=step.step - before,
            sigma=step.sigma,
            feature=taps[engine_name(step.stage, "full")].feature,
            velocity=step.velocity,
            inputs={**given.inputs, "timestep": torch.tensor([step.sigma])},
        )


def drawn(
    reference: Reference,
    plan: StagePlan,
    runners: Mapping[str, Runner],
    given: Conditioning,
    number: int,
    basis: Tensor | None = None,
) -> Iterator[Step]:
    """The sampler's steps of the prompt counted from 0, from its own seed, over any runners."""
    facts = reference.facts
    denoiser = Denoiser.of(facts, plan, runners, text_tokens=facts.text_tokens, basis=basis)
    with error_context(f"calibration prompt {number + 1}"):
        return denoiser.steps(given, reference.seed + number)


def conditions(reference: Reference) -> list[Conditioning]:
    """What each prompt gives the engines: text, pooled, and guidance where the model takes it."""
    facts = reference.facts
    if facts.references:
        raise CalibrationError(
            f"calibration of {facts.name}, which edits pictures",
            expected="a model that draws from a prompt alone: there are no sources to edit yet",
            fix="build in fp32 or bf16, with a cache that needs no calibration",
        )
    encode = reference.family.components.prompt_encoder(reference.pipeline, facts.text_tokens)
    return [
        Conditioning(inputs=_inputs(facts, encode(prompt)), prompt_tokens=encode.tokens(prompt))
        for prompt in reference.prompts
    ]


class _Tap(BorrowedRunner):
    """Keeps the feature and passes on the velocity."""

    feature: Tensor

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = self._runner(inputs)
        self.feature = outputs["feature"]
        return {"velocity": outputs["velocity"]}


def _taps(reference: Reference, plan: StagePlan, scope: ExitStack) -> dict[str, _Tap]:
    runners = full_runners(reference, plan, scope)
    return {name: _Tap(runner) for name, runner in runners.items()}


def full_runners(
    reference: Reference, plan: StagePlan, scope: ExitStack
) -> dict[str, EngineRunner]:
    """The eager model as the full engine of every stage, its feature given; by engine name."""
    facts, graphs = reference.facts, reference.family.graphs
    runners: dict[str, EngineRunner] = {}
    for index in range(len(plan.stages)):
        signature = graphs.signature(
            facts, plan, index, text_tokens=facts.text_tokens, feature=True
        )
        graph = graphs.module(reference.transformer, signature)
        runner = scope.enter_context(module_runner(graph, signature))
        runners[engine_name(index, "full")] = runner
    return runners


def _inputs(facts: ModelFacts, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
    if facts.guidance_default is None:
        return encoded
    return {**encoded, "guidance": torch.tensor([facts.guidance_default])}
