"""What the study of fitness draws: plain steps, as users take them and as a tune would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.bench.points import engine_steps

if TYPE_CHECKING:
    from fresco_trt.bench.methods import Point
    from fresco_trt.plan.stages import Solver


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A number of plain steps and how they are taken: the log-shift, None for the model's own, and
    the solver. ``tuned`` ones are what a tune chose.
    """

    steps: int
    mu: float | None = None
    solver: Solver = "euler"
    tuned: bool = False

    @property
    def name(self) -> str:
        """For people."""
        mu = "own shift" if self.mu is None else f"mu {self.mu:g}"
        return f"{self.steps} steps" + (f", tuned ({mu}, {self.solver})" if self.tuned else "")

    @property
    def point(self) -> Point:
        """What the bench calls it. A tune may end where users begin: two entries, one point."""
        return engine_steps(self.steps, self.mu, self.solver)


REFERENCE = Entry(steps=50)
"""What all others lose to."""

STEPS = (28, 14, 10, 7, 5, 4, 3)


def with_tuned(tuned: Iterable[Entry]) -> list[Entry]:
    """The reference, and then every number of steps as users take them and as they were tuned."""
    return [REFERENCE, *(each for entry in tuned for each in (Entry(steps=entry.steps), entry))]


def steps_of(entries: Iterable[Entry]) -> int:
    """Steps of a scene that is drawn by the reference and by entries."""
    return sum({each.point.name: each.steps for each in (REFERENCE, *entries)}.values())
