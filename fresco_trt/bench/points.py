"""Operating points: every method at every setting that the bench compares, as values.

One table for all models. A point is a method's name, how it draws (its settings), and what the rows
call it; :func:`points_of` lists a model's, :func:`chosen` those that a request asks for. Studies
have tables of their own, which :func:`table_named` finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from fresco_trt.bench.methods import METHODS, CacheDit, FirstBlock, Method, Point, TaylorSeer
from fresco_trt.bench.plain import Plain
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.changes import spectral_switches
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.matching import MatchedShifts, ralu_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stage import continues

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import Action, Solver

    PointTable = Callable[[ModelFacts, Size], Sequence[Point]]


def _matched(shifts: tuple[float, ...], z: float) -> MatchedShifts:
    return MatchedShifts(shifts=shifts, z=z, divergence=math.nan)  # found earlier, not here


# --- the settings -----------------------------------------------------------------------------

FEW_STEPS = (16, 10, 7, 5, 4, 3, 2)
DIFFUSERS_STEPS = (10, 5)
"""Few steps that diffusers takes: as users have them, and to see that they are the engine's."""

WAYS: tuple[tuple[float, Solver], ...] = (
    (1.6, "euler"),
    (2.2, "euler"),
    (1.6, "dpmpp_2m"),
    (2.2, "dpmpp_2m"),
    (1.6, "unipc"),
)
"""Log-shifts and solvers that the few-step control is tuned over, on the engine: it takes the
pipeline's own steps in less time, which makes it the stronger control. FLUX's own shift is 1.15 at
full size; below it the demo lost score at 7 steps and closeness at 6 and 9
(bench/results/main-job.json), and at 3 closeness at every number of steps. At 2 and 3 steps lower
ones, down to -1, scored no better than FLUX's own (16 scenes that are not the bench's). Solvers of
second order take few steps closer to the many (20 scenes that are not the bench's)."""

TUNED = 2.2
"""The shift of these that kept Euler's steps closest to the 50 from 5 steps on: what caches on
fewer steps take, the peers' and ours."""

INTERVALS, FEWER_INTERVALS = (4, 6, 8), (2, 3, 4)
BLOCK_THRESHOLDS = (0.2, 0.4)
DIT_THRESHOLDS = (0.24, 0.48)
"""Settings of the caching peers. Wider ones lost score on the demo: an interval of 12, thresholds
of 0.8 (first block) and 0.96 (cache-dit)."""

FEWER = 0.28
"""Steps of the peers' short runs over the model's default: caching goes with fewer steps, too."""

DELTAS = (0.05,)
SPECTRAL_STEPS = ((8, 8), (5, 5), (4, 3), (3, 2), (6, 6, 8), (4, 4, 5), (3, 3, 3), (2, 2, 2))
SWITCHES: Mapping[int, tuple[float, ...]] = {2: (0.75,), 3: (0.85, 0.7)}
"""Where spectral stages end on a model whose spectrum is not known."""

CACHES: Mapping[str, tuple[int, ...]] = {"reuse": (7,), "hicache": (3, 7)}
CACHED_PRESETS = ("balanced", "fast")
"""Our caches, at one full step in so many, alone on the plain steps and on these presets; the
repository's study of caches has all the others."""

TUNED_CACHES: tuple[tuple[float, int, int, tuple[str, ...]], ...] = (
    (0.4, 2, 2, ("taylor",)),
    (0.4, 3, 2, ("taylor", "hicache")),
    (0.28, 2, 2, ("taylor",)),
    (0.28, 3, 2, ("hicache",)),
    (0.28, 3, 1, ("hicache", "reuse")),
    (0.2, 3, 1, ("hicache", "reuse")),
)
"""Our caches on fewer steps with the tuned shift: share of the default steps, interval, warm-up and
predictors. Chosen on the demo among 90, on 8 scenes that are not the bench's: extrapolation pays
while full steps stand close, reuse and Hermite's damping where they do not."""

