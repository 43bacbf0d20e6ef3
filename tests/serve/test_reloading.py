"""Bundles put in service under a running server: no accepted request is lost, or drawn by another.

Over scripted pipelines; tests/pipelines/test_replacing.py has real engines.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from fresco_trt.errors import BundleNotFound, IncompatibleOptions
from fresco_trt.pipelines.several import Bucket, WarmUp
from fresco_trt.serve import reloading
from fresco_trt.serve.body import Generation, wanted_of
from fresco_trt.serve.drawing import DrawingQueue, Order
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.metrics import ServerMeters
from fresco_trt.serve.refusal import Refusal
from fresco_trt.serve.reloading import Reloader, on_hangup
from tests.serve.conftest import PATIENCE, Running, serving
from tests.serve.scripted import ScriptedPipeline, ScriptedPipelines, soon


class Reloads:
    """What is put in service next, and what became of it."""

    def __init__(self, pipelines: ScriptedPipelines) -> None:
        self.pipelines = pipelines
        self.next: list[Any] = []
        self.outcomes: SimpleQueue[Any] = SimpleQueue()

    def reload(self) -> tuple[WarmUp, ...]:
        if not self.next:
            raise BundleNotFound("no such folder", expected="a bundle", fix="build it")
        return self.pipelines.replace_with([each.bundle for each in self.next])

    def put(self, server: Running, *scripts: ScriptedPipeline) -> Any:
        """Have it reload; what the server said of it."""
        self.next = list(scripts)
        assert server.server.reloader is not None
        server.server.reloader.ask()
        return self.outcomes.get(timeout=PATIENCE)


@pytest.fixture
def reloads() -> Reloads:
    return Reloads(ScriptedPipelines(64, 128))


@pytest.fixture
def server(reloads: Reloads) -> Iterator[Running]:
    with serving(
        reloads.pipelines, queue=4, reload=reloads.reload, reloaded=reloads.outcomes.put
    ) as running:
        yield running
        for script in reloads.pipelines.scripts.values():
            script.released.set()


def test_what_was_accepted_is_drawn_by_the_bundle_that_it_was_accepted_for(
    server: Running, reloads: Reloads
) -> None:
    old, new = reloads.pipelines.only, ScriptedPipeline((64, 64))
    kept = reloads.pipelines.scripts[128]
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(server.draw, "wait", seed=1)]
        assert old.began.acquire(timeout=PATIENCE)
        accepted.append(pool.submit(server.draw, "a bell", seed=2, n=2))
        soon(lambda: server.count("num_requests_waiting") == 1)
        (cost,) = reloads.put(server, new, kept)
        assert cost.bucket == Bucket.of(new.bundle)
        accepted.append(pool.submit(server.draw, "a tree", seed=4))
        soon(lambda: server.count("num_requests_waiting") == 2)
        assert not old.closed
        old.released.set()
        assert [each.result().status for each in accepted] == [200] * 3
    soon(lambda: old.closed == 1)
    assert [each for each in old.drawn if each[1]] == [("wait", 1), ("a bell", 2), ("a bell", 3)]
    assert [each for each in new.drawn if each[1]] == [("a tree", 4)]
    assert (new.closed, kept.closed) == (0, 0)
    assert server.count("bundle_reloads_total", outcome="success") == 1


def test_a_size_that_goes_is_drawn_to_the_end_and_then_refused(
    server: Running, reloads: Reloads
) -> None:
    old, left = reloads.pipelines.only, reloads.pipelines.scripts[128]
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(server.draw, "staged", stream=True, partial_images=2)
        assert old.began.acquire(timeout=PATIENCE)
        assert reloads.put(server, left) == ()
        assert server.draw(size="64x64").error["code"] == "invalid_value"
        old.released.set()
        assert b"image_generation.completed" in stream.result().body
    assert [each["size"] for each in server.ask("/v1/models").json["data"][0]["built"]] == [
        "128x128"
    ]
    soon(lambda: old.closed == 1)


def test_one_who_goes_lets_go_of_what_was_replaced(server: Running, reloads: Reloads) -> None:
    old, left = reloads.pipelines.only, reloads.pipelines.scripts[128]
    running = server.begin("wait", size="128x128")
    assert left.began.acquire(timeout=PATIENCE)
    waiting = server.begin("a bell", size="64x64")
    soon(lambda: server.count("num_requests_waiting") == 1)
    reloads.put(server, left)
    assert not old.closed
    waiting.close()
    soon(lambda: old.closed == 1)
    running.close()
    soon(lambda: left.cancelled == 1)


def test_what_does_not_open_changes_nothing(server: Running, reloads: Reloads) -> None:
    old = reloads.pipelines.only
    assert isinstance(reloads.put(server), BundleNotFound)
    assert isinstance(reloads.put(server, old, old), IncompatibleOptions)
    assert server.draw(seed=5).status == 200
    assert (old.drawn[-1], old.closed) == (("a bell", 5), 0)
    assert server.ask("/ready").status == 200
    assert server.count("bundle_reloads_total", outcome="failure") == 2


def test_a_bundle_that_goes_before_its_request_is_taken_is_not_there() -> None:
    """As an edit may find it, whose picture is read in between."""
    pipelines = ScriptedPipelines(64)
    gone = Order(
        bucket=replace(pipelines.buckets[0], preset="fast"),
        prompt="",
        seeds=(1,),
        guidance=None,
        previews=0,
        tell=lambda event: None,
    )
    queue = DrawingQueue(pipelines, ServerMeters(), waiting=1)
    queue.state = "ready"
    with pytest.raises(Refusal, match="ask again") as refused:
        queue.put(gone)
    assert (refused.value.status, refused.value.code) == (503, "bundle_replaced")
    assert (refused.value.retry_after, queue.depth) == (1, 0)

    class Going(ScriptedPipelines):
        def bundle(self, bucket: Bucket) -> Any:
            raise KeyError(bucket)

    with pytest.raises(Refusal, match="ask again"):
        wanted_of(Generation(prompt="a bell"), Going(), Limits())


def test_a_reload_that_crashes_is_not_the_last() -> None:
    outcomes = SimpleQueue[Any]()
    answers = iter([ZeroDivisionError("inside"), ()])

    def reload() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reloader = Reloader(reload, outcomes.put)
    reloader.ask()
    reloader.ask()  # before it began: once for both
    reloader.start()
    assert isinstance(outcomes.get(timeout=PATIENCE), ZeroDivisionError)
    reloader.ask()
    assert outcomes.get(timeout=PATIENCE) == ()
    reloader.stop(PATIENCE)
    assert next(answers, None) is None


@pytest.mark.parametrize(
    ("before", "terminals", "expected"),
    [
        (signal.SIG_DFL, [False, False], "reload"),  # a daemon
        (signal.SIG_DFL, [True, True], "reload"),  # asked for from another terminal
        (signal.SIG_DFL, [True, False], "stop"),  # its terminal was closed
        (signal.SIG_IGN, [True, False], "reload"),  # under nohup
    ],
)
def test_a_hangup_of_the_terminal_ends_what_another_one_reloads(
    before: Any, terminals: list[bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    there = iter(terminals[before is signal.SIG_IGN :])
    monkeypatch.setattr(reloading, "_has_terminal", lambda: next(there))
    was = signal.signal(signal.SIGHUP, before)
    try:
        with on_hangup(lambda: said.append("reload"), lambda: said.append("stop")):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, was)
    assert said == [expected]
