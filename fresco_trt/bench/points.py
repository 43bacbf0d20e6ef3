"""Operating points: every method at every setting that the bench compares, as values.

One table for all models. A point is a method's name, how it draws (its recipe), and what the rows
call it; :func:`points_of` lists a model's, :func:`chosen` those that a request asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from fresco_trt.bench.plain import Plain
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.caching import CACHES, CacheChoice, CacheName
from fresco_trt.plan.making import find_preset, plan_from_preset, spectral_switches
from fresco_trt.plan.matching import MatchedShifts, ralu_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.promotion import DEFAULT_WINDOW, VARIANCE_RULES
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.plan.stages import LIFTS, NOISES, POSITIONS, SELECTIONS, SOLVERS

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import Noise, Selection

Method = Literal[
    "plain",
    "few-step",
    "taylorseer",
    "first-block",
    "cache-dit",
    "spectral",
    "ralu",
    "cache",
    "fresco",
]

METHODS: tuple[Method, ...] = get_args(Method)

PEERS: tuple[Method, ...] = ("taylorseer", "first-block", "cache-dit", "spectral", "ralu")
"""What a user would pick instead; few-step is the control beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeer:
    """diffusers' TaylorSeer hook: a full step each ``interval``, the others extrapolated.

    ``lite`` predicts the whole network (its "lite mode"); without it, attention alone, as the
    hook does unless told otherwise.
    """

    steps: int
    interval: int
    order: int = 1
    lite: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlock:
    """diffusers' FirstBlockCache hook: skips the rest where the first block changed little."""

    steps: int
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDit:
    """cache-dit's DBCache, and with ``taylor`` its TaylorSeer calibrator."""

    steps: int
    threshold: float
    taylor: bool


Recipe = Plain | TaylorSeer | FirstBlock | CacheDit | Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operating point. ``preset`` names the setting, ``ablation`` what was changed in it,
    ``variant`` who carries it out, and ``quant`` the recipe that its engines are quantised by;
    ``quick`` points are measured in the short version too.
    """

    method: Method
    recipe: Recipe
    preset: str | None = None
    ablation: str | None = None
    variant: str | None = None
    quant: str | None = None
    quick: bool = False

    @property
    def name(self) -> str:
        """All that tells a point from the others, for people and for files."""
        parts = (self.method, self.preset, self.ablation, self.variant, self.quant)
        return ", ".join(part for part in parts if part is not None)

    @property
    def twin(self) -> str | None:
        """The name of the same point unquantised, None for one that is."""
        return None if self.quant is None else replace(self, quant=None).name

    @property
    def precision(self) -> str:
        """What its engines' linear layers are multiplied in."""
        return "fp32" if self.quant is None else RECIPES[self.quant].precision

    @property
    def nfe(self) -> int:
        """Sampling steps, those that a cache answers included, as the papers' tables count."""
        steps = self.recipe.steps
        return steps if isinstance(steps, int) else sum(steps)


def _matched(shifts: tuple[float, ...], z: float) -> MatchedShifts:
    return MatchedShifts(shifts=shifts, z=z, divergence=math.nan)  # found earlier, not here


# --- the settings -----------------------------------------------------------------------------

FEW_STEPS = (16, 10, 7, 5, 4)
DIFFUSERS_STEPS = (28, 10, 5)
"""Few steps that diffusers takes: as users have them, and to see that they are the engine's."""

SHIFTS = (1.6, 2.2, 3.0)
"""Log-shifts tried for the few-step control, on the engine: it takes the pipeline's own steps in
less time, which makes it the stronger control. FLUX's own is 1.15 at full size; below it the demo
lost score at 7 steps and closeness at 6 and 9 (bench/results/demo-fitness.json, main-job.json)."""

INTERVALS = (4, 6, 8, 12)
BLOCK_THRESHOLDS = (0.2, 0.4, 0.8)
DIT_THRESHOLDS = (0.24, 0.48, 0.96)
CACHED_SHARES = (1.0, 0.28)
"""Steps of a cached run over the model's default: caching goes with fewer steps, too."""

