"""Requests that wait together are drawn together, and none of them suffers for another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fresco_trt.bundle import Bundle, open_bundle
from fresco_trt.errors import EngineFailed, PlanError
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.pipelines.several import Bucket, FrescoPipelines
from fresco_trt.serve.drawing import DrawingQueue, Drawn, Event, Failed, Order, Preview
from fresco_trt.serve.runs import shares_of
from tests.serve.conftest import PATIENCE, serving
from tests.serve.scripted import soon
from tests.shallow import short_turbo

BATCH = 3


@pytest.fixture(scope="module")
def threes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Eager engines of three pictures at 64x64, of random weights and a block of each kind."""
    request = BuildRequest(
        plan=short_turbo(),
        backend="eager",
        weights="random",
        blocks=(1, 1),
        target=f"batch={BATCH}",
        out=tmp_path_factory.mktemp("threes") / "bundle",
    )
    return open_bundle(run(request).bundle.folder)


@dataclass(kw_only=True, eq=False)
class Client:
    """Whoever waits for an order; it may hold up the drawing thread at its first preview."""

    order: Order
    events: list[Event] = field(default_factory=list)
    drawing: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def pictures(self) -> list[Any]:
        return [np.asarray(each.image) for each in self.events if isinstance(each, Drawn)]

    @property
    def is_answered(self) -> bool:
        failed = any(isinstance(each, Failed) for each in self.events)
        return failed or len(self.pictures) == len(self.order.seeds)

    def told(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Preview) and not self.drawing.is_set():
            self.drawing.set()
            assert self.released.wait(PATIENCE)


@dataclass(kw_only=True, eq=False)
class Drawing:
    """A queue that draws, and the sizes of its runs."""

    queue: DrawingQueue
    pipelines: FrescoPipelines
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Of each run: the pictures in it, and those that somebody got."""

    def order(self, *seeds: int, prompt: str = "a bell", **given: Any) -> Client:
        """An order that is not put yet."""
        fields = {"guidance": None, "previews": 0, "tell": lambda event: client.told(event)}
        bucket = self.pipelines.buckets[0]
        order = Order(bucket=bucket, prompt=prompt, seeds=seeds, **{**fields, **given})
        client = Client(order=order)
        return client

    def together(self, *clients: Client) -> None:
        """Have all these wait while another is drawn, then draw them."""
        first = self.order(99, previews=1)
        self.queue.put(first.order)
        assert first.drawing.wait(PATIENCE)
        for each in clients:
            self.queue.put(each.order)
        self.sizes.clear()
        first.released.set()
        soon(lambda: all(each.is_answered for each in (first, *clients)))
        soon(lambda: self.queue.running == 0)
        del self.sizes[0]

    def alone(self, prompt: str, seed: int) -> Any:
        """The picture that a call of its own draws."""
        pipeline = self.pipelines[self.pipelines.buckets[0]]
        return np.asarray(pipeline(prompt, seed=seed).images[0])

    # as Meters
    def drawn(self, bucket: Any, result: Any, device: str) -> None:
        (pictures,) = result.runs
        self.sizes.append((pictures, len(result.images)))

    def warmed(self, cost: Any) -> None:
        pass


@contextmanager
def drawing_with(bundle: Bundle) -> Iterator[Drawing]:
    pipelines = FrescoPipelines([bundle])
    drawing = Drawing(queue=None, pipelines=pipelines)  # type: ignore[arg-type]
    drawing.queue = DrawingQueue(pipelines, drawing, waiting=8)
    warm = threading.Event()
    drawing.queue.start(lambda error: warm.set())
    assert warm.wait(PATIENCE)
    try:
        yield drawing
    finally:
        drawing.queue.close(PATIENCE)


@pytest.fixture(scope="module")
def drawing(threes: Bundle) -> Iterator[Drawing]:
    with drawing_with(threes) as found:
        yield found


# --- who is drawn with whom -------------------------------------------------------------------


def test_requests_that_wait_together_are_drawn_together(drawing: Drawing) -> None:
    """Each gets the picture that a call of its own draws with these engines, bit for bit."""
    clients = [
        drawing.order(1, prompt="a red apple"),
        drawing.order(2, guidance=1.0),
        drawing.order(3),
    ]
    drawing.together(*clients)
    assert drawing.sizes == [(3, 3)]
    assert (clients[0].pictures[0] == drawing.alone("a red apple", 1)).all()
    assert (clients[2].pictures[0] == drawing.alone("a bell", 3)).all()
    assert (clients[1].pictures[0] != drawing.alone("a bell", 2)).any()  # of its own guidance


def test_who_came_first_is_drawn_first_and_others_fill_the_room(drawing: Drawing) -> None:
    many, two, one = drawing.order(*range(10, 14)), drawing.order(20, 21), drawing.order(30)
    drawing.together(many, two, one)
    assert drawing.sizes == [(3, 3), (3, 3), (1, 1)]
    seeds = [[e.seed for e in each.events if isinstance(e, Drawn)] for each in (many, two, one)]
    assert seeds == [[10, 11, 12, 13], [20, 21], [30]]
    assert (many.pictures[3] == drawing.alone("a bell", 13)).all()
    assert (one.pictures[0] == drawing.alone("a bell", 30)).all()


@pytest.mark.parametrize(("model", "sizes"), [("flux-tiny", [1, 1, 1]), ("flux-schnell", [1, 1])])
def test_true_guidance_is_of_a_whole_run(model: str, sizes: list[int]) -> None:
    """Guidance that is an engine's input is each picture's own."""
    hold: Any = SimpleNamespace(bundle=object())
    bucket = Bucket(model=model, size=(64, 64), preset=None)
    orders = [
        Order(
            bucket=bucket,
            prompt="a bell",
            seeds=(1,),
            guidance=scale,
            previews=0,
            tell=lambda event: None,
            hold=hold,
        )
        for scale in (4.0, 3.0, 4.0)
    ]
    assert [share.count for share in shares_of(orders, BATCH)] == sizes


def test_a_picture_has_its_share_of_the_runs_seconds(drawing: Drawing) -> None:
    client = drawing.order(1, 2)
    drawing.together(client)
    one, other = (each.seconds for each in client.events if isinstance(each, Drawn))
    assert one == other > 0


# --- one who goes or fails --------------------------------------------------------------------


def test_one_who_goes_leaves_the_others_their_pictures(drawing: Drawing) -> None:
    stays, goes = drawing.order(5), drawing.order(6, previews=1)

    def leave(event: Event) -> None:
        goes.events.append(event)
        drawing.queue.drop(goes.order)

    goes.order.tell = leave
    first = drawing.order(99, previews=1)
    drawing.queue.put(first.order)
    assert first.drawing.wait(PATIENCE)
    for each in (goes, stays):
        drawing.queue.put(each.order)
    first.released.set()
    soon(lambda: stays.is_answered and drawing.queue.running == 0)
    assert drawing.sizes[-1] == (2, 1)
    assert [type(each) for each in goes.events] == [Preview]
    assert (stays.pictures[0] == drawing.alone("a bell", 5)).all()


def test_one_that_cannot_be_drawn_fails_alone(drawing: Drawing) -> None:
    wrong, right = drawing.order(1, guidance=1e9), drawing.order(2)
    drawing.together(wrong, right)
    (failed,) = wrong.events
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PlanError)
    assert len(right.pictures) == 1


def test_what_an_engine_fails_of_is_found_out(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails is drawn again, each order by itself."""
    pipeline = drawing.pipelines[drawing.pipelines.buckets[0]]
    draw = pipeline.draw

    def fail(pictures: Any) -> Any:
        if 13 in [each.seed for each in pictures]:
            raise EngineFailed("it stopped", expected="an engine that runs", fix="build again")
        return draw(pictures)

    monkeypatch.setattr(pipeline, "draw", fail)
    wrong, right = drawing.order(13), drawing.order(2)
    drawing.together(wrong, right)
    assert isinstance(wrong.events[0], Failed)
    assert (right.pictures[0] == drawing.alone("a bell", 2)).all()


