"""Candidates beside a candidate: one thing changed. Numbers only.

Random plans find which kinds are good; the best of a kind lies beside a good one. Every leader of a
contest has neighbours, the control among them, so that no side is searched more closely than the
other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from fresco_trt.errors import FrescoError
from fresco_trt.plan.caching import cache_traits, spelling_of
from fresco_trt.plan.config import NONE
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import SOLVERS
from fresco_trt.tune.families import (
    ATTEMPTS,
    CARRIES,
    LOG_SHIFTS,
    Candidate,
    Ground,
    caches_of,
    plan_of,
    random_cache,
)

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

_Value = TypeVar("_Value")

Change = Callable[[Preset, Ground, random.Random], Preset | None]
"""A preset with one thing changed; None where it has no such thing."""

FARTHEST = 0.5
"""The most by which a log-shift changes, and the logarithm of a switch's distance to sigma 1."""


def neighbours(
    leader: Candidate,
    ground: Ground,
    accepts: Callable[[StagePlan], bool],
    *,
    count: int,
    known: Sequence[Candidate] = (),
) -> list[Candidate]:
    """Up to ``count`` acceptable neighbours whose plans are not among ``known``; the same leader,
    the same ones.
    """
    rng = random.Random(leader.plan.digest())
    seen = {leader.plan.digest(), *(each.plan.digest() for each in known)}
    found: list[Candidate] = []
    for _ in range(ATTEMPTS * count):
        if len(found) == count:
            break
        preset = None
        with suppress(FrescoError):  # numbers that make no preset
            preset = rng.choice(CHANGES)(_spelt(leader), ground, rng)
        plan = None if preset is None else plan_of(ground, preset)
        if preset is None or plan is None or plan.digest() in seen or not accepts(plan):
            continue
        seen.add(plan.digest())
        name = f"{leader.name}, beside it {len(found) + 1}"
        found.append(Candidate(name=name, family=leader.family, preset=preset, plan=plan))
    return found


def _spelt(leader: Candidate) -> Preset:
    """The preset with its cache's steps one by one."""
    preset = leader.preset
    if preset.cache.name == NONE:
        return preset
    words = tuple(spelling_of(stage.actions) for stage in leader.plan.stages)
    return replace(
        preset, cache=replace(preset.cache, actions=words, interval=None, warmup_steps=None)
    )


# --- one thing --------------------------------------------------------------------------------


def _shift(preset: Preset, ground: Ground, rng: random.Random) -> Preset:
    """The time shift of one stage, a little; where it is the model's own, any."""
    if preset.shift is None:
        return replace(preset, shift=(_factor(rng.choice(LOG_SHIFTS)),))
    place = rng.randrange(len(preset.shift))
    moved = math.log(preset.shift[place]) + rng.uniform(-FARTHEST, FARTHEST)
    return replace(preset, shift=_with(preset.shift, place, _factor(moved)))


def _solver(preset: Preset, ground: Ground, rng: random.Random) -> Preset:
    return replace(preset, solver=rng.choice([each for each in SOLVERS if each != preset.solver]))


def _steps(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """A step more or less in one stage, in full or skipped."""
    place = rng.randrange(len(preset.steps))
    count = preset.steps[place] + rng.choice((-1, 1))
    if count < 1:
        return None
    steps = _with(preset.steps, place, count)
    if preset.cache.name == NONE:
        return replace(preset, steps=steps)
    word = preset.cache.actions[place]
    at = rng.randint(1, len(word))
    if count > len(word):
        word = word[:at] + rng.choice("FB") + word[at:]
    else:
        at = min(at, len(word) - 1)
        word = word[:at] + word[at + 1 :]
    actions = _with(preset.cache.actions, place, word)
    return replace(preset, steps=steps, cache=replace(preset.cache, actions=actions))


def _actions(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """Two steps next to each other in turn, or one that is skipped and was not, or the reverse."""
    cache = preset.cache
    places = [place for place, word in enumerate(cache.actions) if "B" in word]
    if not places:
        return None
    place = rng.choice(places)
    word = cache.actions[place]
    at = rng.randrange(1, len(word))
    if rng.random() < 0.5:
        word = word[:at] + ("B" if word[at] == "F" else "F") + word[at + 1 :]
    elif at + 1 < len(word):
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return replace(preset, cache=replace(cache, actions=_with(cache.actions, place, word)))


def _predictor(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """Another predictor of the same thing, another order or site."""
    if preset.cache.name == NONE:
        return None
    name = rng.choice(caches_of(cache_traits(preset.cache.name).predicts))
    return replace(preset, cache=random_cache(rng, name, preset.cache.actions))


def _switch(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """One hand-over, earlier or later."""
    if not preset.switch:
        return None
    place = rng.randrange(len(preset.switch))
    distance = (1 - preset.switch[place]) * math.exp(rng.uniform(-FARTHEST, FARTHEST))
    return replace(preset, switch=_with(preset.switch, place, round(1 - distance, 3)))


def _carry(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """How latents and noise go over."""
    if not preset.switch:
        return None
    lift, noise = rng.choice(CARRIES)
    return replace(preset, lift=lift, noise=noise)


def _restart(preset: Preset, ground: Ground, rng: random.Random) -> Preset | None:
    """Where the next stage begins."""
    if not preset.switch:
        return None
    return replace(preset, restart="same" if preset.restart == "rewind" else "rewind")


CHANGES: tuple[Change, ...] = (
    _shift,
    _solver,
    _steps,
    _actions,
    _predictor,
    _switch,
    _carry,
    _restart,
)


def _factor(log_shift: float) -> float:
    return round(math.exp(log_shift), 2)


def _with(values: tuple[_Value, ...], place: int, value: _Value) -> tuple[_Value, ...]:
    return (*values[:place], value, *values[place + 1 :])