DELTAS = (0.05, 0.2)
SPECTRAL_STEPS = ((8, 8), (5, 5), (4, 3), (3, 2), (6, 6, 8), (4, 4, 5), (3, 3, 3), (2, 2, 2))
SWITCHES: Mapping[int, tuple[float, ...]] = {2: (0.75,), 3: (0.85, 0.7)}
"""Where spectral stages end on a model whose spectrum is not known."""

CACHE_INTERVALS = (3, 5, 7)
CACHED_PRESETS = ("balanced", "fast")
"""What our caches are measured at: one full step in so many, alone and on these presets."""

PROMOTED = 0.25
"""Share of the coarse tokens that the mixed ablations expand early."""

ABLATED = "turbo"

_QUICK_FEW, _QUICK_TUNED = (10, 5), ((10, 1.6), (10, 2.2), (5, 1.6), (5, 2.2))
_QUICK_CACHES = (("hicache", 7), ("svd", 7))
_QUICK_THRESHOLDS = (0.2, 0.8, 0.24, 0.96)
_QUICK_ABLATIONS = ("noise fresh", "lift nearest", "selection converged", "solver multistep")

# RALU's settings for FLUX.1-dev: steps, ends as times (0 noise, 1 clean), share of the coarse
# tokens expanded first, shift factors and Z. "4x" and "7x" are those of its code (arXiv 2507.08422,
# ignoww/RALU); the others are what its matching gives for more and for fewer steps.
_RALU: Mapping[str, tuple[tuple[int, int, int], tuple[float, ...], float, MatchedShifts]] = {
    "10+10+10 steps": ((10, 10, 10), (0.3, 0.45, 1.0), 0.3, _matched((4.41, 2.08, 1.96), 3.47)),
    "4x": ((5, 6, 7), (0.3, 0.45, 1.0), 0.3, _matched((5.019, 2.589, 2.226), 6.317)),
    "3+4+4 steps": ((3, 4, 4), (0.3, 0.45, 1.0), 0.2, _matched((5.08, 2.54, 1.98), 6.49)),
    "7x": ((2, 3, 5), (0.2, 0.3, 1.0), 0.1, _matched((8.141, 2.856, 2.193), 6.261)),
}


# --- the table --------------------------------------------------------------------------------


def points_of(facts: ModelFacts, size: Size | None = None) -> tuple[Point, ...]:
    """Every operating point of a model, the plain pipeline first; each has a name of its own."""
    size = size or facts.default_size
    return (
        Point(method="plain", recipe=Plain(steps=facts.default_steps), quick=True),
        *_few_step(facts),
        *_cached(facts),
        *_spectral(facts, size),
        *_ralu(),
        *_caches(facts),
        *_fresco(facts),
    )


def chosen(points: Iterable[Point], methods: Iterable[str] | None, quick: bool) -> list[Point]:
    """The points of some methods (None: all), in the short version those marked for it.

    The plain pipeline is always among them, everything being measured against it. Raises
    IncompatibleOptions for a method that there is not.
    """
    wanted = set(METHODS if methods is None else methods) | {"plain"}
    unknown = sorted(wanted - set(METHODS))
    if unknown:
        raise IncompatibleOptions(
            f"--methods {','.join(unknown)}",
            expected=f"one or more of {', '.join(METHODS)}",
            fix="pass such names to --methods, with commas between them",
        )
    return [point for point in points if point.method in wanted and (point.quick or not quick)]


def _few_step(facts: ModelFacts) -> Iterator[Point]:
    """The plain sampler with fewer steps: diffusers' own, and our one-stage engine at any shift."""
    default = facts.default_steps
    for steps in (each for each in DIFFUSERS_STEPS if each < default):
        yield _diffusers_steps(steps, quick=steps in _QUICK_FEW)
    yield _engine_steps(default, None, quick=False)
    shifts = SHIFTS if facts.shift is not None else ()
    for steps in (each for each in FEW_STEPS if each < default):
        yield _engine_steps(steps, None, quick=steps in _QUICK_FEW)
        for mu in shifts:
            yield _engine_steps(steps, mu, quick=(steps, mu) in _QUICK_TUNED)


