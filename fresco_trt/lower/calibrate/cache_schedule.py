"""Which steps of a plan may be skipped: measured, by what a predictor makes of true trajectories.

Beside the build, as `fresco-trt calibrate --measure cache-schedule`. Every step is run in full, for
a few prompts side by side; before each of them the predictor says what it would have given instead,
from the full steps that were kept so far, and a step is skipped where the velocity that follows is
wrong by no more than the tolerance. What it gives is a list of actions, for
`--cache NAME,actions=...`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.backends.base import Progress, silent
from fresco_trt.backends.eager import module_runner
from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate.trajectories import Seen, in_full, walks
from fresco_trt.plan.caching import spelling_of
from fresco_trt.run.cache.stage_cache import StageCache

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.backends.base import EngineRunner
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.plan.caching import Action, CachePlan
    from fresco_trt.plan.stages import StagePlan

TOLERANCES = (0.02, 0.05, 0.1, 0.2)
"""Errors of the velocity, relative to its norm, that lists are made for unless others are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSchedule:
    """One list of actions, a word a stage; ``errors`` [stage][step] are the mean relative errors of
    the velocity where it was predicted, whether it was taken or not, None at a stage's first step.
    """

    tolerance: float
    actions: tuple[str, ...]
    errors: tuple[tuple[float | None, ...], ...]

    @property
    def full_steps(self) -> int:
        """Steps that run the whole network."""
        return sum(word.count("F") for word in self.actions)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "tolerance": self.tolerance,
            "actions": list(self.actions),
            "full_steps": self.full_steps,
            "errors": [list(stage) for stage in self.errors],
        }


@dataclass(slots=True, kw_only=True)
class _Run:
    """One tolerance on its way: a cache a prompt, and what was decided in each stage so far."""

    tolerance: float
    caches: list[StageCache] = field(default_factory=list)
    actions: list[list[Action]] = field(default_factory=list)
    errors: list[list[float | None]] = field(default_factory=list)

    def enter(self, caches: Sequence[StageCache]) -> None:
        self.caches = list(caches)
        self.actions.append([])
        self.errors.append([])

    def decide(self, seen: Sequence[Seen], bypass: EngineRunner) -> None:
        """Skip the step that every prompt is at, or keep its features."""
        error = None
        if self.actions[-1]:
            pairs = zip(self.caches, seen, strict=True)
            error = statistics.fmean(_error(cache, each, bypass) for cache, each in pairs)
        skipped = error is not None and error <= self.tolerance
        self.actions[-1].append("bypass" if skipped else "full")
        self.errors[-1].append(error)
        if not skipped:
            for cache, each in zip(self.caches, seen, strict=True):
                cache.observe(each.feature, each.step)

    def schedule(self) -> CacheSchedule:
        return CacheSchedule(
            tolerance=self.tolerance,
            actions=tuple(spelling_of(each) for each in self.actions),
            errors=tuple(tuple(each) for each in self.errors),
        )


def measure_cache_schedule(
    reference: Reference,
    plan: StagePlan,
    cache: CachePlan,
    tolerances: Sequence[float] = TOLERANCES,
    *,
    basis: Tensor | None = None,
    progress: Progress = silent,
) -> tuple[CacheSchedule, ...]:
    """Lists of actions for ``plan``, one a tolerance, all from the same trajectories.

    ``basis`` is for a cache that needs one. Raises CalibrationError for a tolerance that is not
    above 0.
    """
    for tolerance in tolerances:
        if not 0.0 < tolerance < float("inf"):
            raise CalibrationError(
                f"a tolerance of {tolerance:g}",
                expected="an error above 0, relative to the velocity",
                fix=f"pass one like {TOLERANCES[1]:g}",
            )
    whole = in_full(plan)
    runs = [_Run(tolerance=tolerance) for tolerance in tolerances]
    done, paths = 0, len(whole.paths)
    with ExitStack() as scope:
        bypasses = _bypasses(reference, whole, scope)
        every = walks(reference, whole, scope)
        for seen in chain(*(zip(*every[path::paths], strict=True) for path in range(paths))):
            stage, done = seen[0].stage, done + 1
            progress("measuring the cache schedule", done / (paths * whole.nfe))
            for run in runs:
                if len(run.actions) == stage:
                    run.enter([StageCache.over(whole, stage, cache, basis) for _ in seen])
                # The draft of an edit is decided on the way to the stage that comes first.
                if len(run.actions) == stage + 1:
                    run.decide(seen, bypasses[stage])
    return tuple(run.schedule() for run in runs)


def _bypasses(reference: Reference, plan: StagePlan, scope: ExitStack) -> list[EngineRunner]:
    found = []
    facts, graphs = reference.facts, reference.family.graphs
    for index in range(len(plan.stages)):
        signature = graphs.signature(facts, plan, index, "bypass", text_tokens=facts.text_tokens)
        graph = graphs.module(reference.transformer, signature)
        found.append(scope.enter_context(module_runner(graph, signature)))
    return found


def _error(cache: StageCache, seen: Seen, bypass: EngineRunner) -> float:
    """Error of the velocity from the predicted feature, relative to the norm of the true one."""
    given = {**seen.inputs, "feature": cache.predict(seen.step)}
    wanted = {spec.name: given[spec.name] for spec in bypass.signature.inputs}
    velocity = bypass(wanted)["velocity"]
    return float(torch.linalg.vector_norm(velocity - seen.velocity)) / float(
        torch.linalg.vector_norm(seen.velocity)
    )
