"""The queue of a door whose engines are in other processes: orders go to whichever is free.

In the place of :class:`~fresco_trt.serve.drawing.DrawingQueue`, with the same promises. A picture
is a function of its prompt, its seed and the bundle, so that an order whose process was lost is
drawn again by another; its client waits longer, and sees nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fresco_trt.serve.drawing import Drawn, Event, Failed, Order
from fresco_trt.serve.refusal import Refusal

if TYPE_CHECKING:
    from fresco_trt.pipelines.several import WarmUp

_LOG = logging.getLogger(__name__)

MOST_TRIES = 4
"""Processes that one order may lose: it may be what they die of."""
_SMOOTHING = 0.2
_LONGEST_WAIT = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A process has taken the order, and draws it."""


class Workers(Protocol):
    """The processes that draw."""

    async def ready(self) -> tuple[WarmUp, ...]:
        """Wait until one of them is warm; what that took it."""
        ...

    def draw(self, order: Order) -> AsyncIterator[Begun | Event]:
        """Have an order drawn by one of them. Closing the iterator ends the drawing."""
        ...

    def is_lost(self, error: Exception) -> bool:
        """Whether an error says that a process is gone, and nothing of the order."""
        ...


class WarmMeters(Protocol):
    """What the queue reports; pictures are counted where they are drawn."""

    def warmed(self, cost: WarmUp) -> None:
        """A bundle is loaded and warm."""


class RemoteQueue:
    """Orders on their way to workers. All but `close` is called by the event loop."""

    def __init__(self, workers: Workers, meters: WarmMeters, *, waiting: int) -> None:
        self._workers = workers
        self._meters = meters
        self._most = waiting
        self._orders: dict[int, tuple[Order, asyncio.Task[None]]] = {}
        self._begun: set[int] = set()
        self._mean: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._getting_ready: asyncio.Task[None] | None = None
        self.state = "loading"
        """As that of a DrawingQueue."""
        self.costs: tuple[WarmUp, ...] = ()

    def start(self, ended: Callable[[Exception | None], None]) -> None:
        """Wait for a worker; `ended(None)` when one is warm, `ended(error)` if none will be."""
        self._loop = asyncio.get_running_loop()
        self._getting_ready = self._loop.create_task(self._get_ready(ended))

    def put(self, order: Order) -> int:
        """Take an order; its place in the queue, behind what is being drawn, from 1.

        Raises Refusal: 503 before a worker is warm, 429 if too many wait."""
        if self.state != "ready":
            message = f"the server is {self.state}"
            raise Refusal(503, f"server_{self.state}", message, retry_after=5)
        if self.waiting >= self._most and self._orders:
            message = f"{self.waiting} requests are waiting, and no more can"
            raise Refusal(429, "queue_full", message, retry_after=self._seconds_left())
        task = asyncio.get_running_loop().create_task(self._drawn(order))
        self._orders[id(order)] = (order, task)
        task.add_done_callback(lambda ended: self._forget(id(order)))
        return len(self._orders)

    def drop(self, order: Order) -> None:
        """Nobody wants this order any more."""
        order.cancelled.set()
        if id(order) in self._orders:
            self._orders[id(order)][1].cancel()

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken."""
        return len(self._orders) - len(self._begun)

    @property
    def depth(self) -> int:
        """Pictures that are still to be begun by requests that wait."""
        waiting = self._orders.keys() - self._begun
        return sum(len(self._orders[key][0].seeds) for key in waiting)

    @property
    def running(self) -> int:
        """Requests that are being drawn."""
        return len(self._begun)

    def close(self, seconds: float) -> None:
        """Drop all orders. From another thread; the loop ends them as it goes on."""
        self.state = "closed"
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and all with it
                self._loop.call_soon_threadsafe(self._drop_all)

    def _drop_all(self) -> None:
        if self._getting_ready is not None:
            self._getting_ready.cancel()
        for order, _ in list(self._orders.values()):
            self.drop(order)

    def _seconds_left(self) -> int:
        """Until all that wait are drawn, by as many as draw now."""
        rounds = math.ceil((self.depth + self.running) / max(self.running, 1))
        return min(max(math.ceil(rounds * (self._mean or 1.0)), 1), _LONGEST_WAIT)

    async def _get_ready(self, ended: Callable[[Exception | None], None]) -> None:
        try:
            self.costs = await self._workers.ready()
        except Exception as error:
            self.state = "failed"
            ended(error)
            return
        for cost in self.costs:
            self._meters.warmed(cost)
        if self.state == "loading":
            self.state = "ready"
        ended(None)

    # --- an order -----------------------------------------------------------------------------

    def _forget(self, key: int) -> None:
        """Also of what was dropped before it began, whose task never ran."""
        self._begun.discard(key)
        del self._orders[key]

    async def _drawn(self, order: Order) -> None:
        try:
            await self._drawn_by_some(order)
        except Exception as error:
            order.tell(Failed(error=error))

    async def _drawn_by_some(self, order: Order) -> None:
        """Draw until some worker lives to the end. What the client has is not told again."""
        told = 0
        for left in reversed(range(MOST_TRIES)):
            at = 0
            try:
                async for event in self._events(order):
                    at += 1
                    if at > told:
                        order.tell(event)
                        told = at
                return
            except Exception as error:
                if not self._workers.is_lost(error):
                    raise
                _LOG.warning("a worker was lost while it drew: %s; %d tries left", error, left)
                self._begun.discard(id(order))
        message = f"{MOST_TRIES} processes were lost while they drew this"
        raise Refusal(503, "workers_lost", message, retry_after=self._seconds_left())

    async def _events(self, order: Order) -> AsyncIterator[Event]:
        drawing = self._workers.draw(order)
        try:
            async for event in drawing:
                if isinstance(event, Begun):
                    self._begun.add(id(order))
                    continue
                if isinstance(event, Drawn):
                    mean = self._mean or event.seconds
                    self._mean = event.seconds + (1 - _SMOOTHING) * (mean - event.seconds)
                yield event
        finally:
            close = getattr(drawing, "aclose", None)
            if close is not None:
                await close()
