"""Whose turn it is: as many requests at once as there are execution contexts, others wait.

Beside the pipelines. A context's buffers belong to one request from its first step to its last,
since the sampler lets others run between two steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Condition, get_ident
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(slots=True)
class _Place:
    """A context: the thread that draws in it, and how many of its requests are within another."""

    owner: int | None = None
    depth: int = 0


class Turns:
    """The contexts of loaded engines, numbered from 0, and who is in which of them.

    As a context manager it gives this thread one of them: a free one, waited for; that which it has
    already, where a callback of a request draws.
    """

    def __init__(self, count: int = 1) -> None:
        self._changed = Condition()
        self._places: Sequence[_Place] = [_Place() for _ in range(count)]

    def first(self) -> Self:
        """Those of other runners over the engines of the first context, which they share."""
        other = type(self)()
        other._changed, other._places = self._changed, self._places[:1]
        return other

    @property
    def index(self) -> int:
        """The number of the context that is this thread's; ValueError where none is."""
        return [place.owner for place in self._places].index(get_ident())

    def __enter__(self) -> Self:
        me = get_ident()
        with self._changed:
            while (index := self._open_to(me)) is None:
                self._changed.wait()
            self._enter(index, me)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(self.index)

    @contextmanager
    def all(self) -> Iterator[None]:
        """Within the scope all of them are this thread's."""
        me = get_ident()
        with ExitStack() as scope:
            for index, place in enumerate(self._places):
                with self._changed:
                    while place.owner not in (None, me):
                        self._changed.wait()
                    self._enter(index, me)
                scope.callback(self._leave, index)
            yield

    def _open_to(self, me: int) -> int | None:
        owners = [place.owner for place in self._places]
        for owner in (me, None):
            if owner in owners:
                return owners.index(owner)
        return None

    def _enter(self, index: int, me: int) -> None:
        self._places[index].owner = me
        self._places[index].depth += 1

    def _leave(self, index: int) -> None:
        place = self._places[index]
        with self._changed:
            place.depth -= 1
            if not place.depth:
                place.owner = None
                self._changed.notify_all()
