"""Candidates: every family of plans there is, an entry each. Numbers only.

A family draws presets at random and may know some good ones. Nothing here knows what a plan costs
or draws: whoever asks says which are acceptable. A new solver is a candidate as soon as plans have
it, and so is a new predictor; a new kind of plan is one :class:`Family` more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from fresco_trt.errors import FrescoError
from fresco_trt.plan.caching import cache_names, cache_traits, interval_actions, spelling_of
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import SOLVERS

if TYPE_CHECKING:
    from fresco_trt.plan.caching import Predicts
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.refinement import Rule
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import Lift, Noise, StagePlan

CONTROL = "few-step"
"""The family that all others have to beat."""

LOG_SHIFTS = (0.5, 1.15, 1.6, 2.0, 2.4, 2.8)
"""Log-shifts of the control, and of each stage of whatever shifts its own."""

LATEST_SWITCH, EARLIEST_SWITCH = 0.6, 0.985
CARRIES: tuple[tuple[Lift, Noise], ...] = (
    ("nearest", "field"),
    ("bilinear", "field"),
    ("haar", "field"),
    ("nearest", "parent"),
    ("bilinear", "parent"),
    ("haar", "parent"),
    ("haar", "rewind"),
)
"""Lifts and noise sources that go together; fresh noise is an ablation, not a candidate."""

ATTEMPTS = 80
"""Random presets that are looked at for each candidate that is wanted."""

HIGHEST_ORDER = 2
SHARES = (0.25, 0.4)
"""Shares of the coarse tokens that a mixed stage refines: each is an engine of its own."""
RULES: tuple[Rule, ...] = ("converged-latent", "edge", "even")

KNOWN_WORDS = (("FBFFF", 2.2), ("FBFBFF", 1.6), ("FBFBFF", 2.2), ("FBFBFFF", 1.6), ("FBFFFF", 2.2))
"""Coarse velocities and log-shifts that are the bench's (:mod:`fresco_trt.bench.points`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What candidates are made for: a model at a size, and the most tokens that a prompt has.

    ``changes`` are points (sigma, sum so far), sigmas falling, of what SeaCache adds up on the many
    steps; empty where that was not measured.
    """

    facts: ModelFacts
    size: Size
    prompt_tokens: int = 1
    changes: tuple[tuple[float, float], ...] = ()

    @property
    def default_steps(self) -> int:
        """Steps of the plain pipeline."""
        return self.facts.default_steps

    @property
    def stage_counts(self) -> tuple[int, ...]:
        """Numbers of stages, two and more, that presets of the model have."""
        return tuple(count for count in self.facts.stage_counts if count > 1)

    @property
    def texts(self) -> tuple[int, ...]:
        """Text tokens that a stage may take and no prompt has more of, ascending."""
        return tuple(each for each in self.facts.text_choices if each >= self.prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan, the preset that it was made from, and where that came from."""

    name: str
    family: str
    preset: Preset
    plan: StagePlan

    @property
    def is_control(self) -> bool:
        """Whether it is plain sampling with few steps."""
        return self.family == CONTROL

    @property
    def is_default(self) -> bool:
        """Whether it is the control as users have it: the model's own shift, Euler's steps."""
        return self.is_control and self.preset == Preset(steps=self.preset.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of plan. ``draw`` gives a random preset, or None where the numbers drawn make none;
    ``known`` some that are worth trying.
    """

    name: str
    draw: Callable[[Ground, random.Random], Preset | None]
    known: Callable[[Ground], Iterable[Preset]] = lambda ground: ()


# --- the control ------------------------------------------------------------------------------


def controls(ground: Ground, steps: int) -> list[Candidate]:
    """Plain sampling with so many steps: at the model's own shift and at all others, with every
    solver. The first is what users have.
    """
    found = []
    for mu in (None, *LOG_SHIFTS):
        for solver in SOLVERS:
            preset = Preset(steps=(steps,), shift=_shift(mu), solver=solver)
            shift = "own shift" if mu is None else f"mu {mu:g}"
            name = f"{CONTROL}: {steps} steps, {shift}, {solver}"
            plan = plan_of(ground, preset)
            if plan is not None:
                found.append(Candidate(name=name, family=CONTROL, preset=preset, plan=plan))
    return found


def reference(ground: Ground) -> StagePlan:
    """The many steps that closeness and speed are measured against."""
    return plain(ground, ground.default_steps)


def plain(ground: Ground, steps: int) -> StagePlan:
    """Plain sampling with so many steps, as users have it."""
    return plan_from_preset(ground.facts, Preset(steps=(steps,)), size=ground.size)


# --- the families -----------------------------------------------------------------------------


def _cached_preset(ground: Ground, rng: random.Random) -> Preset | None:
    return _with_word(ground, rng, rng.choice(caches_of("feature")))


def _coarse_preset(ground: Ground, rng: random.Random) -> Preset | None:
    return _with_word(ground, rng, rng.choice(caches_of("velocity")))


def _with_word(ground: Ground, rng: random.Random, name: str) -> Preset:
    word = _word(rng, rng.randint(2, max(2, ground.default_steps // 2)))
    return Preset(
        steps=(len(word),),
        shift=_shift(_mu(rng)),
        solver=rng.choice(SOLVERS),
        cache=random_cache(rng, name, (word,)),
    )


def _changed_preset(ground: Ground, rng: random.Random) -> Preset | None:
    """One stage that is run in full where the input of the first block has changed enough."""
    from fresco_trt.lower.calibrate.spectral_change import accumulated

    if not ground.changes:
        return None
    preset = Preset(
        steps=(rng.randint(3, max(3, ground.default_steps // 2)),),
        shift=_shift(_mu(rng)),
        solver=rng.choice(SOLVERS),
    )
    plan = plan_of(ground, preset)
    if plan is None:
        return None
    sums = [change_at(ground.changes, sigma) for sigma in plan.stages[0].sigmas[:-1]]
    steps = [after - before for before, after in pairwise(sums)]
    threshold = (sums[-1] - sums[0]) / rng.randint(2, len(sums))
    word = spelling_of(accumulated(steps, threshold, ends=True))
    return replace(preset, cache=random_cache(rng, rng.choice(caches_of("feature")), (word,)))


def change_at(changes: Sequence[tuple[float, float]], sigma: float) -> float:
    """The sum of changes at a sigma, between the points of :class:`Ground`."""
    for (high, above), (low, below) in pairwise(changes):
        if sigma >= low:
            share = (high - min(sigma, high)) / (high - low)
            return above + share * (below - above)
    return changes[-1][1]


def caches_of(predicts: Predicts) -> list[str]:
    """Predictors of a feature or a velocity that need no directions measured first."""
    return [name for name in cache_names(predicts) if not cache_traits(name).needs_basis]


def _known_coarse(ground: Ground) -> Iterator[Preset]:
    for name in cache_names("velocity"):
        for word, mu in KNOWN_WORDS:
            cache = CacheConfig(name=name, actions=(word,))
            yield Preset(steps=(len(word),), shift=_shift(mu), cache=cache)


def _staged_preset(ground: Ground, rng: random.Random) -> Preset | None:
    if not ground.stage_counts:
        return None
    stages = rng.choice(ground.stage_counts)
    most = max(2, ground.default_steps // 5)
    coarse = tuple(rng.randint(1, most) for _ in range(stages - 1))
    lift, noise = rng.choice(CARRIES)
    return Preset(
        steps=(*coarse, rng.randint(1, max(2, ground.default_steps // 2 - 1))),
        switch=tuple(sorted((_switch(rng) for _ in coarse), reverse=True)),
        restart=rng.choice(("rewind", "same")),
        lift=lift,
        noise=noise,
        shift=_shifts(stages, rng),
        solver=rng.choice(SOLVERS),
    )


def _known_stages(ground: Ground) -> Iterator[Preset]:
    """The model's own presets, so that no tune falls behind what ships."""
    for schedules in ground.facts.presets.values():
        for count, preset in schedules.items():
            if count > 1 and preset.edit is None:
                yield preset


def _staged_cache_preset(ground: Ground, rng: random.Random) -> Preset | None:
    return _last_cached(_staged_preset(ground, rng), rng, rng.choice(caches_of("feature")))


def _staged_coarse_preset(ground: Ground, rng: random.Random) -> Preset | None:
    return _last_cached(_staged_preset(ground, rng), rng, rng.choice(caches_of("velocity")))


def _last_cached(preset: Preset | None, rng: random.Random, name: str) -> Preset | None:
    """A staged preset that skips steps of its last stage, where a step costs most."""
    if preset is None or preset.steps[-1] < 2:
        return None
    words = (*("F" * steps for steps in preset.steps[:-1]), _word(rng, preset.steps[-1]))
    return replace(preset, cache=random_cache(rng, name, words))


def _staged_text_preset(ground: Ground, rng: random.Random) -> Preset | None:
    """Stages that take less of the text's padding while they are coarse."""
    preset, texts = _staged_preset(ground, rng), ground.texts
    if preset is None or len(texts) < 2:
        return None
    chosen = tuple(rng.choice(texts) for _ in preset.steps[:-1])
    cut = min(chosen) < texts[-1]
    return replace(preset, text_tokens=(*sorted(chosen), texts[-1])) if cut else None


def _mixed_preset(ground: Ground, rng: random.Random) -> Preset | None:
    """Half size, a mixed stage that expands part of the tokens, and full size."""
    preset = _staged_preset(ground, rng)
    if preset is None or len(preset.steps) != 3:
        return None
    refined = (rng.choice(RULES), rng.choice(SHARES))
    return replace(preset, refine=((refined,), ()), window=2 if preset.steps[0] > 1 else 1)


FAMILIES: tuple[Family, ...] = (
    Family(name="cache", draw=_cached_preset),
    Family(name="cache, by change", draw=_changed_preset),
    Family(name="coarse-velocity", draw=_coarse_preset, known=_known_coarse),
    Family(name="stages", draw=_staged_preset, known=_known_stages),
    Family(name="stages, cache", draw=_staged_cache_preset),
    Family(name="stages, coarse-velocity", draw=_staged_coarse_preset),
    Family(name="stages, text", draw=_staged_text_preset),
    Family(name="stages, mixed", draw=_mixed_preset),
)
"""All that competes with :data:`CONTROL`. "coarse-velocity" begins with a step of full size, and
sketches from there."""


# --- random numbers -----------------------------------------------------------------------------


def _mu(rng: random.Random) -> float | None:
    """The model's own shift, or any."""
    return rng.choice((None, *LOG_SHIFTS))


def _shift(mu: float | None) -> tuple[float, ...] | None:
    return None if mu is None else (round(math.exp(mu), 2),)


def _shifts(stages: int, rng: random.Random) -> tuple[float, ...] | None:
    """Half the time the model's own time shift, else one for each stage."""
    if rng.random() < 0.5:
        return None
    return tuple(round(math.exp(rng.choice(LOG_SHIFTS)), 2) for _ in range(stages))


def _switch(rng: random.Random) -> float:
    """A switch sigma; its distance to 1 is what is spread evenly, on a logarithmic scale."""
    near, far = math.log(1 - EARLIEST_SWITCH), math.log(1 - LATEST_SWITCH)
    return round(1 - math.exp(rng.uniform(near, far)), 3)


def _word(rng: random.Random, steps: int) -> str:
    """A full step, and full ones or bypasses after it: by a rule, or anywhere."""
    if rng.random() < 0.5:
        interval, warmup = rng.randint(2, 5), rng.randint(1, max(1, steps // 2))
        return spelling_of(interval_actions(steps, interval, warmup))
    share = rng.uniform(0.1, 0.9)
    return "F" + "".join("F" if rng.random() < share else "B" for _ in range(steps - 1))


def random_cache(rng: random.Random, name: str, words: tuple[str, ...]) -> CacheConfig:
    """A cache by a predictor with any order and site, and the steps that ``words`` spell."""
    traits = cache_traits(name)
    orders = [order for order in traits.orders if order <= HIGHEST_ORDER]
    sites = traits.sites if traits.predicts == "feature" else traits.sites[:1]
    return CacheConfig(
        name=name,
        actions=words,
        max_order=rng.choice(orders or [traits.default_order]),
        site=rng.choice(sites),
    )


# --- candidates of a family -------------------------------------------------------------------


def sampled(
    family: Family,
    ground: Ground,
    accepts: Callable[[StagePlan], bool],
    *,
    count: int,
    seed: int = 0,
) -> list[Candidate]:
    """Up to ``count`` different acceptable candidates of a family; the same seed, the same ones.

    Those that are known come first. Fewer, or none, where :data:`ATTEMPTS` random ones for each
    give no more.
    """
    rng = random.Random(f"{family.name} {seed}")
    found: dict[str, Candidate] = {}
    for preset in _tried(family, ground, rng, ATTEMPTS * count):
        if len(found) == count:
            break
        plan = plan_of(ground, preset)
        if plan is None or not accepts(plan):
            continue
        name = f"{family.name} {len(found) + 1}"
        candidate = Candidate(name=name, family=family.name, preset=preset, plan=plan)
        found.setdefault(plan.digest(), candidate)
    return list(found.values())


def _tried(family: Family, ground: Ground, rng: random.Random, attempts: int) -> Iterator[Preset]:
    yield from family.known(ground)
    for _ in range(attempts):
        preset = None
        with suppress(FrescoError):  # numbers that make no preset
            preset = family.draw(ground, rng)
        if preset is not None:
            yield preset


def plan_of(ground: Ground, preset: Preset) -> StagePlan | None:
    """The plan of a preset at the ground's size; None where it suits neither model nor size."""
    try:
        return plan_from_preset(ground.facts, preset, size=ground.size)
    except FrescoError:
        return None
