"""RALU's noise-timestep matching: shifts and restart levels that keep a staged run in distribution.

Beside the presets: a tool for making one. A model was trained on a density of times; a staged run
visits some twice, because each stage restarts further back. The stages' shift factors, and how far
back, are chosen so that the times visited are distributed like the model's own with the repeated
stretches added (arXiv 2507.08422, section "noise-timestep matching", and its code).

Times here are RALU's, ``t = 1 - sigma``: 0 is noise, 1 is clean. Of the planning modules this one
alone needs more than the standard library: scipy, when something is matched and not before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from types import ModuleType

from fresco_trt.errors import PlanError
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.schedule import shift_sigma

SHIFT_BOUNDS = (0.5, 10.0)
Z_BOUNDS = (2.0, 100.0)  # below 2 the noise that whitens RALU's nearest lift would not exist
GRID_POINTS = 1000
"""Times that densities are compared at. All three as in RALU's code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedShifts:
    """What :func:`match_shifts` found: the shift factor h of each stage, and ``z``, from which
    :func:`restart_level` gives where each stage restarts; RALU also writes c = 1 / z^2.
    ``divergence`` is the Jensen-Shannon distance left, the square root of the divergence in nats,
    as RALU prints it: below 0.03 it saw no artefacts.
    """

    shifts: tuple[float, ...]
    z: float
    divergence: float


def match_shifts(
    steps: Sequence[int], ends: Sequence[float], h_original: float = 3.0
) -> MatchedShifts:
    """The shifts and ``z`` for stages of so many ``steps`` that end at the times ``ends``.

    ``ends`` rise to 1, the clean end; ``h_original`` is the shift factor of the model's own
    schedule, 3 in RALU's runs of FLUX. Reduces the distance between :func:`visited_density` and
    :func:`target_density` as RALU's code does, from its start and by its method, so as to end where
    it ends. That is not quite the minimum: on a grid of times the distance is a staircase in z,
    which finite differences do not see; a search without them ends some per cent lower, at a larger
    z. Raises PlanError where scipy is not installed, ValueError for arguments that describe no
    staged run or a shift factor outside SHIFT_BOUNDS.
    """
    _check(steps, ends, h_original)
    times = [index / (GRID_POINTS - 1) for index in range(GRID_POINTS)]

    def distance(point: Sequence[float]) -> float:
        *shifts, z = (float(value) for value in point)
        starts = start_times(ends, z)
        target = target_density(times, starts, ends, h_original)
        visited = visited_density(times, steps, starts, ends, shifts)
        return jensen_shannon(target, visited)

    start = [*(h_original for _ in steps), Z_BOUNDS[0]]
    bounds = [*(SHIFT_BOUNDS for _ in steps), Z_BOUNDS]
    found = _optimizer().minimize(distance, start, bounds=bounds, method="L-BFGS-B")
    *shifts, z = (float(value) for value in found.x)
    return MatchedShifts(shifts=tuple(shifts), z=z, divergence=distance((*shifts, z)))


def restart_level(sigma: float, z: float) -> float:
    """Sigma at which the stage after one that ends at ``sigma`` restarts.

    RALU's ``s = e / (z*(1-e) + e)`` in sigmas: the same map as a shift by ``z``, so that z = 2 is
    the rewind of an orthonormal doubling. Raises ValueError unless sigma is in [0, 1] and z >= 2.
    """
    if not z >= Z_BOUNDS[0]:
        raise ValueError(f"z must be at least {Z_BOUNDS[0]:g}, not {z}")
    return shift_sigma(sigma, z)


