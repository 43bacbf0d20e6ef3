"""The document of a profile: each part of a request with its seconds and its share of all.

Between what was recorded and what shows it. The command prints it, and stores it as it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from fresco_trt.profile.spans import HOST, Part, Span, parts_of
from fresco_trt.run.trace import DECODE, REQUEST, TEXT, TRANSITION

SCHEMA = 1
"""Of the documents: it grows when a key changes its meaning."""

BILLION = 1_000_000_000


def host_summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Of the spans of whole requests: ``requests``, their ``request_seconds``, the ``seconds`` that
    a request spent where, and ``rows``, one a place.
    """
    lengths = [span.duration for span in spans if span.name == REQUEST and span.parent is None]
    return {"request_seconds": spread(lengths), **parts_summary(parts_of(spans), len(lengths))}


def parts_summary(parts: Sequence[Part], requests: int) -> dict[str, Any]:
    """Of the parts of so many requests: ``requests``, the ``seconds`` that one spent where in the
    mean, the share of them ``outside_engines``, and ``rows``, one a place, with the calls and the
    seconds of a request and their share of it. Shares add up to 1.
    """
    whole = sum(part.nanoseconds for part in parts)
    count = max(requests, 1)
    seconds = {
        "total": whole,
        "engines": sum(part.nanoseconds for part in parts if part.place.in_engine),
        **{
            name: sum(part.nanoseconds for part in parts if part.place.part == name)
            for name in (TEXT, TRANSITION, DECODE, HOST)
        },
    }
    outside = whole - seconds["engines"]
    return {
        "requests": requests,
        "seconds": {name: _seconds(value / count) for name, value in seconds.items()},
        "outside_engines": outside / whole if whole else 0.0,
        "rows": [
            {
                "stage": part.place.stage,
                "step": part.place.step,
                "part": part.place.part,
                "calls": part.calls / count,
                "seconds": _seconds(part.nanoseconds / count),
                "share": part.nanoseconds / whole if whole else 0.0,
            }
            for part in parts
        ],
    }


def spread(nanoseconds: Iterable[int]) -> dict[str, float] | None:
    """Median, smallest and largest, in seconds; None of nothing."""
    values = sorted(nanoseconds)
    if not values:
        return None
    return {
        "median": _seconds(statistics.median(values)),
        "low": _seconds(values[0]),
        "high": _seconds(values[-1]),
    }


def _seconds(nanoseconds: float) -> float:
    return nanoseconds / BILLION