COARSE: tuple[tuple[str, float], ...] = (
    ("FBFFF", 2.2),
    ("FBFBFF", 1.6),
    ("FBFBFF", 2.2),
    ("FBFBFFF", 1.6),
    ("FBFBFFF", 2.2),
    ("FBFFFF", 2.2),
)
"""One stage with coarse velocities, and its log-shift: early steps, which decide where things are.
Chosen on the demo among a dozen, on 4 scenes that are not the bench's."""

FEWEST: Mapping[tuple[int, ...], tuple[float, ...]] = {
    (4, 2): (0.75,),
    (4, 1): (0.75,),
    (3, 3, 2): (0.95, 0.8),
    (2, 2, 2): (0.95, 0.8),
    (3, 3, 1): (0.9, 0.7),
    (2, 2, 1): (0.9, 0.7),
}
"""Steps and ends of stages beyond the fastest preset, where plain sampling has 2 or 3 steps left;
chosen on the demo among 27 such plans, on 16 scenes that are not the bench's."""

_QUICK_FEW, _QUICK_TUNED = (10, 5, 2), (10, 5)
_QUICK_WAYS = ((2.2, "euler"), (1.6, "dpmpp_2m"), (2.2, "dpmpp_2m"))
_QUICK_THRESHOLDS = (0.2, 0.4, 0.24, 0.48)

# RALU's settings for FLUX.1-dev: steps, ends as times (0 noise, 1 clean), share of the coarse
# tokens expanded first, shift factors and Z. "4x" and "7x" are those of its code (arXiv 2507.08422,
# ignoww/RALU); the other is what its matching gives for those steps.
_RALU: Mapping[str, tuple[tuple[int, int, int], tuple[float, ...], float, MatchedShifts]] = {
    "4x": ((5, 6, 7), (0.3, 0.45, 1.0), 0.3, _matched((5.019, 2.589, 2.226), 6.317)),
    "3+4+4 steps": ((3, 4, 4), (0.3, 0.45, 1.0), 0.2, _matched((5.08, 2.54, 1.98), 6.49)),
    "7x": ((2, 3, 5), (0.2, 0.3, 1.0), 0.1, _matched((8.141, 2.856, 2.193), 6.261)),
}


# --- the table --------------------------------------------------------------------------------


