"""Every combination of stages, feature caches and precisions, as the bench's points.

Beside the methods' table (:mod:`fresco_trt.bench.points`): there each is compared with what others
offer, here with one another, to see whether what each saves multiplies and what each costs adds up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fresco_trt.bench.methods import Method, Point
from fresco_trt.bench.plain import Plain
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.caching import NO_CACHE, CacheChoice
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

QUANTS = (None, "int8", "fp8")
"""Recipes that engines are quantised by; None for what is not quantised."""

ALONE, STAGED = (5, 3), (3, 1)
"""Interval and warm-up of a cache on the plain steps, and on the few of a stage."""

_CACHES = ("hicache", "svd")
_QUICK = ("balanced", "hicache", "int8")


def combined_points(facts: ModelFacts) -> tuple[Point, ...]:
    """The plain pipeline, then every combination; those without quantisation before those with.

    A preset whose stages are too short for a cache's interval has no point with that cache.
    """
    plain = Point(method="plain", recipe=Plain(steps=facts.default_steps), quick=True)
    bare = [
        replace(point, quant=quant) for quant in QUANTS for point in _bare(facts) if point != plain
    ]
    return (plain, *(replace(point, quick=_is_quick(point)) for point in bare))


def _is_quick(point: Point) -> bool:
    base, cache = point.preset, str(point.variant).split(",", maxsplit=1)[0]
    return base == _QUICK[0] and cache in ("no cache", _QUICK[1]) and point.quant in (None, "int8")


def _bare(facts: ModelFacts) -> Iterator[Point]:
    """Every preset, and the plain steps on one engine, with every cache, unquantised."""
    stages = max(facts.stage_counts)
    engine = f"{facts.default_steps} steps"
    yield from _cached(facts, "cache", engine, Preset(steps=(facts.default_steps,)), ALONE)
    for name in facts.presets:
        if stages in facts.presets[name]:
            base = replace(find_preset(facts, name, stages), cache=NO_CACHE)
            yield from _cached(facts, "fresco", name, base, STAGED)


def _cached(
    facts: ModelFacts, method: Method, name: str, base: Preset, pace: tuple[int, int]
) -> Iterator[Point]:
    own: Method = "few-step" if method == "cache" else method
    yield Point(method=own, recipe=base, preset=name, variant="no cache")
    interval, warmup = pace
    for cache in _CACHES:
        choice = CacheChoice(name=cache, interval=interval, warmup=warmup)
        recipe = replace(base, cache=choice)
        try:
            plan_from_preset(facts, recipe)
        except IncompatibleOptions:  # every step of stages so short is a full one
            continue
        variant = f"{cache}, interval {interval}"
        yield Point(method=method, recipe=recipe, preset=name, variant=variant)
