"""The contest: candidates that keep to a budget, ever fewer of them on ever more scenes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt.bench.methods import Point
from fresco_trt.bench.plain import MODEL
from fresco_trt.errors import FrescoError
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import ExitStack

    from fresco_trt.bench.instrument import Drawn, Instrument
    from fresco_trt.bench.results_log import ResultsLog
    from fresco_trt.plan.facts import ModelFacts

SLACK = 1.15
"""A candidate may cost this many times less than its budget allows, and no less than that."""

Rounds: TypeAlias = tuple[tuple[int, int], ...]
"""Candidates that are left, and scenes that each of them has then drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan's preset under a name of its own."""

    name: str
    preset: Preset

    @property
    def point(self) -> Point:
        """What an instrument draws it as."""
        return Point(method="fresco", settings=self.preset, preset=self.name)


REFERENCE = Point(method="plain", settings=Preset(steps=(model_facts(MODEL).default_steps,)))
"""The plain sampler on one static engine: the same picture as diffusers', in less time."""


def within(
    budget: float,
    facts: ModelFacts,
    random_preset: Callable[[], Preset | None],
    *,
    name: str,
    count: int,
) -> tuple[Candidate, ...]:
    """``count`` different presets that keep to a budget, of those that ``random_preset`` gives.

    They are called after their budget's ``name``, with a number.
    """
    found: dict[Preset, None] = {}
    while len(found) < count:
        preset = random_preset()
        if preset is not None and _keeps_to(facts, preset, budget):
            found[preset] = None
    return tuple(
        Candidate(name=f"{name} {index}", preset=preset) for index, preset in enumerate(found)
    )


def _keeps_to(facts: ModelFacts, preset: Preset, budget: float) -> bool:
    try:
        plan = plan_from_preset(facts, preset)
    except FrescoError:
        return False
    return budget <= plan_cost(facts, plan).ratio <= SLACK * budget


# --- halving ----------------------------------------------------------------------------------

Scores: TypeAlias = "dict[str, Any]"
Drawing: TypeAlias = "Callable[[Sequence[Candidate], int], Mapping[str, Scores]]"
"""Scores of candidates, by name, on one scene."""


def halve(
    pool: Sequence[Candidate], drawn: Drawing, rounds: Rounds
) -> list[tuple[Candidate, Scores]]:
    """The candidates of the last round, best first, with their figures.

    ``drawn`` is asked again for what it was asked before, and should remember.
    """
    alive = list(pool)
    for count, scenes in rounds:
        alive = alive[:count]
        table = [drawn(alive, number) for number in range(scenes)]
        figures = {each.name: _figures([row[each.name] for row in table]) for each in alive}
        alive.sort(key=lambda each: -figures[each.name]["value"])
    return [(each, figures[each.name]) for each in alive]


def _figures(scores: Sequence[Scores]) -> Scores:
    score = statistics.fmean(each["right"] for each in scores)
    ssim = statistics.fmean(each["ssim"] for each in scores)
    return {"value": score + ssim, "score": score, "ssim": ssim, "scenes": len(scores)}


class Gallery:
    """Draws candidates' scenes once and remembers their scores, across kills too."""

    def __init__(
        self, instrument: Instrument, pool: Iterable[Candidate], log: ResultsLog, scope: ExitStack
    ) -> None:
        self._instrument, self._log = instrument, log
        points = [REFERENCE, *(each.point for each in pool)]
        self._methods, left_out = instrument.methods(points, scope)
        if left_out:
            raise ValueError(f"candidates that cannot run: {left_out}; expected none")
        self._references: dict[int, Drawn] = {}

    def __call__(self, wanted: Sequence[Candidate], number: int) -> dict[str, Scores]:
        """Scores of candidates on one scene."""
        notes = self._log.notes
        missing = [each for each in wanted if _key(each, number) not in notes]
        if missing:
            self._draw(missing, number)
        return {each.name: notes[_key(each, number)] for each in wanted}

    def _draw(self, missing: Sequence[Candidate], number: int) -> None:
        case = self._instrument.cases[number]
        inputs = self._instrument.encode(case)
        if number not in self._references:
            self._references[number] = self._methods[REFERENCE.name](inputs, case.seed)
        drawn = {REFERENCE.name: self._references[number]}
        for each in missing:
            drawn[each.point.name] = self._methods[each.point.name](inputs, case.seed)
        scores, _ = self._instrument.judge(case, drawn, REFERENCE.name)
        for each in missing:
            kept = {key: scores[each.point.name][key] for key in ("right", "ssim")}
            self._log.add_note(_key(each, number), kept)


def _key(candidate: Candidate, number: int) -> str:
    return f"{candidate.name} on {number}"
