"""Candidates of one stage: which steps a cache answers, which cache, and how steps are shifted.

Beside :mod:`~bench.search.stages`. As many full steps can stand in many places, and how far apart
they may stand depends on what answers the steps between them.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from bench.search.halving import Candidate, Rounds, within
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import Solver

BUDGETS: Mapping[str, float] = {"4x": 4.0, "6x": 6.0, "8x": 8.0, "10x": 10.0, "12x": 12.0}
"""Times fewer FLOPs than the plain pipeline's default steps."""

COUNT = 96
ROUNDS: Rounds = ((COUNT, 2), (24, 6), (6, 16), (3, 32))
"""More candidates and fewer scenes at first than with stages: there are more ways to place steps
than to hand over, and most of them are far behind after two scenes."""

CONTROL_ROUNDS: Rounds = ((16, 2), (6, 6), (2, 32))

STEPS = 4, 24
LOG_SHIFTS = (1.6, 2.0, 2.4, 2.8)
SOLVERS: tuple[Solver, ...] = ("euler", "multistep")
"""Those that the stored search chose from."""

PREDICTORS: tuple[str, ...] = ("reuse", "taylor", "hicache", "coarse_velocity")
"""Those that need no directions measured first, and no cosine transform at every step."""

HIGHEST_ORDER = 2


def candidates(
    facts: ModelFacts, budget: str, count: int = COUNT, seed: int = 0
) -> tuple[Candidate, ...]:
    """``count`` different presets of one stage that skip steps and keep to a budget; same seed,
    same."""
    rng = random.Random(f"{seed} skips {budget}")
    return within(BUDGETS[budget], facts, lambda: random_preset(rng), name=budget, count=count)


def random_preset(rng: random.Random) -> Preset:
    """Any one-stage preset; of a word without a bypass no plan can be made."""
    name, word = rng.choice(PREDICTORS), _word(rng)
    orders = [order for order in cache_traits(name).orders if order <= HIGHEST_ORDER]
    return Preset(
        steps=(len(word),),
        shift=_shift(rng.choice(LOG_SHIFTS)),
        solver=rng.choice(SOLVERS),
        cache=CacheConfig(name=name, actions=(word,), max_order=rng.choice(orders)),
    )


def _word(rng: random.Random) -> str:
    """A full step, and full ones or bypasses after it, more of one or of the other."""
    share = rng.uniform(0.1, 0.9)
    rest = rng.randint(*STEPS) - 1
    return "F" + "".join("F" if rng.random() < share else "B" for _ in range(rest))


def _shift(log_shift: float) -> tuple[float, ...]:
    return (round(math.exp(log_shift), 2),)


def controls(facts: ModelFacts, budget: str) -> tuple[Candidate, ...]:
    """What skipping has to beat: plain sampling with the steps that keep to a budget, and with one
    more, at every shift and with every solver."""
    most = math.floor(facts.default_steps / BUDGETS[budget])
    return tuple(
        Candidate(
            name=f"{budget} control, {steps} steps, mu {mu:g}, {solver}",
            preset=Preset(steps=(steps,), shift=_shift(mu), solver=solver),
        )
        for steps in (most, most + 1)
        for mu in LOG_SHIFTS
        for solver in SOLVERS
    )