def _diffusers_steps(steps: int, *, quick: bool) -> Point:
    recipe, variant = Plain(steps=steps), _variant("diffusers", None)
    return Point(
        method="few-step", recipe=recipe, preset=f"{steps} steps", variant=variant, quick=quick
    )


def _engine_steps(steps: int, mu: float | None, *, quick: bool) -> Point:
    shift = None if mu is None else (math.exp(mu),)
    recipe, variant = Preset(steps=(steps,), shift=shift), _variant("engine", mu)
    return Point(
        method="few-step", recipe=recipe, preset=f"{steps} steps", variant=variant, quick=quick
    )


def _variant(who: str, mu: float | None) -> str:
    return f"{who}, default shift" if mu is None else f"{who}, mu {mu:g}"


def _cached(facts: ModelFacts) -> Iterator[Point]:
    """The caching peers, at the model's own number of steps and at fewer."""
    for share in CACHED_SHARES:
        steps = max(1, round(share * facts.default_steps))
        whole = share == 1.0
        for interval in INTERVALS:
            seer = TaylorSeer(steps=steps, interval=interval)
            yield _peer("taylorseer", seer, f"interval {interval}", quick=whole and interval > 6)
        for threshold in BLOCK_THRESHOLDS:
            block = FirstBlock(steps=steps, threshold=threshold)
            quick = whole and threshold in _QUICK_THRESHOLDS
            yield _peer("first-block", block, f"threshold {threshold:g}", quick=quick)
        for threshold in DIT_THRESHOLDS:
            dit = CacheDit(steps=steps, threshold=threshold, taylor=True)
            quick = whole and threshold in _QUICK_THRESHOLDS
            yield _peer("cache-dit", dit, f"threshold {threshold:g}, Taylor", quick=quick)
    dit = CacheDit(steps=facts.default_steps, threshold=DIT_THRESHOLDS[0], taylor=False)
    yield _peer("cache-dit", dit, f"threshold {DIT_THRESHOLDS[0]:g}", quick=False)
    attention = TaylorSeer(steps=facts.default_steps, interval=8, lite=False)
    yield _peer("taylorseer", attention, "interval 8, attention only", quick=False)


def _peer(
    method: Method, recipe: TaylorSeer | FirstBlock | CacheDit, label: str, *, quick: bool
) -> Point:
    preset = f"{recipe.steps} steps, {label}"
    return Point(method=method, recipe=recipe, preset=preset, variant="diffusers", quick=quick)


def _spectral(facts: ModelFacts, size: Size) -> Iterator[Point]:
    """SPEED's rule: orthonormal expansion with rewind, switching where the spectrum says."""
    for steps in SPECTRAL_STEPS:
        for label, switch in _switches(facts, size, len(steps)):
            recipe = Preset(steps=steps, switch=switch, lift="haar", noise="rewind")
            preset = f"{'+'.join(map(str, steps))} steps, {label}"
            quick = steps in ((5, 5), (3, 3, 3)) and label in ("delta 0.05", "fixed switch")
            yield Point(method="spectral", recipe=recipe, preset=preset, quick=quick)


def _switches(
    facts: ModelFacts, size: Size, stages: int
) -> Iterator[tuple[str, tuple[float, ...]]]:
    if facts.spectrum is None:
        yield "fixed switch", SWITCHES[stages]
        return
    for delta in DELTAS:
        yield f"delta {delta:g}", spectral_switches(facts, size, stages, delta)


def _ralu() -> Iterator[Point]:
    for label, (steps, ends, share, matched) in _RALU.items():
        recipe = ralu_preset(steps=steps, ends=ends, share=share, matched=matched)
        yield Point(method="ralu", recipe=recipe, preset=label, quick=label in ("4x", "7x"))


