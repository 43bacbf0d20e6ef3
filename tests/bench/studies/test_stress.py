"""`bench.stress` over a server without engines, and that each of its laws can be broken."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import stress
from bench.clients import CUT, FALSE, RIGHT, Client, Truth
from bench.stress_laws import drain_laws, kill_laws, load_laws
from tests.serve.conftest import serving
from tests.serve.scripted import PROGRAM, ScriptedPipelines, square

ROOT = Path(__file__).parents[3]
SHORT = stress.Effort(warm_seconds=0.3, mixed_seconds=0.5, overload_seconds=0, kills=1, drains=1)


def truth_of(*prompts: str) -> Truth:
    """What the scripted pipeline draws."""
    return Truth.of(
        lambda prompt, seed: [square(side, seed) for side in (16, 32, 64)], prompts, stress.SEEDS
    )


def test_a_server_is_loaded_killed_and_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = ("--queue", str(stress.QUEUE), "--drain", str(stress.DRAIN))
    rows = stress.measure(
        lambda port: [sys.executable, "-c", PROGRAM, "--port", str(port), *options],
        truth_of("blink"),
        SHORT,
    )
    load, kill, drain = rows
    assert [row["broken"] for row in rows] == [[]] * 3
    assert load["mixed"].keys() == {"leaver", "plain", "several", "stream", "wrong"}
    assert load["overload"]["plain"].keys() == {RIGHT, "429 queue_full"}
    assert kill["after"] == {"stream": {RIGHT: stress.CLIENTS}}
    assert sum(ends[RIGHT] for ends in drain["accepted"].values()) == stress.QUEUE
    assert drain["exit_codes"] == [0]


# --- clients ----------------------------------------------------------------------------------


def test_a_client_knows_a_false_picture() -> None:
    truth = truth_of("a bell")
    stages = {key: (*each[:-1], each[0]) for key, each in truth.pictures.items()}
    with serving(ScriptedPipelines()) as running:
        client = Client(address=running.url.removeprefix("http://"), truth=truth, pause=0)
        fooled = replace(client, truth=replace(truth, pictures=stages))
        for kind in ("plain", "several", "stream"):
            assert client.ask(kind, 0).end == RIGHT
            assert fooled.ask(kind, 0).end == FALSE


def test_a_client_knows_an_error() -> None:
    with serving(ScriptedPipelines()) as running:
        address = running.url.removeprefix("http://")
        failing, halfway = (
            Client(address=address, truth=truth_of(word), pause=0) for word in ("fail", "halfway")
        )
        assert failing.ask("plain", 0).end == "500 engine_failed"
        assert halfway.ask("stream", 0).end == "error event engine_failed"


_HALF = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n"


@pytest.mark.parametrize(
    ("kind", "answer", "end"),
    [
        ("plain", _HALF % b"content-length: 900" + b'{"data": []}', CUT),
        ("stream", _HALF % b"transfer-encoding: chunked" + b"10\r\nevent: image_gen\r\n", CUT),
        ("stream", _HALF % b"transfer-encoding: chunked" + b"10\r\nevent", CUT),
        ("plain", b"", "no answer: RemoteDisconnected"),
        ("plain", b"HTTP/1.1 503 x\r\ncontent-length: 2\r\n\r\n{}", "false: 503 without"),
    ],
)
def test_a_client_knows_half_an_answer(kind: str, answer: bytes, end: str) -> None:
    with answering(answer) as address:
        client = Client(address=address, truth=truth_of("a bell"), pause=0)
        assert client.ask(kind, 0).end.startswith(end)


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """HOST:PORT of one that answers one request with these bytes and goes."""

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        yield "{}:{}".format(*listening.getsockname())
        thread.join()


# --- laws -------------------------------------------------------------------------------------

REFUSED = "429 queue_full"
LOAD: dict[str, Any] = {
    "mixed": {"plain": {RIGHT: 2}, "leaver": {"left": 1}, "wrong": {"400 invalid_value": 1}},
    "overload": {"plain": {RIGHT: 2, REFUSED: 2}, "stream": {RIGHT: 2}},
    "memory_growth": 0.01,
    "limit": 0.05,
    "descriptors": {"warm": 9, "end": 9},
}
KILL: dict[str, Any] = {
    "in_flight": {"plain": {RIGHT: 1, CUT: 1, "no answer: RemoteDisconnected": 1}},
    "told_seconds": 0.1,
    "limit": 5.0,
    "after": {"stream": {RIGHT: 6}},
    "left_in_temporary_folder": [],
}
DRAIN: dict[str, Any] = {
    "accepted": {"plain": {RIGHT: 8}},
    "answered_after_the_signal": 7,
    "newcomers": {"at once": {RIGHT: 1}, "later": {"no answer: ConnectionRefusedError": 5}},
    "seconds": 2.0,
    "limit": 60.0,
    "exit_codes": [0],
    "left_in_temporary_folder": [],
}


@pytest.mark.parametrize(
    ("laws", "row", "broken"),
    [
        (load_laws, LOAD, {"mixed": {"plain": {FALSE: 1}}}),
        (load_laws, LOAD, {"mixed": {"plain": {CUT: 1}}}),
        (load_laws, LOAD, {"mixed": {"plain": {"hung": 1}}}),
        (load_laws, LOAD, {"mixed": {"stream": {"error event engine_failed": 1}}}),
        (load_laws, LOAD, {"mixed": {"wrong": {"500 internal_error": 1}}}),
        (load_laws, LOAD, {"mixed": {"wrong": {FALSE: 1}}}),
        (load_laws, LOAD, {"mixed": {"leaver": {CUT: 1}}}),
        (load_laws, LOAD, {"overload": {"plain": {RIGHT: 2}, "stream": {RIGHT: 2}}}),
        (load_laws, LOAD, {"overload": {"plain": {RIGHT: 2, REFUSED: 2}}}),
        (load_laws, LOAD, {"memory_growth": 0.06}),
        (load_laws, LOAD, {"descriptors": {"warm": 9, "end": 10}}),
        (kill_laws, KILL, {"in_flight": {"stream": {CUT: 1, FALSE: 1}}}),
        (kill_laws, KILL, {"in_flight": {"stream": {RIGHT: 1}}}),
        (kill_laws, KILL, {"told_seconds": 6.0}),
        (kill_laws, KILL, {"after": {"stream": {RIGHT: 5, CUT: 1}}}),
        (kill_laws, KILL, {"left_in_temporary_folder": ["x"]}),
        (drain_laws, DRAIN, {"accepted": {"plain": {RIGHT: 7, CUT: 1}}}),
        (drain_laws, DRAIN, {"answered_after_the_signal": 0}),
        (drain_laws, DRAIN, {"newcomers": {"at once": {CUT: 1}, "later": {"503 closed": 1}}}),
        (drain_laws, DRAIN, {"newcomers": {"at once": {RIGHT: 1}, "later": {RIGHT: 1}}}),
        (drain_laws, DRAIN, {"newcomers": {"at once": {RIGHT: 1}}}),
        (drain_laws, DRAIN, {"exit_codes": [0, 1]}),
        (drain_laws, DRAIN, {"seconds": 61.0}),
        (drain_laws, DRAIN, {"left_in_temporary_folder": ["x"]}),
    ],
)
def test_each_law_can_be_broken(laws: Any, row: dict[str, Any], broken: dict[str, Any]) -> None:
    assert list(laws(row)) == []
    assert len(list(laws(row | broken))) == 1
