"""Draws candidates' pictures once and remembers their figures, across kills too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.instrument import said
from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.tune.families import Candidate
    from fresco_trt.tune.halving import Figures, Rounds
    from fresco_trt.tune.judge import Judge, Truth
    from fresco_trt.tune.model_runner import ModelRunner
    from fresco_trt.tune.state import State

_OUT = "left out"


@dataclass(kw_only=True, slots=True, eq=False)
class Gallery:
    """What :func:`~fresco_trt.tune.halving.halve` asks for figures.

    ``truth`` is the plan of the many steps, and ``truths`` are its pictures by number, drawn when
    they are first needed. A candidate whose picture cannot be drawn or judged is
    out, and ``say`` is told why; ``left_out`` has the reasons by name.
    """

    runner: ModelRunner
    judge: Judge
    truth: StagePlan
    state: State
    progress: Progress
    say: Callable[[str], None]
    pictures: int
    truths: dict[int, Truth] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _done: int = 0
    _drawn: int = 0
    _began: float = field(default_factory=perf_counter)
    _alive: int = 0

    def __call__(self, wanted: Sequence[Candidate], number: int) -> Mapping[str, Figures]:
        """Figures of candidates on the picture of a number, by name, without those that are out.

        Raises ScorerFailed for a scorer that cannot score the many-step picture.
        """
        self._tell(len(wanted))
        missing = [each for each in wanted if self.state.get(_key(each, number)) is None]
        self._advance(len(wanted) - len(missing))
        if missing:
            self._draw(missing, number)
        kept = {each.name: self.state.get(_key(each, number)) for each in wanted}
        for name, figures in kept.items():
            if _OUT in figures:
                self.left_out[name] = figures[_OUT]
        return {name: figures for name, figures in kept.items() if _OUT not in figures}

    def _draw(self, missing: Sequence[Candidate], number: int) -> None:
        prompt = self.runner.setup.prompts[number]
        if number not in self.truths:
            pixels, _ = self.runner.draw(self.truth, number)
            self.truths[number] = self.judge.truth(pixels, prompt)
        truth = self.truths[number]
        for each in missing:
            try:
                pixels, _ = self.runner.draw(each.plan, number)
                found = self.judge.figures(pixels, truth, prompt)
                figures: dict[str, Any] = {str(name): value for name, value in found.items()}
            except FrescoError as error:
                figures = {_OUT: said(error)}
                self.say(f"{each.name} is out: {said(error)}")
            self.state.keep(_key(each, number), figures)
            self._drawn += 1
            self._advance(1)

    def _advance(self, count: int) -> None:
        self._done = min(self._done + count, self.pictures)
        self.progress("comparing plans", self._done / self.pictures)

    def _tell(self, alive: int) -> None:
        """Say how many are left, and for how long, when a round begins."""
        if alive == self._alive:
            return
        self._alive = alive
        left = ""
        if self._drawn:
            pace = (perf_counter() - self._began) / self._drawn
            left = f", about {spoken(pace * (self.pictures - self._done))} left"
        self.say(f"comparing {alive} plans{left}")


def _key(candidate: Candidate, number: int) -> str:
    return f"{candidate.plan.digest()[:16]} on {number}"


def pictures_of(rounds: Rounds, candidates: int) -> int:
    """Pictures that a contest draws at most, but for the controls that are kept."""
    drawn, total, alive = 0, 0, candidates
    for place, (count, pictures) in enumerate(rounds):
        alive = min(count, alive) if place else alive  # all of them enter the first
        total += alive * (pictures - drawn)
        drawn = pictures
    return max(total, 1)


def spoken(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
