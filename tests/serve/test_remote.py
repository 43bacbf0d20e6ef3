"""The queue of a door: orders that lose their process are drawn again, and no client notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from PIL import Image

from fresco_trt.pipelines.several import Bucket, WarmUp
from fresco_trt.serve.drawing import Drawn, Event, Failed, Order, Preview
from fresco_trt.serve.refusal import Refusal
from fresco_trt.serve.remote import MOST_TRIES, Begun, RemoteQueue

BUCKET = Bucket(model="flux-tiny", size=(64, 64), preset="turbo")
COST = WarmUp(bucket=BUCKET, load=1.0, first=2.0, second=None)


class Lost(Exception):
    """A process is gone."""


class Crowd:
    """Workers that draw grey squares; the first `losses` of them die after `events` events."""

    def __init__(self, losses: int = 0, events: int = 0, workers: int = 1) -> None:
        self.losses, self.events = losses, events
        self.free = asyncio.Semaphore(workers)
        self.go = asyncio.Event()
        self.go.set()
        self.ended: list[str] = []
        self.unready: Exception | None = None

    async def ready(self) -> tuple[WarmUp, ...]:
        if self.unready is not None:
            raise self.unready
        return (COST,)

    async def draw(self, order: Order) -> AsyncIterator[Begun | Event]:
        async with self.free:
            try:
                yield Begun()
                for count, event in enumerate(self._events(order)):
                    if self.losses and count == self.events:
                        self.losses -= 1
                        raise Lost
                    await self.go.wait()
                    yield event
            finally:
                self.ended.append(order.prompt)

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, Lost)

    def _events(self, order: Order) -> list[Event]:
        if order.prompt == "fail":
            raise ZeroDivisionError
        found: list[Event] = []
        for seed in order.seeds:
            image = Image.new("L", (1, 1), seed)
            found += [Preview(stage=stage, image=image) for stage in (1, 2)]
            found.append(Drawn(image=image, seed=seed, seconds=0.5, tokens=1, warnings=()))
        return found


class Meters:
    def __init__(self) -> None:
        self.costs: list[WarmUp] = []

    def warmed(self, cost: WarmUp) -> None:
        self.costs.append(cost)


class Asked:
    """An order, and what was told of it."""

    def __init__(self, prompt: str = "a bell", seeds: tuple[int, ...] = (7,)) -> None:
        self.told: list[Event] = []
        self.order = Order(
            bucket=BUCKET,
            prompt=prompt,
            seeds=seeds,
            guidance=None,
            previews=2,
            tell=self.told.append,
        )

    def said(self) -> list[Any]:
        """Stages of previews, seeds of pictures."""
        return [e.stage if isinstance(e, Preview) else f"seed {e.seed}" for e in self.told]  # type: ignore[union-attr]


async def until(holds: Callable[[], Any]) -> None:
    """Let others run until something holds; bounded, against a hang."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never held")


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def started(crowd: Crowd, waiting: int = 8) -> RemoteQueue:
    queue = RemoteQueue(crowd, Meters(), waiting=waiting)
    ended: list[Exception | None] = []
    queue.start(ended.append)
    await until(lambda: ended)
    assert ended == [None]
    return queue


@in_a_loop
async def test_an_order_is_drawn_and_leaves_nothing() -> None:
    queue, asked = await started(Crowd()), Asked(seeds=(7, 8))
    assert (queue.state, queue.costs) == ("ready", (COST,))
    queue.put(asked.order)
    assert (queue.waiting, queue.depth, queue.running) == (1, 2, 0)
    await until(lambda: len(asked.told) == 6)
    assert asked.said() == [1, 2, "seed 7", 1, 2, "seed 8"]
    await until(lambda: not queue.running)
    assert (queue.waiting, queue.depth) == (0, 0)


@pytest.mark.parametrize("events", [0, 1, 2, 4])
@pytest.mark.parametrize("losses", [1, MOST_TRIES - 1])
def test_a_lost_worker_is_not_noticed(events: int, losses: int) -> None:
    async def test() -> None:
        queue, asked = await started(Crowd(losses, events)), Asked(seeds=(7, 8))
        queue.put(asked.order)
        await until(lambda: not queue.running and not queue.waiting)
        assert asked.said() == [1, 2, "seed 7", 1, 2, "seed 8"]

    asyncio.run(asyncio.wait_for(test(), 60))


@in_a_loop
async def test_an_order_that_every_worker_dies_of_is_given_up() -> None:
    queue, asked = await started(Crowd(losses=10**9)), Asked()
    queue.put(asked.order)
    await until(lambda: asked.told)
    (failed,) = asked.told
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Refusal)
    assert (failed.error.status, failed.error.code) == (503, "workers_lost")


@in_a_loop
async def test_an_error_of_the_order_is_told_and_not_tried_again() -> None:
    crowd = Crowd()
    queue, asked = await started(crowd), Asked("fail")
    queue.put(asked.order)
    await until(lambda: asked.told)
    assert isinstance(asked.told[0], Failed)
    assert isinstance(asked.told[0].error, ZeroDivisionError)
    assert crowd.ended == ["fail"]


@in_a_loop
async def test_more_than_may_wait_are_refused_with_a_time() -> None:
    crowd = Crowd(workers=2)
    crowd.go.clear()
    queue = await started(crowd, waiting=1)
    drawn = [Asked(), Asked()]
    for each in drawn:
        queue.put(each.order)
        await until(lambda: not queue.waiting)
    waits = Asked()
    assert queue.put(waits.order) == 3
    assert (queue.running, queue.waiting) == (2, 1)
    with pytest.raises(Refusal) as caught:
        queue.put(Asked().order)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert caught.value.retry_after == 2
    crowd.go.set()
    await until(lambda: waits.told and not queue.running)


@in_a_loop
async def test_without_room_to_wait_one_is_drawn_all_the_same() -> None:
    queue, asked = await started(Crowd(), waiting=0), Asked()
    queue.put(asked.order)
    await until(lambda: len(asked.told) == 3)


@in_a_loop
async def test_a_dropped_order_ends_at_its_worker_and_says_nothing() -> None:
    crowd = Crowd()
    crowd.go.clear()
    queue, asked, waits = await started(crowd), Asked("drawn"), Asked("waits")
    queue.put(asked.order)
    await until(lambda: queue.running)
    queue.put(waits.order)
    queue.drop(waits.order)
    queue.drop(asked.order)
    await until(lambda: not queue.running and not queue.waiting)
    assert crowd.ended == ["drawn"]
    assert asked.told == waits.told == []
    assert asked.order.cancelled.is_set()
    queue.drop(asked.order)


@in_a_loop
async def test_nothing_is_taken_before_and_after() -> None:
    crowd = Crowd()
    queue = RemoteQueue(crowd, Meters(), waiting=8)
    with pytest.raises(Refusal, match="loading"):
        queue.put(Asked().order)
    crowd.unready = ValueError("no bundle")
    ended: list[Exception | None] = []
    queue.start(ended.append)
    await until(lambda: ended)
    assert ended == [crowd.unready]
    assert queue.state == "failed"
    other, asked = await started(Crowd()), Asked()
    other.put(asked.order)
    await asyncio.to_thread(other.close, 1.0)
    with pytest.raises(Refusal, match="closed"):
        other.put(Asked().order)
    await until(lambda: not other.waiting and not other.running)
