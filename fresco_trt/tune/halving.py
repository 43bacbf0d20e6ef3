"""The contest: ever fewer candidates on ever more pictures, with intervals. Numbers only.

Successive halving (Jamieson and Talwalkar, AISTATS 2016). After each round the better ones go on,
less those that are surely worse than the leader by a paired comparison on the same pictures; the
control goes on in any case, so that what wins has beaten it on as many.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fresco_trt.errors import EngineFailed
from fresco_trt.tune.options import METRICS, Floor, Metric

if TYPE_CHECKING:
    from fresco_trt.tune.families import Candidate

Rounds: TypeAlias = tuple[tuple[int, int], ...]
"""Candidates that are left, and pictures that each of them has then drawn."""

Figures: TypeAlias = Mapping[Metric, float]
"""One picture's metrics, as far as they are measured."""

Drawn: TypeAlias = "Callable[[Sequence[Candidate], int], Mapping[str, Figures]]"
"""Figures of candidates on the picture of a number, by name; one that is not there is out."""

Z95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A candidate and what it drew: its ``speed``, and figures a picture, in order."""

    candidate: Candidate
    speed: float
    figures: tuple[Figures, ...]

    def mean(self, metric: Metric) -> float | None:
        """The mean of a metric over the pictures; None where it is not measured."""
        found = [each[metric] for each in self.figures if metric in each]
        return statistics.fmean(found) if found else None

    @property
    def values(self) -> tuple[float, ...]:
        """What each picture is worth: the sum of its metrics. A scorer's unit is worth one of
        SSIM.
        """
        return tuple(sum(each.values()) for each in self.figures)

    @property
    def value(self) -> float:
        """What its pictures are worth on average."""
        return statistics.fmean(self.values)

    def interval(self, metric: Metric) -> tuple[float, float]:
        """The 95% interval of a metric's mean; of one picture all that there is."""
        return _interval([each[metric] for each in self.figures if metric in each])


def _interval(values: Sequence[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def difference(ours: Standing, theirs: Standing) -> tuple[float, float, float]:
    """How much more our pictures are worth than theirs of the same numbers: mean and 95% interval.

    One picture has no spread: the interval then is all numbers.
    """
    pairs = [a - b for a, b in zip(ours.values, theirs.values, strict=True)]
    return statistics.fmean(pairs), *_interval(pairs)


# --- who is better ----------------------------------------------------------------------------


def ranked(standings: Sequence[Standing], floor: Floor | None) -> list[Standing]:
    """Best first: by worth; with a floor those that reach it by speed, then the others by how near
    they are.
    """
    if floor is None:
        return sorted(standings, key=lambda each: -each.value)
    return sorted(standings, key=lambda each: _by_floor(each, floor))


def _by_floor(standing: Standing, floor: Floor) -> tuple[float, float]:
    mean = standing.mean(floor.metric)
    if mean is None:
        raise ValueError(f"no {floor.metric} measured; expected the metric of the floor")
    reached = mean >= floor.least
    return (0.0, -standing.speed) if reached else (1.0, floor.least - mean)


def may_win(standing: Standing, leader: Standing, floor: Floor | None) -> bool:
    """Whether more pictures could make it the winner: not surely worse, nor surely below."""
    if floor is None:
        return difference(standing, leader)[2] >= 0.0
    _, high = standing.interval(floor.metric)
    low, _ = leader.interval(floor.metric)
    beaten = low >= floor.least and standing.speed < leader.speed
    return high >= floor.least and not beaten


def promising(standings: Sequence[Standing], floor: Floor | None) -> list[Standing]:
    """Whom to look at further, first first: by worth; with a floor those that may still reach it,
    the fastest first, then the others by how near they are.
    """
    if floor is None:
        return ranked(standings, None)

    def key(each: Standing) -> tuple[float, float]:
        _, high = each.interval(floor.metric)
        near = floor.least - (each.mean(floor.metric) or 0.0)
        allowed = _SLACK if math.isinf(high) else 0.0
        may = high >= floor.least and (not allowed or near <= allowed)
        return (0.0, -each.speed) if may else (1.0, near)

    return sorted(standings, key=key)


_SLACK = 0.05
"""How far below a floor one picture may be for its plan to draw a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``finalists`` are who is left, best first; ``everyone`` has the last standing of each that
    could be judged, best first.
    """

    finalists: tuple[Standing, ...]
    everyone: tuple[Standing, ...]

    @property
    def winner(self) -> Standing:
        """The best of all."""
        return self.finalists[0]

    @property
    def control(self) -> Standing | None:
        """The best of plain sampling with few steps."""
        return next((each for each in self.finalists if each.candidate.is_control), None)


def halve(
    pool: Sequence[Candidate],
    speeds: Mapping[str, float],
    drawn: Drawn,
    rounds: Rounds,
    floor: Floor | None = None,
) -> Outcome:
    """The contest; the best controls are among those who are left after the last round.

    ``drawn`` is asked again for what it was asked before, and should remember. Raises EngineFailed
    where none can be drawn.
    """
    alive, standings, last = list(pool), list[Standing](), dict[str, Standing]()
    for place, (_, pictures) in enumerate(rounds):
        table = [drawn(alive, number) for number in range(pictures)]
        alive = [each for each in alive if all(each.name in row for row in table)]
        if not alive:
            raise EngineFailed(
                f"none of {len(pool)} candidates gave pictures that can be judged",
                expected="one that does",
                fix="see the reasons above: a scorer that fails, or weights that are not finite",
            )
        standings = [
            Standing(
                candidate=each,
                speed=speeds[each.name],
                figures=tuple(row[each.name] for row in table),
            )
            for each in alive
        ]
        last |= {each.candidate.name: each for each in standings}
        if place + 1 < len(rounds):
            alive = [each.candidate for each in _going_on(standings, rounds[place + 1][0], floor)]
    order = ranked(standings, floor)
    others = [each for each in last.values() if all(each is not one for one in order)]
    return Outcome(finalists=tuple(order), everyone=(*order, *ranked(others, floor)))


def _going_on(standings: Sequence[Standing], count: int, floor: Floor | None) -> list[Standing]:
    order = promising(standings, floor)
    leader = ranked(standings, floor)[0]
    able = [each for each in order if each is leader or may_win(each, leader, floor)]
    kept = able[:count]
    for extra in (leader, *_controls(order)):
        if all(extra is not each for each in kept):
            kept.append(extra)
    return kept


def _controls(order: Sequence[Standing]) -> list[Standing]:
    """The best control, and the best as users have it."""
    every = [each for each in order if each.candidate.is_control]
    return every[:1] + [each for each in every if each.candidate.is_default][:1]


# --- figures for documents ----------------------------------------------------------------------


def figures_of(standing: Standing) -> dict[str, object]:
    """A standing's figures as JSON values: means and their intervals, by name."""
    found: dict[str, object] = {"speed": standing.speed, "pictures": len(standing.figures)}
    for metric in METRICS:
        mean = standing.mean(metric)
        if mean is not None:
            low, high = standing.interval(metric)
            bounds = None if math.isinf(low) else [low, high]
            found |= {metric: mean, f"{metric}_interval": bounds}
    return found
