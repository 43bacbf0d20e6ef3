"""More than it can take, and clients that go, dawdle or lie: what is accepted is answered."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fresco_trt.errors import EngineFailed
from fresco_trt.serve.drawing import DrawingQueue, Drawn, Order
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.refusal import Refusal
from fresco_trt.serve.server import Server, listen
from tests.serve.conftest import PATIENCE, Running, request_bytes, serving
from tests.serve.scripted import ScriptedPipelines, soon


def test_a_full_queue_refuses_and_says_when_to_come_again(scripted: Running) -> None:
    script = scripted.pipelines.only
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(scripted.draw, "wait", seed=0)]
        assert script.began.acquire(timeout=PATIENCE)
        for seed in (1, 2):
            accepted.append(pool.submit(scripted.draw, "a bell", seed=seed, n=2))
            soon(lambda seed=seed: scripted.count("num_requests_waiting") == seed)
        assert scripted.count("num_requests_running") == 1
        assert scripted.count("queue_depth") == 4
        refused = scripted.draw()
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.error["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) == 3  # 5 pictures of half a second
        script.released.set()
        answers = [each.result() for each in accepted]
    assert [each.status for each in answers] == [200] * 3
    assert [each.headers["x-queue-position"] for each in answers] == ["1", "2", "3"]
    assert [seed for _, seed in scripted.pipelines.asked] == [0, 1, 2, 2, 3]
    streamed = scripted.draw(stream=True)
    assert streamed.headers["x-queue-position"] == "1"
    assert scripted.count("requests_refused_total", reason="queue_full") == 1


def test_no_queue_is_one_request_at_a_time() -> None:
    pipelines = ScriptedPipelines()
    with serving(pipelines, queue=0) as running, ThreadPoolExecutor() as pool:
        accepted = pool.submit(running.draw, "wait")
        assert pipelines.only.began.acquire(timeout=PATIENCE)
        assert running.draw().status == 429
        pipelines.only.released.set()
        assert accepted.result().status == 200


@pytest.mark.parametrize("fields", [{}, {"stream": True, "partial_images": 2}])
def test_one_who_goes_is_not_drawn_for(scripted: Running, fields: dict[str, Any]) -> None:
    script = scripted.pipelines.only
    going = scripted.begin("wait", **fields)
    assert script.began.acquire(timeout=PATIENCE)
    waiting = scripted.begin("a bell", **fields)
    soon(lambda: scripted.count("num_requests_waiting") == 1)
    waiting.close()
    soon(lambda: scripted.count("num_requests_waiting") == 0)
    going.close()
    soon(lambda: script.cancelled == 1)
    assert scripted.draw("a tree").status == 200
    assert [prompt for prompt, _ in scripted.pipelines.asked] == ["a tree"]
    assert scripted.count("requests_refused_total", reason="client_gone") == 2


def test_one_who_goes_within_a_stream_is_not_drawn_for(scripted: Running) -> None:
    script = scripted.pipelines.only
    going = scripted.begin("staged", stream=True, partial_images=2)
    assert script.began.acquire(timeout=PATIENCE)
    assert b"event: image_generation.partial_image" in read_until(going, b'"stage": 1')
    going.close()
    soon(lambda: script.cancelled == 1)
    assert scripted.draw().status == 200


def test_half_a_connection_is_one_that_goes(scripted: Running) -> None:
    script = scripted.pipelines.only
    with scripted.begin("wait") as half:
        assert script.began.acquire(timeout=PATIENCE)
        half.shutdown(1)
        soon(lambda: script.cancelled == 1)
        assert half.recv(100) == b""


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_a_deadline_ends_a_request_that_waits_and_one_that_is_drawn(
    fields: dict[str, Any],
) -> None:
    pipelines = ScriptedPipelines()
    with serving(pipelines, deadline=0.3) as running, ThreadPoolExecutor() as pool:
        drawn = pool.submit(running.draw, "wait", **fields)
        assert pipelines.only.began.acquire(timeout=PATIENCE)
        waits = running.draw("wait", **fields)
        for answer in (drawn.result(), waits):
            assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        soon(lambda: pipelines.only.cancelled >= 1)
        assert running.draw().status == 200
        assert len(pipelines.asked) == 1


def test_a_deadline_within_a_stream_is_an_event() -> None:
    pipelines = ScriptedPipelines()
    with serving(pipelines, deadline=0.3) as running:
        answer = running.draw("staged", stream=True, partial_images=2)
        assert answer.status == 200
        assert b"image_generation.partial_image" in answer.body
        assert b"event: error" in answer.body
        assert b"deadline_exceeded" in answer.body
        soon(lambda: pipelines.only.cancelled == 1)


# --- the beginning and the end ----------------------------------------------------------------


def test_it_answers_before_it_draws() -> None:
    loaded = threading.Event()
    pipelines = ScriptedPipelines(load=lambda: loaded.wait(PATIENCE))
    with serving(pipelines, ready=False) as running:
        assert running.ask("/health").status == 200
        ready = running.ask("/ready")
        assert (ready.status, ready.json) == (503, {"status": "loading"})
        assert running.count("ready") == 0
        early = running.draw()
        assert (early.status, early.error["code"]) == (503, "server_loading")
        assert "retry-after" in early.headers
        loaded.set()
        soon(lambda: running.ask("/ready").status == 200)
        assert running.draw().status == 200
        (cost,) = running.server.service.queue.costs
        assert running.count("warm_up_seconds", model_name="flux-tiny", size="64x64") == cost.total


def test_what_cannot_be_loaded_ends_the_server() -> None:
    def fail() -> None:
        raise EngineFailed("no engine", expected="one", fix="build again")

    with listen("127.0.0.1", 0) as listening:
        server = Server(ScriptedPipelines(load=fail), listening, Limits())
        with pytest.raises(EngineFailed, match="no engine"):
            server.run()


def test_what_was_accepted_is_answered_before_the_end() -> None:
    pipelines = ScriptedPipelines()
    with ThreadPoolExecutor() as pool:
        with serving(pipelines) as running:
            accepted = [pool.submit(running.draw, "wait", n=2) for _ in range(3)]
            assert pipelines.only.began.acquire(timeout=PATIENCE)
            soon(lambda: running.count("num_requests_waiting") == 2)
            running.server.stop()
            soon(lambda: not accepts(running))
            pipelines.only.released.set()
        assert [each.result().status for each in accepted] == [200] * 3
    assert len(pipelines.asked) == 6


def test_the_end_does_not_wait_for_ever() -> None:
    pipelines = ScriptedPipelines()
    with ThreadPoolExecutor() as pool:
        with serving(pipelines, drain=1.0) as running:
            accepted = pool.submit(_status, running)
            assert pipelines.only.began.acquire(timeout=PATIENCE)
        assert accepted.result() != 200
    assert pipelines.only.cancelled == 1


def _status(running: Running) -> int | None:
    try:
        return running.draw("wait").status
    except OSError:
        return None


def accepts(running: Running) -> bool:
    """Whether the server takes connections."""
    try:
        with running.socket():
            return True
    except OSError:
        return False


# --- slow and large ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Any:
    """A server with little patience and little room."""
    patience = {"body_seconds": 0.2, "receive_seconds": 0.4, "send_seconds": 0.4}
    with serving(ScriptedPipelines(), body=2048, source=2048, **patience) as running:
        yield running


@pytest.mark.parametrize("declared", [b"content-length: 2049", b"content-length: " + b"9" * 19])
def test_a_body_that_says_it_is_too_large_is_not_read(hasty: Running, declared: bytes) -> None:
    with hasty.socket() as sent:
        sent.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: here\r\n" + declared)
        sent.sendall(b"\r\n\r\n")
        assert answered(sent).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_too_large_is_cut(hasty: Running) -> None:
    with hasty.socket() as sent:
        sent.sendall(b"POST /v1/images/edits HTTP/1.1\r\nhost: here\r\n")
        sent.sendall(b"transfer-encoding: chunked\r\n\r\n" + b"400\r\n" + bytes(1024) + b"\r\n")
        sent.sendall(b"401\r\n" + bytes(1025) + b"\r\n")
        assert answered(sent).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(hasty: Running) -> None:
    with hasty.socket() as sent:
        sent.sendall(request_bytes(b"x" * 1000)[:-999])
        assert answered(sent).startswith(b"HTTP/1.1 408 ")
    assert hasty.count("requests_refused_total", reason="request_timeout") >= 1


@pytest.mark.parametrize("said", [b"", b"POST /v1/ima", b"GET / HTTP/1.1\r\nhost: he"])
def test_a_request_that_does_not_come_is_not_waited_for(hasty: Running, said: bytes) -> None:
    with hasty.socket() as sent:
        sent.sendall(said)
        assert answered(sent) == b""


def test_a_second_request_that_does_not_come_is_not_waited_for(hasty: Running) -> None:
    with hasty.socket() as sent:
        sent.sendall(b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n")
        assert b'{"status":"ok"}' in read_until(sent, b"}")
        sent.sendall(b"GET /heal")
        assert answered(sent) == b""


def test_one_who_does_not_read_is_not_waited_for(hasty: Running) -> None:
    service = hasty.server.service
    large = b"x" * (16 << 20)
    service.meters.text = lambda: large  # type: ignore[method-assign]
    with hasty.socket() as sent:
        sent.sendall(b"GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n")
        soon(lambda: hasty.server.connections == 1)
        soon(lambda: hasty.server.connections == 0)
    del service.meters.text


def answered(sent: Any) -> bytes:
    """All that comes until the other side closes; a reset is a close."""
    found = b""
    try:
        while part := sent.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def read_until(sent: Any, mark: bytes) -> bytes:
    """What comes, until the mark has come."""
    found = b""
    while mark not in found:
        part = sent.recv(65536)
        assert part, found
        found += part
    return found


# --- the queue alone --------------------------------------------------------------------------


class _Unmetered:
    def drawn(self, *given: Any) -> None:
        pass

    def warmed(self, *given: Any) -> None:
        pass


def test_orders_are_drawn_in_the_order_of_arrival_and_dropped_ones_not() -> None:
    pipelines = ScriptedPipelines()
    queue = DrawingQueue(pipelines, _Unmetered(), waiting=3)
    told: list[int] = []

    def order(prompt: str, seed: int) -> Order:
        return Order(
            bucket=pipelines.buckets[0],
            prompt=prompt,
            seeds=(seed,),
            guidance=None,
            previews=0,
            tell=lambda event: told.append(event.seed if isinstance(event, Drawn) else -1),
        )

    orders = [order("wait" if seed == 0 else "a bell", seed) for seed in range(4)]
    with pytest.raises(Refusal) as early:
        queue.put(orders[0])
    assert early.value.status == 503
    warm = threading.Event()
    queue.start(lambda error: warm.set())
    assert warm.wait(PATIENCE)
    queue.put(orders[0])
    assert pipelines.only.began.acquire(timeout=PATIENCE)
    for each in orders[1:]:
        queue.put(each)
    queue.drop(orders[2])
    queue.drop(orders[2])
    assert (queue.running, queue.waiting, queue.depth) == (1, 2, 2)
    pipelines.only.released.set()
    soon(lambda: len(told) == 3)
    assert told == [0, 1, 3]
    queue.close(PATIENCE)
    with pytest.raises(Refusal):
        queue.put(orders[1])
    assert told == [0, 1, 3]
