"""Clients that dawdle or stop halfway, bundles that change on the disk, and a disk that is full."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.pipelines.several import FrescoPipelines
from tests.bundle.test_in_use import weights, zeros
from tests.serve.conftest import EDITS, GENERATIONS, Form, Running, png, serving
from tests.serve.scripted import ScriptedPipelines, soon

FORM = Form(png(), prompt="a hat")
WHOLE = (
    f"POST {EDITS} HTTP/1.1\r\nhost: here\r\ncontent-type: {FORM.content_type}\r\n"
    f"content-length: {len(FORM.body)}\r\n\r\n"
).encode() + FORM.body


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    """A server with little patience that draws and edits."""
    patience = {"body_seconds": 0.3, "receive_seconds": 0.6}
    with serving(ScriptedPipelines(64, editing=(128,)), **patience) as running:
        yield running


def answered(sent: socket.socket) -> bytes:
    """All that comes until the other side closes; a reset is a close."""
    found = b""
    try:
        while part := sent.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


# --- slow and half ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "status"), [(0, b""), (WHOLE.index(b"\r\n\r\n") + 4, b"HTTP/1.1 408 ")]
)
def test_one_who_sends_byte_by_byte_is_not_waited_for(
    hasty: Running, at: int, status: bytes
) -> None:
    """Of headers, and of a body: that each byte comes in time does not count."""
    with hasty.socket() as sent:
        sent.sendall(WHOLE[:at])
        sent.settimeout(0.02)
        found, end = None, time.monotonic() + 60
        for byte in WHOLE[at:]:
            assert time.monotonic() < end
            try:
                sent.sendall(bytes([byte]))
                found = sent.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                found = found or b""
            break
        assert found is not None
        assert found.startswith(status)
    soon(lambda: hasty.server.connections == 0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_of_an_edit_is_refused_or_dropped(hasty: Running, share: float) -> None:
    with hasty.socket() as sent:
        sent.sendall(WHOLE[: int(share * len(WHOLE))])
        sent.shutdown(socket.SHUT_WR)
        found = answered(sent)
    assert not found or found.startswith(b"HTTP/1.1 4")
    soon(lambda: hasty.server.connections == 0)
    assert hasty.edit(FORM).status == 200


def test_a_chunked_edit_is_an_edit(hasty: Running) -> None:
    head = WHOLE[: WHOLE.index(b"content-length")] + b"transfer-encoding: chunked\r\n\r\n"
    middle = len(FORM.body) // 2
    with hasty.socket() as sent:
        sent.sendall(head)
        for part in (FORM.body[:middle], FORM.body[middle:], b""):
            sent.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        assert sent.recv(4096).startswith(b"HTTP/1.1 200 ")


# --- the disk ---------------------------------------------------------------------------------


def test_a_bundle_that_is_written_over_is_refused_by_name(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "bundle")
    with serving(FrescoPipelines([open_bundle(folder)])) as running:
        assert running.draw(seed=7).status == 200
        zeros(weights(folder))
        answer = running.draw(seed=7)
        assert (answer.status, answer.error["code"]) == (503, "bundle_changed")
        assert running.ask("/health").status == 200


_WRITES = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.link",
    "os.truncate",
    "tempfile.mkstemp",
}
_seen: list[Any] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _WRITES:
        _seen.append((event, *arguments))


def test_nothing_is_written_so_that_a_full_disk_is_not_met(hasty: Running, tmp_path: Path) -> None:
    """A picture by URL and a source of an edit are where a server may write: neither is a file."""
    global _seen
    sys.addaudithook(_watch)  # for as long as the process lives
    _seen = found = []
    try:
        (tmp_path / "seen").touch()
        large = Form(png(1000, 1000, (1, 2, 3)) + bytes(3 << 20), prompt="a hat")
        assert hasty.edit(large).status == 200
        url = hasty.draw(response_format="url").json["data"][0]["url"]
        assert hasty.ask(url.removeprefix(hasty.url)).status == 200
        assert hasty.ask(GENERATIONS, json.dumps({"prompt": "fail"}).encode()).status == 500
    finally:
        _seen = None
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    wrote = [each for each in found if each[0] != "open" or each[3] & flags]
    names = [str(each[1]) for each in wrote if "__pycache__" not in str(each[1])]
    assert names == [str(tmp_path / "seen")]