def test_orders_that_are_dropped_all_at_once_do_not_end_the_queue(drawing: Drawing) -> None:
    first, dropped = drawing.order(99, previews=1), drawing.order(1)
    drawing.queue.put(first.order)
    assert first.drawing.wait(PATIENCE)
    drawing.queue.put(dropped.order)
    dropped.order.cancelled.set()  # as `drop` does, before it has taken it from the queue
    first.released.set()
    soon(lambda: first.is_answered and drawing.queue.running == 0)
    drawing.queue.drop(dropped.order)
    after = drawing.order(2)
    drawing.queue.put(after.order)
    soon(lambda: after.is_answered)
    assert dropped.events == []


# --- over HTTP --------------------------------------------------------------------------------


def test_a_request_of_several_pictures_is_a_batch_and_is_counted(threes: Bundle) -> None:
    with serving(FrescoPipelines([threes])) as server, ThreadPoolExecutor() as pool:
        others = [pool.submit(server.draw, "a pear", seed=seed) for seed in (1, 2)]
        answer = server.draw(n=4, seed=7)
        assert [each["seed"] for each in answer.json["data"]] == [7, 8, 9, 10]
        assert all(each.result().status == 200 for each in others)
        model = {"model_name": "flux-tiny"}
        assert server.count("batch_size_sum", **model) == 6
        assert 2 <= server.count("batch_size_count", **model) <= 4
        assert server.count("images_generated_total", size="64x64", **model) == 6
        stage = {"stage": "stage1", **model}
        assert server.count("per_stage_req_latency_seconds_count", **stage) == 6
        assert answer.json["inference_seconds"] > 0
