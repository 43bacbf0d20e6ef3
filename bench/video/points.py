"""What the bench of clips measures: our points, those of others, and the plain sampler as the
control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fresco_trt.bench.methods import CacheDit, FirstBlock, TaylorSeer
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.points import (
    BLOCK_THRESHOLDS,
    DIT_THRESHOLDS,
    SPECTRAL_STEPS,
    SWITCHES,
    TUNED_CACHES,
)
from fresco_trt.errors import FrescoError
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import check_measured, plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stage import Solver
    from fresco_trt.plan.stages import StagePlan

Group = Literal[
    "plain",
    "few-step",
    "cache",
    "fresco",
    "sparse",
    "spectral",
    "taylorseer",
    "first-block",
    "fastercache",
    "pab",
    "cache-dit",
    "diffusers",
]

OURS: tuple[Group, ...] = ("cache", "fresco", "sparse")

PEERS: tuple[Group, ...] = (
    "spectral",
    "taylorseer",
    "first-block",
    "fastercache",
    "pab",
    "cache-dit",
)
"""What a user would pick instead. Few-step is the control beside them, and diffusers' pipeline as
it is shows what of a peer's time is the pipeline's."""

# Okabe and Ito's colours, told apart by people who see fewer of them, and four more.
COLOURS: Mapping[Group, str] = {
    "plain": "#000000",
    "few-step": "#7f7f7f",
    "cache": "#f0e442",
    "fresco": "#d55e00",
    "sparse": "#e69f00",
    "spectral": "#009e73",
    "taylorseer": "#56b4e9",
    "first-block": "#0072b2",
    "fastercache": "#8c564b",
    "pab": "#9467bd",
    "cache-dit": "#cc79a7",
    "diffusers": "#bbbbbb",
}
"""What a group is drawn in, wherever it is."""

FEW_STEPS = (17, 12, 10, 7, 5, 3)

SHIFTS = (1.5, 5.0, 8.0)
"""Shifts tried for the few-step control beside the model's own; the rows show the best of them."""

SOLVERS: tuple[Solver, ...] = ("euler", "dpmpp_2m")

STAGES = (2, 3)

INTERVAL, WARMUP = 2, 1
"""Of a cache on stages, which have few steps each."""

SPECTRAL: Mapping[int, tuple[tuple[float, ...], ...]] = {
    2: (SWITCHES[2], (0.793,)),
    3: (SWITCHES[3], (0.924, 0.793)),
}
"""Where spectral stages end: as on any model whose spectrum was not measured, and by the criterion
with the law of another video VAE, as the presets do (tolerance 0.02)."""

PEER_SHARE = 0.4
"""Steps of the peers' short runs over the model's default: caching goes with fewer steps, too."""

AMPLIFIER, KEPT = 0.5, 0.5
"""The text amplifier of Jenga's paper; and the share of a clip's blocks that sparse attention sees:
clips of one block, as those of coarse stages are here, are seen whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterCache:
    """diffusers' FasterCache hook of a distilled guidance: of attention's outputs every ``skip``-th
    is computed, the others are extrapolated; in the second two thirds of the noise levels.
    """

    steps: int
    skip: int = 2
    mu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """diffusers' PyramidAttentionBroadcast hook: attention's outputs of every ``skip``-th step are
    those of the steps between as well, at its middle noise levels.
    """

    steps: int
    skip: int = 2
    mu: float | None = None


Hook = Plain | TaylorSeer | FirstBlock | CacheDit | FasterCache | Broadcast
"""How diffusers' pipeline draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPoint:
    """One operating point, by the ``preset`` that engines draw, with attention over a share of the
    clip if ``sparse``, or by a ``peer``'s settings on diffusers' pipeline. ``tuned`` is the shift
    that was tried in place of the model's own.
    """

    group: Group
    label: str
    preset: Preset | None = None
    peer: Hook | None = None
    sparse: float | None = None
    tuned: float | None = None

    @property
    def name(self) -> str:
        """All that tells a point from the others, for people and for files."""
        return self.group if self.group == "plain" else f"{self.group}, {self.label}"

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each stage."""
        if self.peer is not None:
            return (self.peer.steps,)
        return () if self.preset is None else self.preset.steps


def plan_of(facts: ModelFacts, point: ClipPoint, size: Size) -> StagePlan:
    """The plan of a point that engines draw. Raises what making it raises, and ValueError for a
    peer's point.
    """
    if point.preset is None:
        raise ValueError(f"{point.name}, which no engines draw; expected a point with a preset")
    plan = plan_from_preset(facts, point.preset, size=size)
    return plan if point.sparse is None else replace(plan, sparse_attention=point.sparse)


def points_of(facts: ModelFacts) -> tuple[ClipPoint, ...]:
    """The plain sampler, the controls, ours (each preset bare, with a cache, and with what clips
    have beside), and peers.
    """
    every = (
        *_controls(facts),
        *_caches(facts),
        *_presets(facts),
        *_options(facts),
        *_spectral(),
        *_peers(facts),
    )
    return (plain_point(facts), *every)


def plain_point(facts: ModelFacts) -> ClipPoint:
    """What every other point is compared with: the model's default steps."""
    steps = facts.default_steps
    return ClipPoint(group="plain", label=f"{steps} steps", preset=Preset(steps=(steps,)))


def _controls(facts: ModelFacts) -> Iterator[ClipPoint]:
    """Fewer steps, by each solver at each shift."""
    for steps in (each for each in FEW_STEPS if each < facts.default_steps):
        for solver in SOLVERS:
            label = f"{steps} steps, {solver}"
            preset = Preset(steps=(steps,), solver=solver)
            yield ClipPoint(group="few-step", label=label, preset=preset)
            for shift in SHIFTS:
                yield ClipPoint(
                    group="few-step",
                    label=f"{label}, shift {shift:g}",
                    preset=replace(preset, shift=(shift,)),
                    tuned=shift,
                )


