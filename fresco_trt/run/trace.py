"""Where a request's time goes, as spans: request > stage > step > what a step is made of.

Beside the whole request side, which opens the spans. Who wants to know puts in a :class:`Sink`
(:mod:`fresco_trt.profile` has those there are); while nobody does, a span is one look at an
attribute, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

REQUEST, STAGE, STEP = "request", "stage", "step"
"""What holds other spans. Its time less theirs is the host's: noise, solver, cache."""

FULL, BYPASS, REPLAY = "full", "bypass", "replay"
"""Calls of engines: by the action of a step, or all of a stage in one launch."""

TEXT, TRANSITION, DECODE = "text", "transition", "decode"
"""Prompt encoders; from a stage to the next; the decoder."""

HOLDERS = (REQUEST, STAGE, STEP)
ENGINES = (FULL, BYPASS, REPLAY)
NAMES = (*HOLDERS, *ENGINES, TEXT, TRANSITION, DECODE)


class Sink(Protocol):
    """Is told where spans begin and end, from any thread."""

    def begin(self, name: str, number: int | None) -> object:
        """A span of one of :data:`NAMES` begins. ``number`` counts from 1: a stage's in its plan, a
        step's over the whole request, and for a transition the stage that it leaves; None for the
        others. What is returned is given back at the end.
        """
        ...

    def end(self, begun: object) -> None:
        """The span that ``begin`` returned this for ends, also where an error ended it."""
        ...


class _Tracing:
    """The sink of this process, None while nobody profiles."""

    __slots__ = ("sink",)

    def __init__(self) -> None:
        self.sink: Sink | None = None


_TRACING = _Tracing()


class _Nothing:
    """A span that nobody asked for."""

    __slots__ = ()

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing."""


_NOTHING = _Nothing()


class _Span:
    __slots__ = ("_begun", "_name", "_number", "_sink")

    def __init__(self, sink: Sink, name: str, number: int | None) -> None:
        self._sink, self._name, self._number = sink, name, number
        self._begun: object = None

    def __enter__(self) -> None:
        self._begun = self._sink.begin(self._name, self._number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sink.end(self._begun)


def span(name: str, number: int | None = None) -> AbstractContextManager[None]:
    """Within the scope: a span of :data:`NAMES`, with its number as :meth:`Sink.begin` takes it."""
    sink = _TRACING.sink
    return _NOTHING if sink is None else _Span(sink, name, number)


@contextmanager
def recording(sink: Sink) -> Iterator[None]:
    """Within the scope every span of this process is told to ``sink``, in place of any other."""
    before, _TRACING.sink = _TRACING.sink, sink
    try:
        yield
    finally:
        _TRACING.sink = before
