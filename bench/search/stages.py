"""Candidates of several stages: their steps, where they hand over, shifts, lifts, noise, solver.

The best without a cache ship as the demo's presets (:mod:`fresco_trt.models.flux.facts`).
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from bench.search.halving import Candidate, Rounds, within
from fresco_trt.errors import FrescoError
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fresco_trt.plan.facts import ModelFacts

BUDGETS: Mapping[str, float] = {"quality": 3.0, "balanced": 5.0, "fast": 8.0, "turbo": 12.0}
"""Times fewer FLOPs than the plain pipeline's default steps, by preset."""

COUNT = 32
ROUNDS: Rounds = ((COUNT, 5), (12, 12), (6, 24), (3, 48))

COARSE_STEPS, FULL_STEPS = (1, 10), (2, 24)
LATEST_SWITCH, EARLIEST_SWITCH = 0.6, 0.985
LOG_SHIFTS = (0.5, 1.15, 1.6, 2.2, 3.0)
CARRIES = (
    ("nearest", "field"),
    ("bilinear", "field"),
    ("haar", "field"),
    ("nearest", "parent"),
    ("bilinear", "parent"),
    ("haar", "parent"),
    ("haar", "rewind"),
)
"""Lifts and noise sources that go together; fresh noise is an ablation, not a candidate."""

CACHED = ("reuse", "taylor", "hicache")
CACHED_SHARE = 0.25
"""Predictors that a candidate may have, and how many of the candidates have one."""


def candidates(
    facts: ModelFacts, stages: int, budget: str, count: int = COUNT, seed: int = 0
) -> tuple[Candidate, ...]:
    """``count`` different presets of ``stages`` stages that keep to a budget; same seed, same."""
    rng = random.Random(f"{seed} {stages} {budget}")
    return within(
        BUDGETS[budget], facts, lambda: random_preset(stages, rng), name=budget, count=count
    )


def random_preset(stages: int, rng: random.Random) -> Preset | None:
    """Any whole-grid preset, or None where the numbers drawn do not make one."""
    coarse = tuple(rng.randint(*COARSE_STEPS) for _ in range(stages - 1))
    lift, noise = rng.choice(CARRIES)
    try:
        return Preset(
            steps=(*coarse, rng.randint(*FULL_STEPS)),
            switch=tuple(sorted((_switch(rng) for _ in coarse), reverse=True)),
            restart=rng.choice(("rewind", "same")),
            lift=lift,  # type: ignore[arg-type]
            noise=noise,  # type: ignore[arg-type]
            shift=_shifts(stages, rng),
            solver=rng.choice(("euler", "multistep")),
            cache=_cache(rng),
        )
    except FrescoError:
        return None


def _switch(rng: random.Random) -> float:
    """A switch sigma; its distance to 1 is what is spread evenly, on a logarithmic scale."""
    near, far = math.log(1 - EARLIEST_SWITCH), math.log(1 - LATEST_SWITCH)
    return round(1 - math.exp(rng.uniform(near, far)), 3)


def _shifts(stages: int, rng: random.Random) -> tuple[float, ...] | None:
    """Half the time the model's own time shift, else one for each stage."""
    if rng.random() < 0.5:
        return None
    return tuple(round(math.exp(rng.choice(LOG_SHIFTS)), 2) for _ in range(stages))


def _cache(rng: random.Random) -> CacheConfig:
    if rng.random() >= CACHED_SHARE:
        return NO_CACHE
    return CacheConfig(name=rng.choice(CACHED), interval=rng.choice((2, 3)), warmup_steps=1)
