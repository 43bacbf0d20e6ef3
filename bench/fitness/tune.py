"""Which shift and which solver few plain steps take: those that are best on scenes of their own."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.fitness.entries import REFERENCE, STEPS, Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fresco_trt.plan.stages import Solver

    Scene = Mapping[str, Mapping[str, Any]]
    """Scores of a scene's pictures by the point's name."""

SHIFTS = (None, 1.6, 2.0, 2.4)
"""Log-shifts that are tried; None is the model's own, and on the demo lower ones lost to it."""
SOLVERS: tuple[Solver, ...] = ("euler", "dpmpp_2m", "unipc")

TUNED_STEPS = tuple(steps for steps in STEPS if steps <= 10)
"""More steps are taken as the most of these: any way is close there, and trying costs most."""

SEED = 613
"""Where the tune's scenes come from; nothing else has them."""
SCENES, TRIED, FINALISTS = 8, 2, 3
"""All ways draw the first scenes, those that are tried, and the best of them the others too."""


def ways(steps: int) -> list[Entry]:
    """Every shift with every solver; the first is how users take them."""
    return [
        Entry(steps=steps, mu=mu, solver=solver, tuned=True) for mu in SHIFTS for solver in SOLVERS
    ]


def every_way() -> list[Entry]:
    """Those of all numbers of steps."""
    return [entry for steps in TUNED_STEPS for entry in ways(steps)]


def contest(number: int, seen: Sequence[Scene]) -> list[Entry]:
    """What draws the scene of a number, after those that were ``seen``."""
    if number < TRIED:
        return every_way()
    return [entry for steps in TUNED_STEPS for entry in _finalists(steps, seen)]


def tuned(seen: Sequence[Scene]) -> list[Entry]:
    """Every number of steps but the reference's, as the scenes of the tune say."""
    best = {steps: best_first(_finalists(steps, seen), seen)[0] for steps in TUNED_STEPS}
    return [replace(best[min(steps, max(TUNED_STEPS))], steps=steps) for steps in STEPS]


def _finalists(steps: int, seen: Sequence[Scene]) -> list[Entry]:
    return best_first(ways(steps), seen[:TRIED])[:FINALISTS]


def best_first(entries: Sequence[Entry], seen: Sequence[Scene]) -> list[Entry]:
    """Entries by the share of scenes that are right, then by mean SSIM, the best first."""
    return sorted(entries, key=lambda entry: _means(entry, seen)[1:], reverse=True)


def _means(entry: Entry, seen: Sequence[Scene]) -> tuple[int, float, float]:
    """How many scenes it has drawn, the share of them that are right, and their mean SSIM."""
    drawn = [scene[entry.point.name] for scene in seen if entry.point.name in scene]
    right, ssim = (statistics.fmean(each[key] for each in drawn) for key in ("right", "ssim"))
    return len(drawn), right, ssim


def tuning_of(seen: Sequence[Scene]) -> dict[str, Any]:
    """The tune for the stored document: what was chosen, and how all that was tried did."""
    tried = [(entry, *_means(entry, seen)) for entry in every_way()]
    return {
        "scenes": SCENES,
        "seed": SEED,
        "chosen": [_how(entry) for entry in tuned(seen)],
        "tried": [
            {**_how(entry), "scenes": drawn, "score": round(right, 4), "ssim": round(ssim, 4)}
            for entry, drawn, right, ssim in tried
        ],
    }


def _how(entry: Entry) -> dict[str, Any]:
    return {"steps": entry.steps, "mu": entry.mu, "solver": entry.solver}


def steps_left(seen: int, scenes: int) -> int:
    """Steps that are drawn after so many scenes of the tune, and for so many scenes, at the most:
    what was tuned may be what users have.
    """
    every, few = len(SHIFTS) * len(SOLVERS) * sum(TUNED_STEPS), FINALISTS * sum(TUNED_STEPS)
    tune = sum(
        REFERENCE.steps + (every if number < TRIED else few) for number in range(seen, SCENES)
    )
    return tune + scenes * (REFERENCE.steps + 2 * sum(STEPS))
