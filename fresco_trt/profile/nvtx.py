"""Spans as NVTX ranges, so that a profiler shows and joins them with what the GPU did.

A sink beside the recorder. All ranges are in one domain of the package's own; their names are
registered strings, and what differs from one to the next, the numbers, goes into the payload.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fresco_trt.errors import ProfilerUnavailable
from fresco_trt.run.trace import REQUEST, STAGE, STEP, recording

DOMAIN = "fresco"
INSTALL = "pip install fresco-trt[profile]"

_COLOURS = {
    "request": 0xFF999999,
    "stage": 0xFF56B4E9,
    "step": 0xFFCCCCCC,
    "full": 0xFF0072B2,
    "bypass": 0xFF009E73,
    "replay": 0xFF0072B2,
    "text": 0xFFE69F00,
    "transition": 0xFFD55E00,
    "decode": 0xFFCC79A7,
}
_HOLDS = {STAGE: REQUEST, STEP: STAGE, "full": STEP, "bypass": STEP}
_KEPT = 1024


class NvtxRanges:
    """A sink that pushes a range of ``domain`` for each span, and pops it.

    The payload is the span's number, or 0. Ranges of a thread are a stack: samplers that one thread
    takes turns with give wrong ones.
    """

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        # Made once: a request opens some dozens, of the same names and numbers every time.
        self._attributes = lru_cache(maxsize=_KEPT)(self._made)

    def begin(self, name: str, number: int | None) -> None:
        """As :meth:`fresco_trt.run.trace.Sink.begin`."""
        self._domain.push_range(self._attributes(name, number or 0))

    def end(self, begun: object) -> None:
        """As :meth:`fresco_trt.run.trace.Sink.end`."""
        self._domain.pop_range()

    def _made(self, name: str, payload: int) -> Any:
        return self._domain.get_event_attributes(
            message=name,  # which registers it
            color=_COLOURS.get(name, 0xFF999999),
            category=category_of(name),
            payload=payload,
        )


def category_of(name: str) -> str:
    """The category of a range: the names that it lies in, with slashes, as tools nest them."""
    held_by = _HOLDS.get(name, STAGE if name in ("replay", "transition") else REQUEST)
    return name if name == REQUEST else f"{category_of(held_by)}/{name}"


@contextmanager
def nvtx_ranges() -> Iterator[None]:
    """Within the scope, every request of this process is marked by NVTX ranges, for a profiler that
    is attached to it; without one they cost next to nothing.

    Raises ProfilerUnavailable without the package nvtx.
    """
    with recording(NvtxRanges(fresco_domain())):
        yield


def fresco_domain() -> Any:
    """The package's domain. Raises ProfilerUnavailable without the package nvtx."""
    if find_spec("nvtx") is None:
        raise ProfilerUnavailable(
            "NVTX ranges without the Python package nvtx",
            expected="it beside this package",
            fix=INSTALL,
        )
    library: Any = import_module("nvtx")
    return library.get_domain(DOMAIN)