def _caches(facts: ModelFacts) -> Iterator[Point]:
    """Our caches: alone on the plain steps, and on the presets that the others are compared at."""
    stages = max(facts.stage_counts)
    plain = Preset(steps=(facts.default_steps,))
    for name in CACHES:
        for interval, alone in _intervals(facts, plain, name, warmup=3):
            label, quick = f"{name}, interval {interval}", (name, interval) in _QUICK_CACHES
            yield Point(method="cache", recipe=alone, preset=label, quick=quick)
        for preset in CACHED_PRESETS:
            base = find_preset(facts, preset, stages)
            for interval, both in _intervals(facts, base, name, warmup=1):
                label = f"{name}, interval {interval}"
                yield Point(method="fresco", recipe=both, preset=preset, variant=label)


def _intervals(
    facts: ModelFacts, base: Preset, name: CacheName, warmup: int
) -> Iterator[tuple[int, Preset]]:
    """``base`` at each interval, once where short stages make two of them the same."""
    seen = set()
    for interval in CACHE_INTERVALS:
        recipe = replace(base, cache=CacheChoice(name=name, interval=interval, warmup=warmup))
        try:
            plan = plan_from_preset(facts, recipe)
        except IncompatibleOptions:  # few steps, and every one of them full
            continue
        actions = tuple(stage.actions for stage in plan.stages)
        if actions not in seen:
            seen.add(actions)
            yield interval, recipe


def _fresco(facts: ModelFacts) -> Iterator[Point]:
    """Our presets at every number of stages, and one with one thing changed at a time."""
    stages = max(facts.stage_counts)
    for name, schedules in facts.presets.items():
        for count in sorted(schedules.keys() - {1}, reverse=True):
            most = count == max(schedules)
            variant = None if most else f"{count} stages"
            recipe = schedules[count]
            yield Point(method="fresco", recipe=recipe, preset=name, variant=variant, quick=most)
    for ablation, recipe in ablations(find_preset(facts, ABLATED, stages)).items():
        quick = ablation in _QUICK_ABLATIONS
        yield Point(method="fresco", recipe=recipe, preset=ABLATED, ablation=ablation, quick=quick)


def ablations(base: Preset) -> dict[str, Preset]:
    """``base`` with one part exchanged, by what that part now is; itself is not among them.

    Selection rules and positions exist on mixed grids only: they are compared with one another on
    ``base`` made mixed (or as it is, where it is mixed already), at one and the same count.
    """
    found: dict[str, Preset] = {}
    for noise in NOISES:
        found[f"noise {noise}"] = _with_noise(base, noise)
    if base.noise != "rewind":
        found |= {f"lift {lift}": replace(base, lift=lift) for lift in LIFTS}
        found |= {f"restart {rule}": replace(base, restart=rule) for rule in ("same", "rewind")}
    # A variance needs two steps to look back on.
    rules = [rule for rule in SELECTIONS if base.steps[0] > 1 or rule not in VARIANCE_RULES]
    found |= {f"selection {rule}": _mixed(base, rule) for rule in rules}
    found["selection all"] = replace(base, promote=(), window=DEFAULT_WINDOW, positions="fine")
    mixed = _mixed(base, rules[0])
    found |= {f"positions {scheme}": replace(mixed, positions=scheme) for scheme in POSITIONS[1:]}
    found |= {f"solver {solver}": replace(base, solver=solver) for solver in SOLVERS}
    return {name: preset for name, preset in found.items() if preset != base}


def _with_noise(base: Preset, noise: Noise) -> Preset:
    """The noise source exchanged; a rewind has a lift and a restart of its own."""
    if noise == "rewind":
        return replace(base, noise=noise, lift="haar", restart="rewind")
    return replace(base, noise=noise)


def _mixed(base: Preset, rule: Selection) -> Preset:
    """``base`` with its first switch expanding a share of the tokens, by one rule."""
    promote = base.promote or (((rule, PROMOTED),), *((),) * (len(base.switch) - 1))
    by_rule = tuple(tuple((rule, share) for _, share in shares) for shares in promote)
    window = min(DEFAULT_WINDOW, base.steps[0])
    return replace(base, promote=by_rule, window=window)
