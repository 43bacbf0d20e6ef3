"""Trajectories of a plan by the eager model, every step in full: what calibrations look at.

Beside the build. The sampler is the one that requests are drawn by, so the features seen here are
those that a cache will meet: every stage's grid, at its own noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.backends.eager import module_runner
from fresco_trt.errors import CalibrationError, error_context
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.editing import masks_of
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """What one trajectory is drawn from, and the prompt that it is of, counted from 0."""

    given: Conditioning
    prompt: int


def walks(reference: Reference, plan: StagePlan, scope: ExitStack) -> list[Iterator[Seen]]:
    """The trajectory of each of :func:`cases`, in step with one another if they are asked in turn.

    What a step gave is valid until any of them is asked for the next of the same stage.
    """
    taps = _taps(reference, plan, scope)
    return [_walk(reference, plan, taps, case) for case in cases(reference, plan)]


def features(reference: Reference, plan: StagePlan, progress: Progress) -> Iterator[Tensor]:
    """What the last block gives, [1,N,H], at every step of every prompt."""
    with ExitStack() as scope:
        found = walks(reference, plan, scope)
        total = len(found) * plan.nfe
        for done, seen in enumerate(chain.from_iterable(found)):
            progress("measuring the SVD basis", done / total)
            yield seen.feature
    progress("measuring the SVD basis", 1.0)


def _walk(
    reference: Reference,
    plan: StagePlan,
    taps: Mapping[str, _Tap],
    case: Case,
) -> Iterator[Seen]:
    before, stage = 0, 0
    for step in drawn(denoiser_of(reference, plan, taps), case, reference.seed):
        if step.stage != stage:
            before, stage = step.step, step.stage
        yield Seen(
            stage=step.stage,
            step=step.step - before,
            sigma=step.sigma,
            feature=taps[engine_name(step.stage, "full")].feature,
            velocity=step.velocity,
            inputs={**case.given.inputs, "timestep": torch.tensor([step.sigma])},
        )


def denoiser_of(
    reference: Reference,
    plan: StagePlan,
    runners: Mapping[str, Runner],
    basis: Tensor | None = None,
) -> Denoiser:
    """What draws the calibration's cases over any runners."""
    facts = reference.facts
    return Denoiser.of(facts, plan, runners, text_tokens=facts.text_tokens, basis=basis)


def drawn(denoiser: Denoiser, case: Case, seed: int) -> Iterator[Step]:
    """The sampler's steps of a case, whose seed counts up with the prompts from ``seed``."""
    with error_context(f"calibration prompt {case.prompt + 1}"):
        return denoiser.steps(case.given, seed + case.prompt)


def cases(reference: Reference, plan: StagePlan) -> list[Case]:
    """Each prompt, with its source picture where the model edits. Where the stages of a plan are
    alternatives, once for each path: a mask leads there, so that every stage is seen.

    Raises CalibrationError for a model that edits and prompts without pictures.
    """
    facts, components = reference.facts, reference.family.components
    if bool(facts.references) != bool(reference.pictures):
        raise _other_kind(facts, len(reference.pictures))
    encode = components.prompt_encoder(reference.pipeline, facts.text_tokens)
    latents = components.encoder(reference.pipeline) if reference.pictures else None
    found = []
    for number, (prompt, picture) in enumerate(zip_longest(reference.prompts, reference.pictures)):
        references = () if latents is None else (latents(np.array(picture)[None]),)
        given = Conditioning(
            inputs=_inputs(facts, encode(prompt, picture)),
            references=references,
            prompt_tokens=encode.tokens(prompt),
        )
        found += [Case(given=replace(given, mask=mask), prompt=number) for mask in masks_of(plan)]
    return found


def _other_kind(facts: ModelFacts, pictures: int) -> CalibrationError:
    if pictures:
        return CalibrationError(
            f"calibration of {facts.name} with {pictures} source pictures",
            expected="prompts alone, which is all that it draws from",
            fix="leave the pictures out",
        )
    return CalibrationError(
        f"calibration of {facts.name}, which edits pictures, with prompts alone",
        expected="a source picture for each prompt",
        fix="add them: 'fresco-trt calibrate' takes a folder of both with --pictures",
    )


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