def ralu_preset(
    *, steps: tuple[int, int, int], ends: Sequence[float], share: float, matched: MatchedShifts
) -> Preset:
    """RALU's recipe as a preset: a stage at half the side, a mixed one, and a full one.

    ``share`` of the coarse tokens, those on edges, is refined at ``ends[0]``, the rest at
    ``ends[1]``; each stage has its own shift, and the restarts follow from z. RALU repeats *noisy*
    tokens and adds noise that is correlated within each four, which makes the sum white again. A
    transition here works on the clean estimate, where white noise at the restart level already is
    the same marginal; hence ``noise="fresh"``, not a correlated draw. Edges are those of the latent
    gradient, its ablation's variant (0.996 against 1.022 ImageReward for edges in the decoded
    picture). Raises ValueError for ``ends`` that do not rise to 1, and as Preset does.
    """
    _check(steps, ends, 1.0)
    switch = tuple(1.0 - end for end in ends[:-1])
    return Preset(
        steps=steps,
        switch=switch,
        restart=tuple(restart_level(sigma, matched.z) for sigma in switch),
        lift="nearest",
        noise="fresh",
        refine=((("edge", share),), ()),
        shift=matched.shifts,
        window=1,
        positions="coarse",
    )


def start_times(ends: Sequence[float], z: float) -> tuple[float, ...]:
    """Time at which each stage starts, where they end at ``ends`` and restart by ``z``."""
    return (0.0, *(1.0 - shift_sigma(1.0 - end, z) for end in ends[:-1]))


def target_density(
    times: Sequence[float], starts: Sequence[float], ends: Sequence[float], h: float
) -> list[float]:
    """The model's own density of times, plus the stretches that the stages visit twice."""
    repeated = list(zip(starts[1:], ends[:-1], strict=True))
    total = 1.0 + sum(end - start for start, end in repeated)
    parts = [(1.0 / total, truncated_density(times, h, 0.0, 1.0))]
    parts += [
        ((end - start) / total, truncated_density(times, h, start, end)) for start, end in repeated
    ]
    return _mixture(parts)


def visited_density(
    times: Sequence[float],
    steps: Sequence[int],
    starts: Sequence[float],
    ends: Sequence[float],
    shifts: Sequence[float],
) -> list[float]:
    """Density of the times that the stages step through, each weighed by its steps."""
    stages = zip(steps, starts, ends, shifts, strict=True)
    return _mixture(
        [
            (count / sum(steps), truncated_density(times, h, start, end))
            for count, start, end, h in stages
        ]
    )


def truncated_density(times: Sequence[float], h: float, start: float, end: float) -> list[float]:
    """Density at ``times`` of an even schedule shifted by ``h``, cut to [start, end]: its integral
    there is 1. ``F(t) = h*t / (1 + (h-1)*t)`` is the distribution function."""
    mass = shift_sigma(end, h) - shift_sigma(start, h)
    return [
        h / (1.0 + (h - 1.0) * time) ** 2 / mass if start <= time <= end else 0.0 for time in times
    ]


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon distance of two densities on one grid: from 0 to the square root of log 2."""
    total_p, total_q = sum(p), sum(q)
    divergence = 0.0
    for each_p, each_q in zip(p, q, strict=True):
        a, b = each_p / total_p, each_q / total_q
        divergence += _excess(a, a + b) + _excess(b, a + b)
    return math.sqrt(max(divergence, 0.0) / 2.0)


def _excess(a: float, both: float) -> float:
    return a * math.log(2.0 * a / both) if a > 0.0 else 0.0


def _mixture(parts: Sequence[tuple[float, list[float]]]) -> list[float]:
    weights = [weight for weight, _ in parts]
    columns = zip(*(density for _, density in parts), strict=True)
    return [sum(map(float.__mul__, weights, column)) for column in columns]


def _check(steps: Sequence[int], ends: Sequence[float], h_original: float) -> None:
    if len(steps) < 2 or len(ends) != len(steps) or min(steps) < 1:
        raise ValueError(f"steps {steps} and ends {ends} are not those of two stages or more")
    if not (ends[-1] == 1.0 and all(a < b for a, b in pairwise((0.0, *ends)))):
        raise ValueError(f"ends are times that rise within (0, 1] to 1, not {ends}")
    lowest, highest = SHIFT_BOUNDS
    if not lowest <= h_original <= highest:
        raise ValueError(f"the shift factor must lie in {SHIFT_BOUNDS}, not {h_original}")


def _optimizer() -> ModuleType:
    try:
        return import_module("scipy.optimize")
    except ImportError as error:
        raise PlanError(
            "matching of shifts without scipy",
            expected="scipy, which comes with the extra 'bench'",
            fix="pip install 'fresco-trt[bench]', or pass shifts that were matched before",
        ) from error