def points_of(facts: ModelFacts, size: Size | None = None) -> tuple[Point, ...]:
    """Every operating point of a model, the plain pipeline first; each has a name of its own."""
    size = size or facts.default_size
    return (
        Point(method="plain", settings=Plain(steps=facts.default_steps), quick=True),
        *_few_step(facts),
        *_cached(facts),
        *_spectral(facts, size),
        *_ralu(),
        *cached_points(facts, CACHES),
        *_tuned_caches(facts),
        *_coarse(facts),
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


def table_named(name: str) -> PointTable:
    """The function "module:function" that lists the points of a model at a size, as
    :func:`points_of` does; what :class:`~fresco_trt.bench.job.Study` calls its points.
    """
    module, _, function = name.partition(":")
    found: PointTable = getattr(import_module(module), function)
    return found


def _few_step(facts: ModelFacts) -> Iterator[Point]:
    """The plain sampler with fewer steps: diffusers' own, and our one-stage engine at any shift and
    by any solver that so few steps leave a step to.
    """
    default = facts.default_steps
    for steps in (each for each in DIFFUSERS_STEPS if each < default):
        yield Point(
            method="few-step",
            settings=Plain(steps=steps),
            preset=f"{steps} steps",
            variant="diffusers, default shift",
            quick=steps in _QUICK_FEW,
        )
    for steps in (each for each in FEW_STEPS if each < default):
        yield engine_steps(steps, None, quick=steps in _QUICK_FEW)
        for mu, solver in _ways(facts):
            quick = steps in _QUICK_TUNED and (mu, solver) in _QUICK_WAYS
            if _takes(facts, steps, solver):
                yield engine_steps(steps, mu, solver, quick=quick)


def _ways(facts: ModelFacts) -> Sequence[tuple[float | None, Solver]]:
    """What the control is tuned over; on a model whose sigmas have no shift, over solvers alone."""
    if facts.shift is not None:
        return WAYS
    solvers = dict.fromkeys(solver for _, solver in WAYS)
    return [(None, solver) for solver in solvers if solver != "euler"]


def _takes(facts: ModelFacts, steps: int, solver: Solver) -> bool:
    """Whether so few steps leave a solver one that Euler would take otherwise."""
    (stage,) = plan_from_preset(facts, Preset(steps=(steps,))).stages
    return solver == "euler" or continues(solver, stage)


def engine_steps(
    steps: int, mu: float | None = None, solver: Solver = "euler", *, quick: bool = False
) -> Point:
    """Plain steps on our one-stage engine, at the model's own log-shift unless told otherwise."""
    shift = None if mu is None else (math.exp(mu),)
    how = ("engine", "default shift" if mu is None else f"mu {mu:g}")
    return Point(
        method="few-step",
        settings=Preset(steps=(steps,), shift=shift, solver=solver),
        preset=f"{steps} steps",
        variant=", ".join(how if solver == "euler" else (*how, solver)),
        quick=quick,
    )


def _cached(facts: ModelFacts) -> Iterator[Point]:
    """The caching peers, at the model's own steps and shift, and at fewer with the tuned one."""
    yield from _peers(facts.default_steps, None, INTERVALS)
    yield from _peers(_share(facts, FEWER), _tuned(facts), FEWER_INTERVALS)


def _peers(steps: int, mu: float | None, intervals: tuple[int, ...]) -> Iterator[Point]:
    for interval in intervals:
        seer = TaylorSeer(steps=steps, interval=interval, mu=mu)
        yield _peer("taylorseer", seer, f"interval {interval}", quick=interval > 6)
    for threshold in BLOCK_THRESHOLDS:
        block = FirstBlock(steps=steps, threshold=threshold, mu=mu)
        quick = mu is None and threshold in _QUICK_THRESHOLDS
        yield _peer("first-block", block, f"threshold {threshold:g}", quick=quick)
    for threshold in DIT_THRESHOLDS:
        dit = CacheDit(steps=steps, threshold=threshold, taylor=True, mu=mu)
        quick = mu is None and threshold in _QUICK_THRESHOLDS
        yield _peer("cache-dit", dit, f"threshold {threshold:g}, Taylor", quick=quick)


def _peer(
    method: Method, settings: TaylorSeer | FirstBlock | CacheDit, label: str, *, quick: bool
) -> Point:
    preset = f"{_few(settings.steps, settings.mu)}, {label}"
    return Point(method=method, settings=settings, preset=preset, variant="diffusers", quick=quick)


def _few(steps: int, mu: float | None) -> str:
    return f"{steps} steps" if mu is None else f"{steps} steps, mu {mu:g}"


def _share(facts: ModelFacts, share: float) -> int:
    return max(1, round(share * facts.default_steps))


def _tuned(facts: ModelFacts) -> float | None:
    """The tuned log-shift, None on a model whose sigmas have none."""
    return None if facts.shift is None else TUNED


def _spectral(facts: ModelFacts, size: Size) -> Iterator[Point]:
    """SPEED's rule: orthonormal expansion with rewind, switching where the spectrum says."""
    for steps in SPECTRAL_STEPS:
        for label, switch in _switches(facts, size, len(steps)):
            settings = Preset(steps=steps, switch=switch, lift="haar", noise="rewind")
            preset = f"{_steps_label(steps)}, {label}"
            quick = steps in ((5, 5), (3, 3, 3)) and label in ("delta 0.05", "fixed switch")
            yield Point(method="spectral", settings=settings, preset=preset, quick=quick)


def _steps_label(steps: tuple[int, ...]) -> str:
    return f"{'+'.join(map(str, steps))} steps"


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
        settings = ralu_preset(steps=steps, ends=ends, share=share, matched=matched)
        yield Point(method="ralu", settings=settings, preset=label, quick=label in ("4x", "7x"))


def cached_points(facts: ModelFacts, caches: Mapping[str, Sequence[int]]) -> Iterator[Point]:
    """Caches at some intervals: alone on the plain steps, and on presets at the most stages.

    Without points that draw what another does: short stages make two intervals the same, and a
    predictor that has seen one step reuses it.
    """
    stages = max(facts.stage_counts)
    plain = Preset(steps=(facts.default_steps,))
    for name, intervals in caches.items():
        for interval, alone in _intervals(facts, plain, name, intervals, warmup=3):
            label, quick = f"{name}, interval {interval}", interval > 6
            yield Point(method="cache", settings=alone, preset=label, quick=quick)
        for preset in CACHED_PRESETS:
            base = find_preset(facts, preset, stages)
            for interval, both in _intervals(facts, base, name, intervals, warmup=1):
                label = f"{name}, interval {interval}"
                yield Point(method="fresco", settings=both, preset=preset, variant=label)


def _tuned_caches(facts: ModelFacts) -> Iterator[Point]:
    """Our caches on fewer steps, which the control then has to beat at as many full ones."""
    mu = _tuned(facts)
    for share, interval, warmup, names in TUNED_CACHES:
        steps = _share(facts, share)
        for name in names:
            cache = CacheConfig(name=name, interval=interval, warmup_steps=warmup)
            shift = None if mu is None else (math.exp(mu),)
            settings = Preset(steps=(steps,), shift=shift, cache=cache)
            if not _skips(facts, settings):
                continue
            label = f"{_few(steps, mu)}, {name}, interval {interval}, warm-up {warmup}"
            quick = (share, warmup, name) == (FEWER, 1, "hicache")
            yield Point(method="cache", settings=settings, preset=label, quick=quick)


def _coarse(facts: ModelFacts) -> Iterator[Point]:
    """Our coarse velocities among few full ones, on a model whose time is shifted."""
    for word, mu in COARSE if facts.shift is not None else ():
        cache = CacheConfig(name="coarse_velocity", actions=(word,))
        settings = Preset(steps=(len(word),), shift=(math.exp(mu),), cache=cache)
        label, quick = (
            f"{_few(len(word), mu)}, coarse_velocity {word}",
            (word, mu) == ("FBFBFF", 2.2),
        )
        yield Point(method="cache", settings=settings, preset=label, quick=quick)


def _skips(facts: ModelFacts, settings: Preset) -> bool:
    """Whether the cache answers any step; of a very short run every step may be full."""
    try:
        plan_from_preset(facts, settings)
    except IncompatibleOptions:
        return False
    return True


def _intervals(
    facts: ModelFacts, base: Preset, name: str, intervals: Iterable[int], warmup: int
) -> Iterator[tuple[int, Preset]]:
    """``base`` at each interval that draws what no other does."""
    seen = set()
    for interval in intervals:
        cache = CacheConfig(name=name, interval=interval, warmup_steps=warmup)
        settings = replace(base, cache=cache)
        if not _skips(facts, settings):
            continue
        actions = tuple(stage.actions for stage in plan_from_preset(facts, settings).stages)
        if actions not in seen and (name == "reuse" or any(map(_predicts, actions))):
            seen.add(actions)
            yield interval, settings


def _predicts(actions: Sequence[Action]) -> bool:
    """Whether a stage skips a step after two full ones, which a predictor needs for a direction."""
    skipped = [index for index, action in enumerate(actions) if action == "bypass"]
    return any(actions[:index].count("full") > 1 for index in skipped)


def _fresco(facts: ModelFacts) -> Iterator[Point]:
    """Our presets at every number of stages, and faster ones than any of them."""
    for name, schedules in facts.presets.items():
        for count in sorted(schedules.keys() - {1}, reverse=True):
            if schedules[count].edit is not None:
                continue  # what it draws depends on a source
            most = count == max(schedules)
            variant = None if most else f"{count} stages"
            settings = schedules[count]
            yield Point(
                method="fresco", settings=settings, preset=name, variant=variant, quick=most
            )
    for steps, switch in FEWEST.items():
        if len(steps) in facts.stage_counts:
            settings = Preset(steps=steps, switch=switch, lift="haar", noise="field")
            quick = steps == (3, 3, 1)
            yield Point(method="fresco", settings=settings, preset=_steps_label(steps), quick=quick)
