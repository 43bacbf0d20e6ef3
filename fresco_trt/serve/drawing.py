"""The queue between requests and engines: one thread draws, in the order of arrival.

Engines draw one picture at a time, so that a second thread would only wait for the first. How many
requests may wait is bounded; whoever comes when the queue is full is told when to come again. An
order that is cancelled leaves the queue at once, or stops between two steps.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fresco_trt.errors import Cancelled
from fresco_trt.models.family import PromptWarning
from fresco_trt.pipelines.selective import EditWarning
from fresco_trt.serve.refusal import Refusal, replaced

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.pipelines.held import Hold
    from fresco_trt.pipelines.result import Result
    from fresco_trt.pipelines.several import Bucket, FrescoPipelines, WarmUp

_LOG = logging.getLogger(__name__)
_FOR_CLIENTS = (PromptWarning, EditWarning)
_SMOOTHING = 0.2
"""Share of the newest picture in the mean of seconds that Retry-After is told from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A stage of a picture ended, counted from 1: what it looks like by then."""

    stage: int
    image: Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture is there. `tokens` are the prompt's own, `warnings` what of it was not read."""

    image: Image
    seed: int
    seconds: float
    tokens: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Nothing more comes."""

    error: Exception


Event = Preview | Drawn | Failed


@dataclass(kw_only=True, slots=True, eq=False)
class Order:
    """What one request wants drawn: a picture for each seed. `tell` is called by the drawing thread
    and must not wait.
    """

    bucket: Bucket
    prompt: str
    seeds: tuple[int, ...]
    guidance: float | None
    previews: int
    tell: Callable[[Event], None]
    source: Image | None = None
    """What is edited, RGB of the built size."""
    mask: Image | None = None
    """White where it may change, mode "L" of the built size."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    hold: Hold | None = None
    """What it is drawn with, from its acceptance to its end, whatever is put in service then."""

    def end(self) -> None:
        """It is drawn, or never will be: let go of what it was to be drawn with."""
        if self.hold is not None:
            self.hold.release()


class Meters(Protocol):
    """What the queue reports; see `fresco_trt.serve.metrics`."""

    def drawn(self, bucket: Bucket, result: Result, device: str) -> None:
        """A picture is there."""

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
        self._drawing: Order | None = None
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
            if len(self._waiting) >= self._most and (self._drawing or self._waiting):
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
        return int(self._drawing is not None)

    def close(self, seconds: float) -> None:
        """Drop all orders and free the engines; wait so long for the thread at most."""
        with self._changed:
            self.state = "closed"
            for order in (*self._waiting, *filter(None, [self._drawing])):
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
        orders = (*self._waiting, *filter(None, [self._drawing]))
        pictures = sum(len(order.seeds) for order in orders)
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
        while (order := self._next()) is not None:
            self._draw(order)
            order.end()
            with self._changed:
                self._drawing = None
            del order  # its pictures are not kept until the next one comes
        self._pipelines.close()

    def _warm_up(self) -> None:
        with _warnings():  # nobody asked for what it draws
            self.costs = self._pipelines.warm_up(self._meters.warmed)
        self._mean = max(cost.second or cost.first for cost in self.costs)
        with self._changed:
            if self.state == "loading":
                self.state = "ready"

    def _next(self) -> Order | None:
        """The next order, waited for; None when there will be no other."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.state == "closed")
            self._drawing = self._waiting.popleft() if self._waiting else None
            return self._drawing

    def _draw(self, order: Order) -> None:
        try:
            self._pictures(order)
        except Cancelled:
            pass  # whoever cancelled it knows
        except Exception as error:
            _LOG.exception("a request failed")
            order.tell(Failed(error=error))

    def _pictures(self, order: Order) -> None:
        if order.hold is None:
            raise RuntimeError("an order that was not put")
        pipeline = order.hold.pipeline
        tokens = pipeline.prompt_tokens(order.prompt)

        def preview(stage: int, image: Image) -> None:
            if stage <= order.previews:
                order.tell(Preview(stage=stage, image=image))

        for seed in order.seeds:
            with _warnings() as said:
                result = pipeline(
                    order.prompt,
                    image=order.source,
                    mask=order.mask,
                    seed=seed,
                    guidance=order.guidance,
                    on_stage=preview if order.previews else None,
                    cancel=order.cancelled.is_set,
                )
            seconds = result.seconds.total
            self._mean = seconds + (1 - _SMOOTHING) * ((self._mean or seconds) - seconds)
            self._meters.drawn(order.bucket, result, pipeline.device)
            order.tell(
                Drawn(
                    image=result.images[0],
                    seed=seed,
                    seconds=seconds,
                    tokens=tokens,
                    warnings=tuple(said),
                )
            )


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is said of prompts and edits in the scope is for clients, and all else for the log."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        for category in _FOR_CLIENTS:
            warnings.simplefilter("always", category)
        yield said
    for each in caught:
        if issubclass(each.category, _FOR_CLIENTS):
            said.append(str(each.message))
        else:
            _LOG.warning("%s", each.message)
