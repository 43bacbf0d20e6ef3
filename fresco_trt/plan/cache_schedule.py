"""From a plan of full steps to one with a cache: which steps are skipped.

After :mod:`fresco_trt.plan.making`, before anything is lowered. Every stage is treated alone: its
first step is full, and what the stage before computed is never used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.plan.caching import (
    SITES,
    cache_names,
    cache_traits,
    interval_actions,
    spelling_of,
    spelt_actions,
)
from fresco_trt.plan.config import NONE, CacheConfig
from fresco_trt.plan.grid import velocity_grid_of

if TYPE_CHECKING:
    from fresco_trt.plan.caching import Action, CachePlan, CacheTraits
    from fresco_trt.plan.stages import Stage, StagePlan

PLAIN_RULE = (7, 3)
"""Interval and warm-up of a one-stage plan: those of the papers' tables for FLUX.1-dev at 5.5x
(arXiv 2508.16984, 2601.07396)."""

STAGED_RULE = (2, 2)
"""The same for several stages, which have few steps each and start with an empty cache."""


def cached(plan: StagePlan, asked: CacheConfig) -> StagePlan:
    """``plan``, of full steps, with the cache that was asked for, which may be none.

    Raises PlanError for an unknown name, a wrong interval or a wrong word, and IncompatibleOptions
    for options that nothing would read, an order or a site that the predictor does not have,
    actions that do not fit the stages, and a rule that would skip no step.
    """
    check_read(asked)
    if asked.name == NONE:
        return plan
    traits = find_cache(asked.name)
    chosen = cache_settings(asked)
    may = _skippable(plan, traits)
    stages = _spelt(plan, asked.actions, may) if asked.actions else _ruled(plan, asked, may)
    if not any("bypass" in stage.actions for stage in stages):
        raise _skips_nothing(plan, asked)
    return replace(plan, stages=stages, cache=chosen)


def as_published(asked: CacheConfig, rows: Mapping[str, CacheConfig], stages: int) -> CacheConfig:
    """The cache that was asked for with what it leaves open as in the model's own of ``rows``, by
    name: the papers' tables, which know one stage. Several stages have the usual rule.
    """
    if asked.name not in rows or stages > 1:
        return asked
    keys = ("max_order",) if asked.actions else ("interval", "warmup_steps", "max_order")
    open_ = [key for key in keys if getattr(asked, key) is None]
    changes: dict[str, Any] = {key: getattr(rows[asked.name], key) for key in open_}
    return replace(asked, **changes)


def find_cache(name: str) -> CacheTraits:
    """The predictor called ``name``. Raises PlanError, with the nearest name."""
    known = cache_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise PlanError(
            f"--cache {name}",
            expected=f"one of {', '.join((NONE, *known))}",
            fix=f"did you mean {close[0]}?" if close else "pass one of those to --cache",
        )
    return cache_traits(name)


def cache_settings(asked: CacheConfig) -> CachePlan:
    """The predictor that was asked for, with its order and site; which steps is not looked at.

    Raises PlanError for an unknown name or site, IncompatibleOptions for an order or a site that
    the predictor does not have.
    """
    traits = find_cache(asked.name)
    settings = traits.settings()
    if asked.max_order is not None:
        if asked.max_order not in traits.orders:
            raise IncompatibleOptions(
                f"max_order={asked.max_order} in --cache {asked.name}",
                expected=f"{' or '.join(map(str, traits.orders))}: it has no other",
                fix=f"write max_order={traits.default_order}, or leave max_order out",
            )
        settings = replace(settings, max_order=asked.max_order)
    for site in SITES:
        if site == asked.site and site in traits.sites:
            return replace(settings, site=site)
    if asked.site is not None:
        is_known = asked.site in SITES
        raise (IncompatibleOptions if is_known else PlanError)(
            f"site={asked.site} in --cache {asked.name}",
            expected=f"{' or '.join(traits.sites)}: it predicts nothing else"
            + ("" if is_known else ", and nothing has that name"),
            fix="leave site out, or write --cache hicache with it"
            if is_known
            else f"leave site out for {traits.sites[0]}",
        )
    return settings


def check_read(asked: CacheConfig) -> None:
    """Raise IncompatibleOptions for options that nothing would read."""
    ruled = [key for key in ("interval", "warmup_steps") if getattr(asked, key) is not None]
    if asked.name == NONE and asked != CacheConfig():
        raise IncompatibleOptions(
            f"--cache {asked}, which asks for something without a cache",
            expected=f"one of {', '.join(cache_names())} first",
            fix="name one, like --cache hicache,interval=3, or leave all but none out",
        )
    if asked.actions and ruled:
        raise IncompatibleOptions(
            f"actions with {' and '.join(ruled)} in --cache {asked}",
            expected="either the actions themselves or the rule that makes them",
            fix="leave one of the two out",
        )
    if asked.basis is not None and not find_cache(asked.name).needs_basis:
        readers = [name for name in cache_names() if cache_traits(name).needs_basis]
        raise IncompatibleOptions(
            f"basis={asked.basis} in --cache {asked.name}",
            expected=f"no basis: only {', '.join(readers)} reads one",
            fix=f"leave basis out, or write --cache {readers[0]} with it",
        )


def _skippable(plan: StagePlan, traits: CacheTraits) -> frozenset[int]:
    """The stages, counted from 0, whose steps a predictor may answer."""
    if traits.predicts == "velocity":
        try:
            velocity_grid_of(plan.stages[-1].grid)
        except InvalidPlan as error:
            raise IncompatibleOptions(
                f"--cache {traits.name} on a grid of {plan.stages[-1].grid}",
                expected=error.expected,
                fix="pass a --size with such sides, or --cache hicache",
            ) from error
        return plan.finest
    rows = enumerate(plan.refined)
    return frozenset(index for index, refined in rows if not (refined and traits.needs_whole_grid))


def _ruled(plan: StagePlan, asked: CacheConfig, may: frozenset[int]) -> tuple[Stage, ...]:
    traits = cache_traits(asked.name)
    usual = PLAIN_RULE if len(plan.stages) == 1 else STAGED_RULE
    interval, warmup = (
        next(each for each in values if each is not None)
        for values in (
            (asked.interval, traits.interval, usual[0]),
            (asked.warmup_steps, traits.warmup_steps, usual[1]),
        )
    )
    return tuple(
        replace(stage, actions=interval_actions(stage.steps, interval, warmup))
        if index in may
        else stage
        for index, stage in enumerate(plan.stages)
    )


def _spelt(plan: StagePlan, words: Sequence[str], may: frozenset[int]) -> tuple[Stage, ...]:
    actions = [spelt_actions(word) for word in words]
    steps, given = [stage.steps for stage in plan.stages], f"actions={'+'.join(words)}"
    if [len(each) for each in actions] != steps:
        raise IncompatibleOptions(
            f"{given} of {_numbers([len(each) for each in actions])} steps",
            expected=f"{len(steps)} words of {_numbers(steps)} letters, one a stage of the plan",
            fix="write such words, or interval and warmup_steps",
        )
    for word, each in zip(words, actions, strict=True):
        _check_first(word, each)
    for index, each in enumerate(actions):
        if "bypass" in each and index not in may:
            raise IncompatibleOptions(
                f"{given}, with skipped steps in stage {index + 1}",
                expected=f"B in stage {_stages(may)} only: this cache needs a whole grid there",
                fix=f"write {'F' * len(each)} for that stage",
            )
    return tuple(
        replace(stage, actions=each) for stage, each in zip(plan.stages, actions, strict=True)
    )


def _check_first(word: str, actions: tuple[Action, ...]) -> None:
    if actions[0] != "full":
        raise IncompatibleOptions(
            f"actions with {word}, whose first step is a bypass",
            expected="an F first: the cache of a new stage is empty",
            fix=f"write F{word[1:]} for that stage",
        )


def _skips_nothing(plan: StagePlan, asked: CacheConfig) -> IncompatibleOptions:
    most = max(stage.steps for stage in plan.stages)
    words = [spelling_of(stage.actions) for stage in plan.stages]
    return IncompatibleOptions(
        f"--cache {asked.name} that skips none of the steps {'+'.join(asked.actions or words)}",
        expected=f"a step to skip: the longest stage has {most}",
        fix=(
            f"write interval=2 or more and warmup_steps below {most}, or leave --cache out"
            if most > 1
            else "pass a preset with more steps, or leave --cache out"
        ),
    )


def _stages(indices: frozenset[int]) -> str:
    return " and ".join(str(index + 1) for index in sorted(indices))


def _numbers(values: Sequence[int]) -> str:
    return "+".join(map(str, values))
