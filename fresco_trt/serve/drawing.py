"""The queue between requests and engines: one thread draws, in the order of arrival.

Engines run once at a time, so that a second thread would only wait for the first. Where they take
several pictures, those of the order that came first are drawn, and with them, in the room that is
left, those of orders of the same bundle that wait behind it. Nothing is waited for to fill a run.
How many requests may wait is bounded; whoever comes when the queue is full is told when to come
again. An order that is cancelled leaves the queue at once, or stops between two steps.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fresco_trt.serve import runs
from fresco_trt.serve.orders import Drawn, Event, Failed, Order, Preview
from fresco_trt.serve.refusal import Refusal, replaced

if TYPE_CHECKING:
    from fresco_trt.pipelines.result import Result
    from fresco_trt.pipelines.several import Bucket, FrescoPipelines, WarmUp

__all__ = ["DrawingQueue", "Drawn", "Event", "Failed", "Meters", "Order", "Preview", "Queue"]

_SMOOTHING = 0.2
"""Share of the newest picture in the mean of seconds that Retry-After is told from."""


class Meters(Protocol):
    """What the queue reports; see `fresco_trt.serve.metrics`."""

    def drawn(self, bucket: Bucket, result: Result, device: str) -> None:
        """A run of the engines is over, and its pictures are there."""

    def warmed(self, cost: WarmUp) -> None:
        """A bundle is loaded and warm."""


class Queue(Protocol):
    """Where a request's order goes, and what is told of it."""

    state: str
    costs: tuple[WarmUp, ...]

    def start(self, ended: Callable[[Exception | None], None]) -> None:
        """As :meth:`DrawingQueue.start`, and so are the others."""

    def put(self, order: Order) -> int:
        """Take an order, or raise Refusal. Its place among those that are here, 1 for the first."""

    def drop(self, order: Order) -> None:
        """Nobody wants the order any more."""

    def close(self, seconds: float) -> None:
        """Drop all orders."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""

    @property
    def depth(self) -> int:
        """Pictures that they want."""

    @property
    def running(self) -> int:
        """Requests that are being drawn."""


class QueueMaker(Protocol):
    """What makes a queue."""

    def __call__(self, pipelines: FrescoPipelines, meters: Meters, *, waiting: int) -> Queue: ...


class DrawingQueue:
    """Orders in the order of arrival, and the thread that loads the engines and draws them."""

    def __init__(self, pipelines: FrescoPipelines, meters: Meters, *, waiting: int) -> None:
        self._pipelines = pipelines
        self._meters = meters
        self._most = waiting
        self._waiting: deque[Order] = deque()
        self._begun: list[Order] = []
        self._changed = threading.Condition()
        self._mean: float | None = None
        self._thread: threading.Thread | None = None
        self.state = "loading"
        """`loading`, `ready`, `failed` where the engines cannot be loaded, or `closed`."""
        self.costs: tuple[WarmUp, ...] = ()
        """What it took to be ready."""

    # --- asked by the event loop --------------------------------------------------------------

    def start(self, ended: Callable[[Exception | None], None]) -> None:
        """Begin to load and warm up; `ended(None)` when that is done, `ended(error)` if it failed.

        Both are called by the drawing thread.
        """
        self._thread = threading.Thread(
            target=self._run, args=(ended,), name="drawing", daemon=True
        )
        self._thread.start()

    def put(self, order: Order) -> int:
        """Take an order; its place in the queue, behind what is being drawn, from 1.

        Raises Refusal: 503 before the engines are warm and for a bundle that was
        replaced since it was looked up, 429 if too many wait.
        """
        with self._changed:
            if self.state != "ready":
                message = f"the server is {self.state}"
                raise Refusal(503, f"server_{self.state}", message, retry_after=5)
            if len(self._waiting) >= self._most and (self._begun or self._waiting):
                raise Refusal(
                    429,
                    "queue_full",
                    f"{len(self._waiting)} requests are waiting, and no more can",
                    retry_after=self._seconds_left(),
                )
            try:
                order.hold = self._pipelines.hold(order.bucket)
            except KeyError:
                raise replaced() from None
            self._waiting.append(order)
            self._changed.notify()
            return len(self._waiting) + self.running

    def drop(self, order: Order) -> None:
        """Nobody wants this order any more: it does not wait, and is not drawn further."""
        order.cancelled.set()
        with self._changed:
            waited = order in self._waiting
            if waited:
                self._waiting.remove(order)
        if waited:
            order.end()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def depth(self) -> int:
        """Pictures that are still to be begun by requests that wait."""
        with self._changed:
            return sum(len(order.seeds) for order in self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being drawn."""
        return len(self._begun)

    def close(self, seconds: float) -> None:
        """Drop all orders and free the engines; wait so long for the thread at most."""
        with self._changed:
            self.state = "closed"
            for order in (*self._waiting, *self._begun):
                order.cancelled.set()
            dropped = tuple(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for order in dropped:
            order.end()
        if self._thread is not None:
            self._thread.join(seconds)

    def _seconds_left(self) -> int:
        """Until all that wait are drawn, as far as the last pictures tell."""
        pictures = sum(order.left for order in (*self._waiting, *self._begun))
        return min(max(math.ceil(pictures * (self._mean or 1.0)), 1), 3600)

    # --- the drawing thread -------------------------------------------------------------------

    def _run(self, ended: Callable[[Exception | None], None]) -> None:
        try:
            self._warm_up()
        except Exception as error:
            self.state = "failed"
            self._pipelines.close()
            ended(error)
            return
        ended(None)
        while shares := self._next():
            for seconds in runs.draw(shares, self._meters):
                mean = seconds if self._mean is None else self._mean
                self._mean = seconds + (1 - _SMOOTHING) * (mean - seconds)
            del shares  # their pictures are not kept until the next ones come
            self._let_go()
        self._let_go()
        self._pipelines.close()

    def _warm_up(self) -> None:
        with runs.client_warnings():  # nobody asked for what it draws
            self.costs = self._pipelines.warm_up(self._meters.warmed)
        self._mean = max(cost.second or cost.first for cost in self.costs)
        with self._changed:
            if self.state == "loading":
                self.state = "ready"

    def _next(self) -> Sequence[runs.Share]:
        """What the next run draws, waited for; nothing when there will be no other."""
        with self._changed:
            while self.state != "closed":
                # One that was dropped this moment may still stand here.
                orders = [order for order in (*self._begun, *self._waiting) if order.left]
                if orders:
                    return self._chosen(orders)
                self._changed.wait()
            return ()

    def _chosen(self, orders: Sequence[Order]) -> Sequence[runs.Share]:
        """What one run draws of orders that want pictures, which begin with it."""
        hold = orders[0].hold
        shares = runs.shares_of(orders, 1 if hold is None else hold.bundle.batch)
        for share in shares:
            if share.order in self._waiting:
                self._waiting.remove(share.order)
                self._begun.append(share.order)
        return shares

    def _let_go(self) -> None:
        """End the orders that have all their pictures, or that nobody wants."""
        over = [order for order in self._begun if not order.left]
        for order in over:
            order.end()
        with self._changed:
            self._begun = [order for order in self._begun if order not in over]
