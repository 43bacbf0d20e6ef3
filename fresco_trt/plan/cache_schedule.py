"""From a plan of full steps to one with a cache: which steps are skipped.

After :mod:`fresco_trt.plan.making`, before anything is lowered. Every stage is treated alone: its
first step is full, and what the stage before computed is never used.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.plan.caching import (
    CACHES,
    DEFAULTS,
    NONE,
    ORDERS,
    SITES,
    VELOCITY_SITE,
    CacheChoice,
    CacheName,
    CacheSite,
    interval_actions,
    spelling_of,
    spelt_actions,
)
from fresco_trt.plan.grid import velocity_grid_of

if TYPE_CHECKING:
    from fresco_trt.plan.caching import Action, CachePlan
    from fresco_trt.plan.stages import Stage, StagePlan

PLAIN_RULE = (7, 3)
"""Interval and warm-up of a one-stage plan: those of the papers' tables for FLUX.1-dev at 5.5x
(arXiv 2508.16984, 2601.07396)."""

STAGED_RULE = (2, 2)
"""The same for several stages, which have few steps each and start with an empty cache."""

VELOCITY_RULE = (2, 1)
"""The same for coarse_velocity, whatever the stages: after every full step a coarse one."""


def cached(plan: StagePlan, choice: CacheChoice) -> StagePlan:
    """``plan``, of full steps, with the cache that was chosen, which may be none.

    Raises PlanError for an unknown name, a wrong interval or a wrong word, and IncompatibleOptions
    for options that nothing would read, an order that the predictor does not have, actions that do
    not fit the stages, and a rule that would skip no step.
    """
    check_read(choice)
    if choice.name == NONE:
        return plan
    chosen = of_order(_at_site(find_cache(choice.name), choice.site), choice.order)
    may = _skippable(plan, chosen)
    stages = _spelt(plan, choice.actions, may) if choice.actions else _ruled(plan, choice, may)
    if not any("bypass" in stage.actions for stage in stages):
        raise _skips_nothing(plan, choice)
    return replace(plan, stages=stages, cache=chosen)


def _skippable(plan: StagePlan, cache: CachePlan) -> frozenset[int]:
    """The stages, counted from 0, whose steps ``cache`` may answer."""
    if cache.site != "velocity":
        return frozenset(range(len(plan.stages)))
    try:
        velocity_grid_of(plan.stages[-1].grid)
    except InvalidPlan as error:
        raise IncompatibleOptions(
            f"--cache coarse_velocity on a grid of {plan.stages[-1].grid}",
            expected=error.expected,
            fix="pass a --size with such sides, or --cache hicache",
        ) from error
    return plan.finest


def find_cache(name: str) -> CachePlan:
    """The settings of the predictor called ``name``. Raises PlanError, with the nearest name."""
    known: dict[str, CacheName] = {each: each for each in CACHES}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise PlanError(
            f"--cache {name}",
            expected=f"one of {', '.join((NONE, *CACHES))}",
            fix=f"did you mean {close[0]}?" if close else "pass one of those to --cache",
        )
    return DEFAULTS[known[name]]


def _at_site(cache: CachePlan, site: str | None) -> CachePlan:
    """``cache`` with its features taken at ``site``, None being where it has them already."""
    if site is None:
        return cache
    known: dict[str, CacheSite] = {each: each for each in SITES}
    if site not in known:
        raise PlanError(
            f"--site {site}",
            expected=f"one of {', '.join(SITES)}",
            fix="leave --site out for the final one",
        )
    if "velocity" in (cache.site, site) and cache.site != site:
        raise IncompatibleOptions(
            f"--site {site} with --cache {cache.name}",
            expected=VELOCITY_SITE,
            fix="leave --site out",
        )
    if (cache.name, site) == ("svd", "trunk"):
        raise IncompatibleOptions(
            "--site trunk with --cache svd",
            expected="--site final: its basis is measured there",
            fix="leave --site out, or pass --cache hicache",
        )
    return replace(cache, site=known[site])


def of_order(cache: CachePlan, order: int | None) -> CachePlan:
    """``cache`` with an extrapolation of ``order``, None being the order that it has already.

    Raises IncompatibleOptions for an order that its predictor does not have.
    """
    if order is None:
        return cache
    orders = ORDERS[cache.name]
    if order not in orders:
        known = " or ".join(map(str, orders))
        raise IncompatibleOptions(
            f"--order {order} with --cache {cache.name}",
            expected=f"{known}: it has no other",
            fix=f"pass --order {cache.order}, or leave --order out",
        )
    return replace(cache, order=order)


def _ruled(plan: StagePlan, choice: CacheChoice, may: frozenset[int]) -> tuple[Stage, ...]:
    interval, warmup = PLAIN_RULE if len(plan.stages) == 1 else STAGED_RULE
    if choice.name == "coarse_velocity":
        interval, warmup = VELOCITY_RULE
    interval = interval if choice.interval is None else choice.interval
    warmup = warmup if choice.warmup is None else choice.warmup
    return tuple(
        replace(stage, actions=interval_actions(stage.steps, interval, warmup))
        if index in may
        else stage
        for index, stage in enumerate(plan.stages)
    )


def _spelt(plan: StagePlan, words: Sequence[str], may: frozenset[int]) -> tuple[Stage, ...]:
    actions = [spelt_actions(word) for word in words]
    steps = [stage.steps for stage in plan.stages]
    if [len(each) for each in actions] != steps:
        raise IncompatibleOptions(
            f"--actions {','.join(words)} of {_numbers([len(each) for each in actions])} steps",
            expected=f"{len(steps)} words of {_numbers(steps)} letters, one a stage of the plan",
            fix="pass such words, or --interval and --warmup",
        )
    for word, each in zip(words, actions, strict=True):
        _check_first(word, each)
    for index, each in enumerate(actions):
        if "bypass" in each and index not in may:
            raise IncompatibleOptions(
                f"--actions {','.join(words)}, with coarse steps in stage {index + 1}",
                expected="B on the whole grid of full resolution only",
                fix=f"pass {'F' * len(each)} for that stage",
            )
    return tuple(
        replace(stage, actions=each) for stage, each in zip(plan.stages, actions, strict=True)
    )


def _check_first(word: str, actions: tuple[Action, ...]) -> None:
    if actions[0] != "full":
        raise IncompatibleOptions(
            f"--actions with {word}, whose first step is a bypass",
            expected="an F first: the cache of a new stage is empty",
            fix=f"pass F{word[1:]} for that stage",
        )


def check_read(choice: CacheChoice) -> None:
    """Raise IncompatibleOptions for options that nothing would read."""
    given = {
        "--interval": choice.interval is not None,
        "--warmup": choice.warmup is not None,
        "--actions": choice.actions is not None,
        "--site": choice.site is not None,
        "--order": choice.order is not None,
    }
    asked = [name for name, is_given in given.items() if is_given]
    if choice.name == NONE and asked:
        raise IncompatibleOptions(
            f"{' and '.join(asked)} without a cache",
            expected=f"--cache with one of {', '.join(CACHES)}",
            fix=f"pass --cache hicache, or leave {' and '.join(asked)} out",
        )
    ruled = [name for name in asked if name in ("--interval", "--warmup")]
    if choice.actions is not None and ruled:
        raise IncompatibleOptions(
            f"--actions with {' and '.join(ruled)}",
            expected="either the actions themselves or the rule that makes them",
            fix="leave one of the two out",
        )


def _skips_nothing(plan: StagePlan, choice: CacheChoice) -> IncompatibleOptions:
    most = max(stage.steps for stage in plan.stages)
    words = ",".join(spelling_of(stage.actions) for stage in plan.stages)
    asked = words if choice.actions is None else ",".join(choice.actions)
    return IncompatibleOptions(
        f"--cache {choice.name} that skips none of the steps {asked}",
        expected=f"a step to skip: the longest stage has {most}",
        fix=(
            f"pass --interval 2 or more and --warmup below {most}, or leave --cache out"
            if most > 1
            else "pass a preset with more steps, or leave --cache out"
        ),
    )


def _numbers(values: Sequence[int]) -> str:
    return "+".join(map(str, values))