def _caches(facts: ModelFacts) -> Iterator[ClipPoint]:
    """The papers' settings for clips on the plain steps, and caches on fewer steps."""
    plain = Preset(steps=(facts.default_steps,))
    for name, cache in _published(facts).items():
        label = f"{facts.default_steps} steps, {name} {cache.interval}"
        yield ClipPoint(group="cache", label=label, preset=replace(plain, cache=cache))
    for share, interval, warmup, names in TUNED_CACHES:
        steps = max(1, round(share * facts.default_steps))
        for name in names:
            cache = CacheConfig(name=name, interval=interval, warmup_steps=warmup)
            label = f"{steps} steps, {name} {interval}, warm-up {warmup}"
            found = ClipPoint(
                group="cache", label=label, preset=Preset(steps=(steps,), cache=cache)
            )
            if _is_planned(facts, found):
                yield found


def _published(facts: ModelFacts) -> dict[str, CacheConfig]:
    """The caches of the papers' tables that need no basis, which nothing measures of this model."""
    found = {}
    for name, cache in facts.caches.items():
        try:
            check_measured(facts, cache)
        except FrescoError:
            continue
        found[name] = cache
    return found


def _presets(facts: ModelFacts) -> Iterator[ClipPoint]:
    """Every preset of several stages: bare, by the controls' other solver, and with each of those
    caches on it.
    """
    for base in _bare(facts):
        yield base
        yield _changed(base, SOLVERS[1], solver=SOLVERS[1])
        for name in _published(facts):
            cache = CacheConfig(name=name, interval=INTERVAL, warmup_steps=WARMUP)
            found = _changed(base, f"{name} {INTERVAL}", cache=cache)
            if _is_planned(facts, found):  # not where every step of stages so short is a full one
                yield found


def _bare(facts: ModelFacts) -> Iterator[ClipPoint]:
    for name, schedules in facts.presets.items():
        for stages in STAGES:
            if stages in schedules:
                label = f"{name}, {stages} stages"
                yield ClipPoint(group="fresco", label=label, preset=schedules[stages])


def _options(facts: ModelFacts) -> Iterator[ClipPoint]:
    """Tubes where stages are mixed; on two stages the text amplifier and sparse attention, the
    latter on the plain steps, too.
    """
    plain = plain_point(facts)
    yield replace(plain, group="sparse", label=f"{plain.label}, keep {KEPT:g}", sparse=KEPT)
    for base in _bare(facts):
        if base.preset is not None and any(base.preset.shares):
            yield _changed(base, "tubes", tube=True)
        if len(base.steps) > 2:
            continue
        yield _changed(base, f"amplifier {AMPLIFIER:g}", text_amplifier=AMPLIFIER)
        yield replace(base, group="sparse", label=f"{base.label}, keep {KEPT:g}", sparse=KEPT)


def _changed(base: ClipPoint, label: str, **changes: Any) -> ClipPoint:
    preset = None if base.preset is None else replace(base.preset, **changes)
    return replace(base, label=f"{base.label}, {label}", preset=preset)


def _is_planned(facts: ModelFacts, point: ClipPoint) -> bool:
    try:
        plan_of(facts, point, facts.default_size)
    except FrescoError:
        return False
    return True


def _spectral() -> Iterator[ClipPoint]:
    """SPEED's rule: orthonormal expansion with rewind."""
    for steps in SPECTRAL_STEPS:
        for switch in SPECTRAL[len(steps)]:
            preset = Preset(steps=steps, switch=switch, lift="haar", noise="rewind")
            label = f"{'+'.join(map(str, steps))} steps, to {' and '.join(map(str, switch))}"
            yield ClipPoint(group="spectral", label=label, preset=preset)


def _peers(facts: ModelFacts) -> Iterator[ClipPoint]:
    """At the model's steps, and at fewer of them with its own shift and another."""
    whole, fewer = facts.default_steps, max(1, round(PEER_SHARE * facts.default_steps))
    yield ClipPoint(group="diffusers", label=f"{whole} steps", peer=Plain(steps=whole))
    for steps, shift, intervals in (
        (whole, None, (5, 8)),
        (fewer, None, (2, 4)),
        (fewer, SHIFTS[1], (2, 4)),
    ):
        start = f"{steps} steps" if shift is None else f"{steps} steps, shift {shift:g}"
        mu = None if shift is None else math.log(shift)
        for group, label, hook in _hooks(steps, mu, intervals):
            yield ClipPoint(group=group, label=f"{start}, {label}", peer=hook)


def _hooks(
    steps: int, mu: float | None, intervals: tuple[int, ...]
) -> Iterator[tuple[Group, str, Hook]]:
    for interval in intervals:
        seer = TaylorSeer(steps=steps, interval=interval, mu=mu)
        yield "taylorseer", f"interval {interval}", seer
    for threshold in BLOCK_THRESHOLDS:
        first = FirstBlock(steps=steps, threshold=threshold, mu=mu)
        yield "first-block", f"threshold {threshold:g}", first
    yield "fastercache", "skip 2", FasterCache(steps=steps, mu=mu)
    yield "pab", "skip 2", Broadcast(steps=steps, mu=mu)
    for threshold in DIT_THRESHOLDS:
        dit = CacheDit(steps=steps, threshold=threshold, taylor=True, mu=mu)
        yield "cache-dit", f"threshold {threshold:g}, Taylor", dit
