"""How measuring is fitted into a time: the budget, what is dropped for it, the rounds, the record.

In a round every method draws one picture, and the matrix products run once, so that a ratio
compares neighbours in time; who begins moves on from round to round. Everything is stored as soon
as it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.instrument import said
from fresco_trt.bench.record import store

if TYPE_CHECKING:
    from pathlib import Path

    from bench.gpu.methods import Method, Timed

LEAST_ROUNDS, MOST_ROUNDS = 3, 9
"""Rounds that what is measured must have time for, and that there are at most by default."""

FINISH = 10.0
"""Seconds that are kept for the end of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Wall seconds for the whole run, from ``began`` on, as ``now`` tells the time."""

    seconds: float
    began: float
    now: Callable[[], float] = perf_counter

    @property
    def spent(self) -> float:
        """Seconds since the run began."""
        return self.now() - self.began

    @property
    def left(self) -> float:
        """Seconds left to measure in; below zero when they are used up."""
        return self.seconds - FINISH - self.spent


def fitting(costs: Sequence[tuple[str, float]], left: float) -> tuple[str, ...]:
    """The groups that there is time for, of (group, seconds of one round), most important first.

    As many from the front as can be warmed up once and run :data:`LEAST_ROUNDS` times in ``left``
    seconds; the first one always.
    """
    totals = accumulate(cost for _, cost in costs)
    fits = [total * (1 + LEAST_ROUNDS) <= left for total in totals]
    count = fits.index(False) if False in fits else len(fits)
    return tuple(group for group, _ in costs[: max(count, 1)])


# --- the record -------------------------------------------------------------------------------


class Record:
    """The document of a run, on disk after every change: under ``unfinished`` until
    :meth:`finish`, so that a run that is killed takes no finished one with it.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.unfinished = path.with_name(f"{path.stem}-unfinished{path.suffix}")
        lists: dict[str, Any] = {name: [] for name in ("dropped", "failed", "rounds", "rows")}
        self.document: dict[str, Any] = {**head, "complete": False, "phases": {}, **lists}
        self._store()

    def keep(self, key: str, value: Any) -> None:
        """Keep a value under a key, in place of an older one."""
        self.document[key] = value
        self._store()

    def finish(self) -> None:
        """Put the document in its place."""
        self.document["complete"] = True
        store(self.document, self.path)
        self.unfinished.unlink(missing_ok=True)

    def add(self, key: str, value: Any) -> None:
        """Append to the list of that key."""
        self.document.setdefault(key, []).append(value)
        self._store()

    def drop(self, what: str, reason: str) -> None:
        """Say of something that it was left out, and why."""
        self.add("dropped", {"what": what, "reason": reason})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Keep an error in words, and go on."""
        try:
            yield
        except Exception as error:  # a new card may fail in any library, and the rest still counts
            self.add("failed", {"what": what, "reason": said(error)})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run, and :meth:`attempt` it."""
        began = perf_counter()
        with self.attempt(name):
            yield
        self.keep("phases", {**self.document["phases"], name: perf_counter() - began})

    def _store(self) -> None:
        store(self.document, self.unfinished)


# --- rounds -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Round:
    """One round's measurements: FLOP/s of the matrix products by sides, and every method's."""

    number: int
    matmul: Mapping[str, float]
    methods: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """``{round, matmul, methods}``."""
        return {"round": self.number, "matmul": dict(self.matmul), "methods": self.methods}


def take_rounds(
    methods: Mapping[str, Method],
    costs: Mapping[str, float],
    rates: Callable[[], Mapping[str, float]],
    budget: Budget,
    record: Record,
    *,
    most: int = MOST_ROUNDS,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Up to ``most`` rounds into the record, as many as there is time for, and the first as far as
    there is.

    ``costs`` are the seconds that each method should take; ``rates`` measures the matrix products;
    ``after`` is called after each round.
    A method that fails, or that there is no time for any more, is named and takes no further part.
    """
    usable, cost = list(methods), sum(costs[name] for name in methods)
    for number in range(most):
        if not usable or (number and cost > budget.left):
            return
        began = budget.spent
        found = Round(number=number, matmul=rates())
        record.add("rounds", found.to_json())
        for name in _turned(usable, number):
            usable.remove(name)
            if costs[name] > budget.left:
                record.drop(name, f"from round {number + 1} on: no time was left for it")
                continue
            with record.attempt(name):
                found.methods[name] = _measured(methods[name](number))
                usable.append(name)
            record.keep("rounds", [*record.document["rounds"][:-1], found.to_json()])
        usable.sort(key=list(methods).index)
        cost = budget.spent - began
        after()


def _turned(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    return names[first:] + names[:first]


def _measured(timed: Timed) -> dict[str, Any]:
    """A picture's seconds as they are stored; of the latents, whether they are numbers at all."""
    inside = {name: [_microseconds(call) for call in each] for name, each in timed.inside.items()}
    return {
        "seconds": _microseconds(timed.seconds),
        "engine_seconds": _microseconds(timed.engine_seconds),
        "inside": inside,
        "finite": bool(timed.latents.isfinite().all()),
    }


def _microseconds(seconds: float) -> float:
    """Seconds to a tenth of a microsecond, which is finer than either clock."""
    return round(seconds, 7)
