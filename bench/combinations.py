"""Every combination of stages, feature caches, precisions and distilling, in one run.

    python -m bench.combinations --out bench/results

Beside the command's own points (:mod:`fresco_trt.bench.points`): there each is compared with what
others offer, here with one another, to see whether what each saves multiplies and what each costs
adds up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from bench.study import SOURCES, command
from bench.tables import combinations_table
from fresco_trt.bench.job import Study
from fresco_trt.bench.methods import Method, Point
from fresco_trt.bench.plain import Plain
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.pretrained import siblings
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from fresco_trt.plan import sizes
    from fresco_trt.plan.facts import ModelFacts

QUANTS = (None, "int8-smooth", "fp8")
"""Recipes that engines are quantised by; None for what is not quantised."""

ALONE, STAGED = (5, 3), (3, 1)
"""Interval and warm-up of a cache on the plain steps, and on the few of a stage."""

FEW = (2, 1)
"""The same on a stage of a distilled model, which has even fewer."""

_CACHES = ("hicache", "svd")
_QUICK = ("balanced", "hicache", "int8-smooth")


def packaged_points(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """Every combination of a model that ships with the package, and of those distilled from it."""
    return combined_points(facts, [model_facts(name) for name in siblings(facts.name)])


def own_points(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """Every combination of the model alone: siblings were distilled from the packaged weights."""
    return combined_points(facts)


def combined_points(facts: ModelFacts, distilled: Sequence[ModelFacts] = ()) -> tuple[Point, ...]:
    """The plain pipeline, then every combination; those without quantisation before those with.

    ``distilled`` siblings come after the model itself, and with them its own plain steps, as few as
    theirs, for what the distilling is worth. A preset whose stages are too short for a cache's
    interval has no point with that cache.
    """
    plain = Point(method="plain", settings=Plain(steps=facts.default_steps), quick=True)
    bare = [*_bare(facts, ALONE, STAGED)]
    for steps in dict.fromkeys(each.default_steps for each in distilled):
        if steps != facts.default_steps:
            bare.append(_steps(steps))
    for each in distilled:
        bare += [replace(point, model=each.name) for point in _bare(each, ALONE, FEW)]
    points = (replace(point, quant=quant) for quant in QUANTS for point in bare)
    return (plain, *(replace(point, quick=_is_quick(point)) for point in points))


def _is_quick(point: Point) -> bool:
    base, cache = point.preset, str(point.variant).split(",", maxsplit=1)[0]
    quant = point.quant in (None, _QUICK[2])
    return base == _QUICK[0] and cache in ("no cache", _QUICK[1]) and quant


def _steps(steps: int) -> Point:
    """The plain steps on one engine."""
    settings = Preset(steps=(steps,))
    return Point(method="few-step", settings=settings, preset=f"{steps} steps", variant="no cache")


def _bare(facts: ModelFacts, alone: tuple[int, int], staged: tuple[int, int]) -> Iterator[Point]:
    """Every preset, and the plain steps on one engine, with every cache, unquantised."""
    stages = max(facts.stage_counts)
    yield from _cached(facts, "cache", _steps(facts.default_steps), alone)
    for name in facts.presets:
        if stages in facts.presets[name]:
            settings = replace(find_preset(facts, name, stages), cache=NO_CACHE)
            base = Point(method="fresco", settings=settings, preset=name, variant="no cache")
            yield from _cached(facts, "fresco", base, staged)


def _cached(
    facts: ModelFacts, method: Method, base: Point, pace: tuple[int, int]
) -> Iterator[Point]:
    """``base``, whose settings are a preset, and by ``method`` the same with each cache in use."""
    yield base
    if not isinstance(base.settings, Preset):
        return
    interval, warmup = pace
    for cache in _CACHES:
        choice = CacheConfig(name=cache, interval=interval, warmup_steps=warmup)
        settings = replace(base.settings, cache=choice)
        try:
            plan_from_preset(facts, settings)
        except IncompatibleOptions:  # every step of stages so short is a full one
            continue
        variant = f"{cache}, interval {interval}"
        yield replace(base, method=method, settings=settings, variant=variant)


STUDY = Study(
    name="combinations",
    program="python -m bench.combinations",
    points="bench.combinations:packaged_points",
    table=combinations_table,
    sources=SOURCES,
)


def study_of(weights: str | None) -> Study:
    """The study of the packaged weights, or of those at some path."""
    return STUDY if weights is None else replace(STUDY, points="bench.combinations:own_points")


main = command(
    "Measure stages, caches, precisions and distilled models in every combination.",
    study_of,
)

if __name__ == "__main__":
    typer.run(main)
