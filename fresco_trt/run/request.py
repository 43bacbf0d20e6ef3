"""One sampling request: all that the loop reads, checked before any engine runs.

First stop of :mod:`fresco_trt.run.sampler`. What can be refused is refused here, with every part at
hand, so that a wrong request never gets half way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.plan.stages import SIGMA_TOLERANCE
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.transition import check_generator, check_transition, draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.layout import Layout
    from fresco_trt.run.noise import NoisePyramid
    from fresco_trt.run.selection import Choice


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """The arguments of :func:`fresco_trt.run.sampler.sample`; raises ``ValueError`` as it says."""

    plan: StagePlan
    runners: Mapping[str, Runner]
    inputs: Mapping[str, Tensor]
    pyramid: NoisePyramid
    layout: Layout
    generator: torch.Generator | None
    choice: Choice
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        _check_start(self.plan)
        _check_engines(self.plan, self.runners)
        _check_grids(self.plan, self.pyramid)
        check_transitions(self.plan)
        for index in range(len(self.plan.stages)):
            StageCache.of(self.plan, index, self.basis)
        check_generator(self.generator, wanted=any(map(draws, self.plan.transitions)))


def engine_name(stage: int, action: str) -> str:
    """Name of the engine that carries out ``action`` in the stage counted from 0."""
    return f"stage{stage + 1}.{action}"


def coarse_grid(plan: StagePlan, stage: int) -> Grid:
    """The grid of the tokens of a stage, counted from 0, that are still to be expanded.

    The stage's own, or where it is mixed that of the last whole grid before it.
    """
    while plan.refined[stage]:
        stage -= 1
    return plan.stages[stage].grid


def check_transitions(plan: StagePlan) -> None:
    """Raise ``ValueError`` for a transition that cannot be applied exactly as it is written."""
    for index, transition in enumerate(plan.transitions):
        scale, scale_next = coarse_grid(plan, index).scale, plan.stages[index + 1].grid.scale
        check_transition(transition, scale=scale, scale_next=scale_next)


def _check_start(plan: StagePlan) -> None:
    start = plan.stages[0].sigmas[0]
    if abs(start - 1.0) > SIGMA_TOLERANCE:
        raise ValueError(
            f"plan starts at sigma {start:g}; expected 1: below it there is a picture to start from"
        )


def _check_engines(plan: StagePlan, runners: Mapping[str, Runner]) -> None:
    for index, action in plan.graphs:
        if engine_name(index, action) not in runners:
            raise ValueError(
                f"no runner named {engine_name(index, action)!r} among {sorted(runners)};"
                " expected one per stage and action of the plan"
            )


def _check_grids(plan: StagePlan, pyramid: NoisePyramid) -> None:
    for stage in plan.stages:
        side = tuple(pyramid.field(stage.grid.scale).shape[-2:])
        if side != (stage.grid.height, stage.grid.width):
            raise ValueError(
                f"noise of {side} latent pixels at scale {stage.grid.scale:g};"
                f" expected the grid's {(stage.grid.height, stage.grid.width)}"
            )
    batch = len(pyramid.fields[0])
    if batch != 1 and any(plan.refined):
        raise ValueError(
            f"a batch of {batch} on a mixed grid; expected one picture: each chooses its own"
            " tokens, and an engine takes one table of positions"
        )
