"""How measuring is fitted into a time: the budget, what is dropped for it, the rounds, the record.

In a round every method draws one picture, and the matrix products run once, so that a ratio
compares neighbours in time; who begins moves on from round to round. Long methods are in the first
rounds only: one of them takes the time of all others, whose times are the steadier for more rounds.
Everything is stored as soon as it is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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

LEAST_ROUNDS, MOST_ROUNDS = 2, 9
"""Rounds that what is measured must have time for, and that there are at most by default."""

LONG_ROUNDS = 2
"""Rounds that long methods are measured in, where there is time for more than one."""

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


def fitting(needs: Sequence[tuple[str, float]], left: float) -> tuple[str, ...]:
    """The groups that there is time for, of (group, seconds that it needs), most important first.

    As many from the front as fit into ``left`` seconds; the first one always.
    """
    fits = [total <= left for total in accumulate(need for _, need in needs)]
    count = fits.index(False) if False in fits else len(fits)
    return tuple(group for group, _ in needs[: max(count, 1)])


def needed(cost: float, *, long: bool) -> float:
    """Seconds of a method in the fewest rounds that are enough: a long one is warm before they
    begin, another draws two pictures to become so.
    """
    return cost if long else cost * (2 + LEAST_ROUNDS)


# --- the record -------------------------------------------------------------------------------


class Record:
    """The document of a run, on disk after every change: under ``unfinished`` until
    :meth:`finish`, so that a run that is killed takes no finished one with it. The next one goes on
    with its rounds where what ``head`` says under the names of ``same`` is the same.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], same: Sequence[str] = ()) -> None:
        self.path = path
        self.unfinished = path.with_name(f"{path.stem}-unfinished{path.suffix}")
        lists: dict[str, Any] = {name: [] for name in ("dropped", "failed", "rounds", "rows")}
        lists["rounds"] = self._earlier(head, same)
        self.resumed = len(lists["rounds"])
        self.document: dict[str, Any] = {**head, "complete": False, "phases": {}, **lists}
        self._store()

    def _earlier(self, head: Mapping[str, Any], same: Sequence[str]) -> list[Any]:
        """Rounds of a run that was killed, if all that is named ``same`` is the same in it."""
        try:
            found = json.loads(self.unfinished.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        goes_on = bool(same) and all(found.get(name) == head[name] for name in same)
        return list(found["rounds"]) if goes_on else []

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
    long: Collection[str] = (),
    after: Callable[[], None] = lambda: None,
) -> None:
    """Rounds into the record until it has ``most``, as many as there is time for, and the first as
    far as there is; those that are ``long`` take part in the first of a run, and in as many
    of the first :data:`LONG_ROUNDS` as leave time for :data:`LEAST_ROUNDS` of the others.

    ``costs`` are the seconds that each method should take; ``rates`` measures the matrix products;
    ``after`` is called after each round.
    A method that fails, or that there is no time for any more, is named and takes no further part.
    """
    usable, took = list(methods), dict(costs)
    for number in range(most - record.resumed):
        short = [name for name in usable if name not in long]
        reserved = max(LEAST_ROUNDS - number, 1) * sum(took[name] for name in short)
        ending = sum(took[name] for name in usable if name in long) + reserved > budget.left
        if number == LONG_ROUNDS or (number and short and ending):
            usable = short
        if not usable or (number and sum(took[name] for name in usable) > budget.left):
            return
        found = Round(number=record.resumed + number, matmul=rates())
        record.add("rounds", found.to_json())
        for name in _turned(usable, number):
            usable.remove(name)
            if costs[name] > budget.left:
                record.drop(name, f"from round {number + 1} on: no time was left for it")
                continue
            began = budget.spent
            with record.attempt(name):
                found.methods[name] = _measured(methods[name](number))
                usable.append(name)
            took[name] = budget.spent - began
            record.keep("rounds", [*record.document["rounds"][:-1], found.to_json()])
        usable.sort(key=list(methods).index)
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
        "by_stages": timed.by_stages,
        "finite": bool(timed.latents.isfinite().all()),
    }


def _microseconds(seconds: float) -> float:
    """Seconds to a tenth of a microsecond, which is finer than either clock."""
    return round(seconds, 7)
