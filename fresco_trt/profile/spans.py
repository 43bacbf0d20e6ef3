"""Spans that were recorded, and the sums of them: each nanosecond in one place, none twice.

Between what opens spans (:mod:`fresco_trt.run.trace`) and what shows them. A span's own time is its
length less that of the spans within, so that the parts of a request add up to it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import NamedTuple

from fresco_trt.run.trace import (
    DECODE,
    ENGINES,
    HOLDERS,
    REQUEST,
    STAGE,
    STEP,
    TEXT,
    TRANSITION,
)

HOST = "host"
"""What a request, a stage or a step did outside of all its parts."""


@dataclass(slots=True, kw_only=True, eq=False)
class Span:
    """A scope of :func:`fresco_trt.run.trace.span`, in nanoseconds of one clock; ``end`` is None
    while it is open, ``parent`` what it lies in on its thread.
    """

    name: str
    number: int | None
    begin: int
    end: int | None
    parent: Span | None
    thread: int

    @property
    def duration(self) -> int:
        """Nanoseconds; ValueError while it is open."""
        if self.end is None:
            raise ValueError(f"the span {self.name!r} is open; expected one that ended")
        return self.end - self.begin


class Recorder:
    """A sink that keeps every span. ``wait`` lets a device finish what was queued, at each begin
    and end: without one, work of a device counts where the host waits for it.
    """

    def __init__(
        self,
        *,
        wait: Callable[[], None] | None = None,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self.spans: list[Span] = []
        """In the order of their begin, on each thread."""
        self._wait, self._clock = wait, clock
        self._open: dict[int, list[Span]] = {}

    def begin(self, name: str, number: int | None) -> Span:
        """As :meth:`fresco_trt.run.trace.Sink.begin`."""
        thread = threading.get_ident()
        stack = self._open.setdefault(thread, [])
        span = Span(
            name=name,
            number=number,
            begin=self._now(),
            end=None,
            parent=stack[-1] if stack else None,
            thread=thread,
        )
        stack.append(span)
        self.spans.append(span)
        return span

    def end(self, begun: object) -> None:
        """As :meth:`fresco_trt.run.trace.Sink.end`; what is still open within ends with it."""
        if not isinstance(begun, Span) or begun not in self._open[begun.thread]:
            return  # ended with what held it
        stack = self._open[begun.thread]
        now = self._now()
        while stack:
            span = stack.pop()
            span.end = now
            if span is begun:
                return

    def _now(self) -> int:
        if self._wait is not None:
            self._wait()
        return self._clock()


class Place(NamedTuple):
    """Where in a request: its stage and step from 1, None outside of them, and the part, which is a
    name of :mod:`fresco_trt.run.trace` or :data:`HOST`.
    """

    stage: int | None
    step: int | None
    part: str

    def __str__(self) -> str:
        words = [
            *([] if self.stage is None else [f"stage {self.stage}"]),
            *([] if self.step is None else [f"step {self.step}"]),
            self.part,
        ]
        return ", ".join(words)

    @property
    def in_engine(self) -> bool:
        """Whether an engine runs there."""
        return self.part in ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What all requests spent at one place: how often, and nanoseconds."""

    place: Place
    calls: int
    nanoseconds: int


def parts_of(spans: Sequence[Span]) -> tuple[Part, ...]:
    """The own times of all spans, summed by their place, in the order of a request.

    They add up to the time of the spans that lie in no other. Raises ValueError for an open span.
    """
    own: dict[int, int] = {id(span): span.duration for span in spans}
    for span in spans:
        if span.parent is not None and id(span.parent) in own:
            own[id(span.parent)] -= span.duration
    calls: dict[Place, int] = defaultdict(int)
    taken: dict[Place, int] = defaultdict(int)
    for span in spans:
        place = place_of(span)
        calls[place] += 1
        taken[place] += own[id(span)]
    return tuple(
        Part(place=place, calls=calls[place], nanoseconds=taken[place]) for place in in_order(taken)
    )


def place_of(span: Span) -> Place:
    """Where the own time of a span is spent, by the spans that it lies in."""
    return place_within(span.name, _lineage(span))


def place_within(name: str, lineage: Iterable[tuple[str, int | None]]) -> Place:
    """Where a span of that name is, that lies in those of ``lineage`` and is one of them: names and
    numbers, the innermost first.
    """
    stage = step = None
    for holder, number in lineage:
        if holder == STEP and step is None:
            step = number
        elif holder == STAGE and stage is None:
            stage = number
        elif holder == REQUEST:
            break  # another request, in a callback of this one's, may hold that
    return Place(stage, step, HOST if name in HOLDERS else name)


def _lineage(span: Span | None) -> Iterable[tuple[str, int | None]]:
    while span is not None:
        yield span.name, span.number
        span = span.parent


_WITHIN = {TEXT: 0, **dict.fromkeys(ENGINES, 1), HOST: 2, TRANSITION: 3, DECODE: 5}


def in_order(places: Iterable[Place]) -> list[Place]:
    """As a request comes through them: the text, each stage's steps and what leaves it, the
    decoder, and what the host did beside.
    """

    def key(place: Place) -> tuple[float, float, float, str]:
        beside = place.stage is None and place.part != TEXT
        stage = float("inf") if beside else float(place.stage or 0)
        last = place.step is None and place.stage is not None
        return stage, float("inf") if last else float(place.step or 0), _rank(place), place.part

    return sorted(places, key=key)


def _rank(place: Place) -> float:
    if place.stage is None and place.part == HOST:
        return 9
    if place.step is None and place.part == HOST:
        return 4
    return _WITHIN.get(place.part, 8)


def tenths(values: Sequence[int]) -> list[int]:
    """Shares of the values in tenths of a percent, rounded so that they add up to 100.0%; zeros if
    there is nothing to share.

    By the largest remainder, the first of equal ones.
    """
    whole = sum(values)
    if whole <= 0:
        return [0] * len(values)
    scaled = [divmod(value * 1000, whole) for value in values]
    missing = 1000 - sum(floor for floor, _ in scaled)
    largest = sorted(range(len(values)), key=lambda index: -scaled[index][1])[:missing]
    return [floor + (index in largest) for index, (floor, _) in enumerate(scaled)]
