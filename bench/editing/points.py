"""What the bench of editing measures: our points, those of others, and the plain sampler as the
control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from fresco_trt.bench.methods import CacheDit, FirstBlock, TaylorSeer
from fresco_trt.errors import FrescoError
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import Solver

Group = Literal[
    "plain",
    "few-step",
    "cache",
    "fresco",
    "specedit",
    "spotedit",
    "regione",
    "taylorseer",
    "first-block",
    "cache-dit",
]

GROUPS: tuple[Group, ...] = get_args(Group)

OURS: tuple[Group, ...] = ("cache", "fresco", "specedit")

PEERS: tuple[Group, ...] = ("spotedit", "regione", "taylorseer", "first-block", "cache-dit")
"""What others do: about edits, by their rules and constants, and about any steps of diffusers'
pipeline. Few-step is the control beside them.
"""

# Okabe and Ito's colours, told apart by people who see fewer of them, and a brown.
COLOURS: Mapping[Group, str] = {
    "plain": "#000000",
    "few-step": "#7f7f7f",
    "cache": "#f0e442",
    "fresco": "#e69f00",
    "specedit": "#d55e00",
    "spotedit": "#0072b2",
    "regione": "#009e73",
    "taylorseer": "#56b4e9",
    "first-block": "#cc79a7",
    "cache-dit": "#a0522d",
}
"""What a group is drawn in, wherever it is."""

STAGES = 3
"""Of the presets that draw every token anew; selective ones have as many as there are."""

FEW_STEPS = (10, 7, 5, 4, 3, 2, 1)

TUNED: Mapping[int, float] = dict.fromkeys((7, 5, 4, 3), 1.15)
"""The log-shift of few-step controls that was best, on other scenes than those measured. One step
goes from 1 to 0 whatever the shift.
"""

SOLVERS: tuple[Solver, ...] = ("dpmpp_2m", "unipc")
"""Of second order: tuned controls are drawn by each of them too."""

PEER_STEPS = (28, 14, 7)
"""The first are those of the published constants."""

_ALONE = ((4, 2),)
"""Interval and warm-up of a cache on the plain steps."""

_STAGED = ((2, 1),)
"""The same on stages, which have few steps each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """How a peer draws: its rule's name, its steps, and of RegionE's whether gamma, which is
    another model's, is fitted to this one, as its authors do for each model.
    """

    rule: Literal["spotedit", "regione"]
    steps: int
    is_fitted: bool = False


Hook = TaylorSeer | FirstBlock | CacheDit
"""How caches are put upon diffusers' pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPoint:
    """One operating point, by the ``preset`` that engines draw or by a peer's settings; ``quant``
    names the recipe that its engines are quantised by, None where they are not.
    """

    group: Group
    label: str
    preset: Preset | None = None
    peer: PeerSettings | Hook | None = None
    quant: str | None = None

    @property
    def name(self) -> str:
        """All that tells a point from the others, for people and for files."""
        # A preset may be called after its group, and there is one plain edit.
        is_named = self.label.startswith(self.group) or self.group == "plain"
        setup = self.group if self.group == "plain" else self.label
        parts = (None if is_named else self.group, setup, self.quant)
        return ", ".join(part for part in parts if part is not None)

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each stage; of selective edits one of those behind the first is drawn."""
        if self.peer is not None:
            return (self.peer.steps,)
        return () if self.preset is None else self.preset.steps


def points_of(facts: ModelFacts) -> tuple[EditPoint, ...]:
    """The plain edit, the controls, ours (each preset bare, and with a cache on it), and peers."""
    return (plain_point(facts), *_controls(), *_ours(facts), *_peers())


def quantised(points: Sequence[EditPoint], recipes: Sequence[str]) -> list[EditPoint]:
    """Those that engines draw, once for each recipe."""
    drawn = [point for point in points if point.preset is not None]
    return [replace(point, quant=recipe) for recipe in recipes for point in drawn]


def plain_point(facts: ModelFacts) -> EditPoint:
    """What every other point is compared with: the model's default steps."""
    steps = facts.default_steps
    return EditPoint(group="plain", label=f"{steps} steps", preset=Preset(steps=(steps,)))


def _controls() -> Iterator[EditPoint]:
    for steps in FEW_STEPS:
        label, preset = f"{steps} step{'s' * (steps > 1)}", Preset(steps=(steps,))
        yield EditPoint(group="few-step", label=label, preset=preset)
        if steps not in TUNED:
            continue
        tuned = replace(preset, shift=(math.exp(TUNED[steps]),))
        yield EditPoint(group="few-step", label=f"{label}, mu {TUNED[steps]:g}", preset=tuned)
        for solver in SOLVERS:
            way = f"{label}, mu {TUNED[steps]:g}, {solver}"
            yield EditPoint(group="few-step", label=way, preset=replace(tuned, solver=solver))


def _peers() -> Iterator[EditPoint]:
    """At the steps and constants that were published, and with fewer steps in proportion."""
    for steps in PEER_STEPS:
        settings = PeerSettings(rule="spotedit", steps=steps)
        yield EditPoint(group="spotedit", label=f"{steps} steps", peer=settings)
    published = PeerSettings(rule="regione", steps=PEER_STEPS[0])
    yield EditPoint(
        group="regione", label=f"{PEER_STEPS[0]} steps, gamma as published", peer=published
    )
    for steps in PEER_STEPS:
        settings = PeerSettings(rule="regione", steps=steps, is_fitted=True)
        yield EditPoint(group="regione", label=f"{steps} steps, gamma fitted", peer=settings)
    steps = PEER_STEPS[0]
    taylor = TaylorSeer(steps=steps, interval=5)
    yield EditPoint(group="taylorseer", label=f"{steps} steps, interval 5", peer=taylor)
    first = FirstBlock(steps=steps, threshold=0.4)
    yield EditPoint(group="first-block", label=f"{steps} steps, threshold 0.4", peer=first)
    dit = CacheDit(steps=steps, threshold=0.24, taylor=True)
    yield EditPoint(group="cache-dit", label=f"{steps} steps, threshold 0.24, Taylor", peer=dit)


def _ours(facts: ModelFacts) -> Iterator[EditPoint]:
    plain = Preset(steps=(facts.default_steps,))
    base = EditPoint(group="cache", label=f"{facts.default_steps} steps", preset=plain)
    yield from _cached(facts, base, _ALONE)
    for name, schedules in facts.presets.items():
        is_selective = next(iter(schedules.values())).edit is not None
        stages = max(schedules) if is_selective else STAGES
        if stages not in schedules:
            continue
        base = EditPoint(
            group="specedit" if is_selective else "fresco", label=name, preset=schedules[stages]
        )
        yield base
        yield from _cached(facts, base, _STAGED)


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
