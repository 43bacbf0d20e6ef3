"""Who competes: candidates of every family that the target allows, by their measured speed.

Numbers only; between the measured seconds and the contest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fresco_trt.tune.cost import Seconds, plan_seconds
from fresco_trt.tune.families import (
    FAMILIES,
    Candidate,
    Family,
    Ground,
    controls,
    plain,
    reference,
    sampled,
)

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

SLACK = 1.3
"""A candidate may be this many times faster than asked: slower ones are nearly always closer."""

BANDS = (1.3, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0, 20.0, 40.0)
"""Speeds between which candidates are spread where closeness is the target."""

FALLBACK = 8
"""The fastest plans that compete where none is as fast as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrants:
    """Candidates and their speeds by name; ``reached`` says whether they are as fast as asked."""

    candidates: tuple[Candidate, ...]
    speeds: dict[str, float]
    reached: bool = True


def universe(ground: Ground, count: int, families: Sequence[Family] = FAMILIES) -> list[Candidate]:
    """Candidates of every family whatever they cost, among them every kind of engine, and a
    control of one step: what engines are built for and steps are timed on.
    """
    found = controls(ground, 1)[:1]
    for family in families:
        found += sampled(family, ground, lambda plan: True, count=count)
    return found


def entrants(
    ground: Ground,
    seconds: Seconds,
    target: float | None,
    count: int,
    families: Sequence[Family] = FAMILIES,
) -> Entrants:
    """About ``count`` candidates at the ``target`` speed, evenly of all families, and the controls;
    without a target at all speeds.
    """
    speed = speed_by(ground, seconds)
    each = max(1, count // max(1, len(families)))
    if target is None:
        found = [*_spread(ground, speed, each, families), *_ladder(ground, speed, count)]
    else:
        found = [*_at(ground, speed, each, families, target), *_controls_at(ground, speed, target)]
    reached = bool(found)
    if not found:
        found = fastest(universe(ground, each * 4, families), speed)
    return Entrants(
        candidates=tuple(found),
        speeds={one.name: speed(one.plan) or 0.0 for one in found},
        reached=reached,
    )


Speed = Callable[["StagePlan"], float | None]


def speed_by(ground: Ground, seconds: Seconds) -> Speed:
    """How many times less time than the many steps a plan takes; None where it was not timed."""
    whole = plan_seconds(reference(ground), seconds)
    if whole is None:
        raise ValueError("the many steps were not timed; expected them among the timed plans")

    def speed(plan: StagePlan) -> float | None:
        found = plan_seconds(plan, seconds)
        return None if found is None else whole / found

    return speed


def _at(
    ground: Ground, speed: Speed, count: int, families: Sequence[Family], target: float
) -> Iterator[Candidate]:
    for family in families:
        yield from sampled(
            family, ground, within(speed, target, SLACK * target), count=count, seed=1
        )


def within(speed: Speed, low: float, high: float) -> Callable[[StagePlan], bool]:
    """Whether a plan's speed was measured and lies there."""

    def accepts(plan: StagePlan) -> bool:
        found = speed(plan)
        return found is not None and low <= found < high

    return accepts


def _controls_at(ground: Ground, speed: Speed, target: float) -> list[Candidate]:
    """Plain sampling with the most steps that are as fast as asked."""
    for steps in range(ground.default_steps - 1, 0, -1):
        if (speed(plain(ground, steps)) or 0.0) >= target:
            return controls(ground, steps)
    return []


def _spread(
    ground: Ground, speed: Speed, count: int, families: Sequence[Family]
) -> Iterator[Candidate]:
    """Some candidates of every family in each band of speeds."""
    bands = list(pairwise(BANDS))
    for family in families:
        for place, (low, high) in enumerate(bands):
            few = sampled(
                family,
                ground,
                within(speed, low, high),
                count=max(1, count // len(bands)),
                seed=2 + place,
            )
            for each in few:
                yield Candidate(
                    name=f"{each.name} of {low:g}x to {high:g}x",
                    family=each.family,
                    preset=each.preset,
                    plan=each.plan,
                )


def _ladder(ground: Ground, speed: Speed, count: int) -> Iterator[Candidate]:
    """About ``count`` controls: in each band of speeds the most steps that are so fast, as users
    have them and at some of the other shifts and solvers.
    """
    rng = random.Random("few-step")
    for low, high in pairwise(BANDS):
        for steps in range(ground.default_steps - 1, 0, -1):
            if within(speed, low, high)(plain(ground, steps)):
                first, *others = controls(ground, steps)
                yield first
                yield from rng.sample(others, min(len(others), count // len(BANDS)))
                break


def fastest(candidates: Sequence[Candidate], speed: Speed) -> list[Candidate]:
    """The fastest of all, and the fastest control."""
    timed = [each for each in candidates if speed(each.plan) is not None]
    order = sorted(timed, key=lambda each: -(speed(each.plan) or 0.0))
    control = [each for each in order if each.is_control][:1]
    return [*control, *(each for each in order if each not in control)][:FALLBACK]
