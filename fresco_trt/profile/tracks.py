"""Spans laid out in time: tracks of bars, and a Chrome trace of them that Perfetto opens.

Between the spans of one request and what draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fresco_trt.profile.spans import HOST, Place, Span, place_of
from fresco_trt.run.trace import REQUEST, STAGE, STEP

PROCESS = 1
"""All tracks are of one process of the trace."""

THOUSAND = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stretch of time, in nanoseconds from the first bar's begin; ``name`` is a span's own, also
    of what holds others.
    """

    name: str
    place: Place
    begin: int
    end: int

    @property
    def label(self) -> str:
        """The name, with the number of a stage or a step."""
        number = {STAGE: self.place.stage, STEP: self.place.step}.get(self.name)
        return self.name if number is None else f"{self.name} {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Bars of one thread or device, in the order of their begin: each two of them are apart, or one
    lies in the other.
    """

    name: str
    bars: Sequence[Bar]


def track_of(spans: Sequence[Span], name: str = HOST) -> Track:
    """Closed spans of one thread as a track."""
    first = min((span.begin for span in spans), default=0)
    return Track(
        name=name,
        bars=[
            Bar(
                name=span.name,
                place=place_of(span),
                begin=span.begin - first,
                end=span.begin - first + span.duration,
            )
            for span in sorted(spans, key=lambda span: (span.begin, -span.duration))
        ],
    )


def median_request(spans: Sequence[Span]) -> list[Span]:
    """The spans of the request whose length is in the middle; none of none."""
    roots = [span for span in spans if span.name == REQUEST and span.parent is None]
    if not roots:
        return []
    middle = sorted(roots, key=lambda span: span.duration)[(len(roots) - 1) // 2]
    return [span for span in spans if _root(span) is middle]


def _root(span: Span) -> Span:
    while span.parent is not None:
        span = span.parent
    return span


def chrome_trace(tracks: Sequence[Track], about: Mapping[str, Any]) -> dict[str, Any]:
    """Tracks as a trace of Chrome's JSON object format, times in microseconds; ``about`` is shown
    with it. Perfetto (ui.perfetto.dev) and chrome://tracing open it.
    """
    events = [_named("process_name", 0, "fresco-trt")]
    for number, track in enumerate(tracks, start=1):
        events.append(_named("thread_name", number, track.name))
        events.extend(_events(track, number))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about)}


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": PROCESS, "tid": thread, "name": what, "args": {"name": name}}


def _events(track: Track, thread: int) -> Iterator[dict[str, Any]]:
    for bar in track.bars:
        numbers = {"stage": bar.place.stage, "step": bar.place.step}
        yield {
            "ph": "X",
            "pid": PROCESS,
            "tid": thread,
            "name": bar.label,
            "cat": bar.name,
            "ts": bar.begin / THOUSAND,
            "dur": (bar.end - bar.begin) / THOUSAND,
            "args": {name: value for name, value in numbers.items() if value is not None},
        }
