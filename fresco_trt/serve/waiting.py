"""One order as the event loop sees it: what is told of it, until it ends in whichever way.

It ends with its last picture, with an error, at its deadline, or when its client goes away.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from fresco_trt.serve.drawing import Drawn, Event, Failed, Order, Preview
from fresco_trt.serve.refusal import CLIENT_GONE, Refusal

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.requests import Request

    from fresco_trt.serve.body import Wanted
    from fresco_trt.serve.drawing import Queue


class Waiting:
    """An order in the queue. Use it as an async context manager, or call `close` at the end."""

    def __init__(self, queue: Queue, request: Request, wanted: Wanted, seconds: float):
        self._queue, self._request = queue, request
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._order = Order(
            bucket=wanted.bucket,
            prompt=wanted.prompt,
            seeds=wanted.seeds,
            guidance=wanted.guidance,
            previews=wanted.previews,
            tell=self._tell,
            source=wanted.source,
            mask=wanted.mask,
        )

    def begin(self) -> None:
        """Put the order into the queue, where it has a `place`. Raises Refusal."""
        self.place = self._queue.put(self._order)
        self._timer = self._loop.call_later(self._seconds, self._too_late)
        self._watch = self._loop.create_task(self._until_gone())

    async def next(self) -> Preview | Drawn:
        """What comes next. Raises what the drawing raised, Refusal among it."""
        event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    async def drawn(self) -> Drawn:
        """The next picture that is done."""
        while not isinstance(event := await self.next(), Drawn):
            pass
        return event

    def close(self) -> None:
        """Nobody asks for more."""
        self._timer.cancel()
        self._watch.cancel()
        self._queue.drop(self._order)

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _end(self, refusal: Refusal) -> None:
        self._queue.drop(self._order)
        self._events.put_nowait(Failed(error=refusal))

    def _too_late(self) -> None:
        message = f"the request was not done within {self._seconds:g} s"
        self._end(Refusal(504, "deadline_exceeded", message))

    async def _until_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._end(Refusal(CLIENT_GONE, "client_gone", "the client closed its connection"))
