"""What the bench of editing measures: our own points, and the plain sampler as their control."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from fresco_trt.errors import FrescoError
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fresco_trt.plan.facts import ModelFacts

Group = Literal["plain", "few-step", "cache", "fresco", "specedit", "spotedit", "regione"]

GROUPS: tuple[Group, ...] = get_args(Group)

OURS: tuple[Group, ...] = ("cache", "fresco", "specedit")

PEERS: tuple[Group, ...] = ("spotedit", "regione")
"""What others do about edits, by their rules and constants; few-step is the control beside them."""

# Okabe and Ito's colours, told apart by people who see fewer of them.
COLOURS: Mapping[Group, str] = {
    "plain": "#000000",
    "few-step": "#7f7f7f",
    "cache": "#f0e442",
    "fresco": "#e69f00",
    "specedit": "#d55e00",
    "spotedit": "#0072b2",
    "regione": "#009e73",
}
"""What a group is drawn in, wherever it is."""

STAGES = 3
"""Of the presets that draw every token anew."""

FEW_STEPS = (10, 7, 5, 4, 3, 2)

TUNED: Mapping[int, float] = dict.fromkeys(FEW_STEPS, 1.15)
"""The log-shift of each few-step control that was best on other scenes than those measured."""

_ALONE = ((3, 2), (5, 2))
"""Interval and warm-up of a cache on the plain steps."""

_STAGED = ((2, 1), (3, 1))
"""The same on stages, which have few steps each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPoint:
    """One operating point: the ``preset`` by which engines draw it, None where a peer does."""

    group: Group
    label: str
    preset: Preset | None = None

    @property
    def name(self) -> str:
        """All that tells a point from the others, for people and for files."""
        return self.group if self.group == "plain" else f"{self.group}, {self.label}"


def points_of(facts: ModelFacts) -> tuple[EditPoint, ...]:
    """The plain edit, then the controls, then ours: each preset bare, and with a cache on it."""
    return (plain_point(facts), *_controls(), *_ours(facts))


def plain_point(facts: ModelFacts) -> EditPoint:
    """What every other point is compared with: the model's default steps."""
    steps = facts.default_steps
    return EditPoint(group="plain", label=f"{steps} steps", preset=Preset(steps=(steps,)))


def _controls() -> Iterator[EditPoint]:
    for steps in FEW_STEPS:
        preset = Preset(steps=(steps,))
        yield EditPoint(group="few-step", label=f"{steps} steps", preset=preset)
        mu = TUNED[steps]
        yield EditPoint(
            group="few-step",
            label=f"{steps} steps, mu {mu:g}",
            preset=replace(preset, shift=(math.exp(mu),)),
        )


def _ours(facts: ModelFacts) -> Iterator[EditPoint]:
    plain = Preset(steps=(facts.default_steps,))
    base = EditPoint(group="cache", label=f"{facts.default_steps} steps", preset=plain)
    yield from _cached(facts, base, _ALONE)
    for name, schedules in facts.presets.items():
        for stages, preset in schedules.items():
            if preset.edit is not None:
                label = f"{name}, {stages} stages"
                base = EditPoint(group="specedit", label=label, preset=preset)
            elif stages == STAGES:
                base = EditPoint(group="fresco", label=name, preset=preset)
            else:
                continue
            yield base
            if preset.cache == NO_CACHE:
                yield from _cached(facts, base, _STAGED[:1])


def _cached(
    facts: ModelFacts, base: EditPoint, paces: tuple[tuple[int, int], ...]
) -> Iterator[EditPoint]:
    """``base`` with HiCache at each pace; none where its stages are too short to skip a step."""
    if base.preset is None:
        return
    for interval, warmup in paces:
        cache = CacheConfig(name="hicache", interval=interval, warmup_steps=warmup)
        preset = replace(base.preset, cache=cache)
        try:
            plan_from_preset(facts, preset)
        except FrescoError:  # every step of stages so short is a full one
            continue
        yield replace(base, label=f"{base.label}, hicache {interval}", preset=preset)
