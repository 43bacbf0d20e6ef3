"""A server in this process over a real socket, with scripted or eager engines behind it."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from fresco_trt.bundle import open_bundle
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.server import Server, listen, url_of
from tests.serve.scripted import ScriptedPipelines

PATIENCE = 60  # seconds, against a hang; nothing is measured
GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"


@dataclass(kw_only=True, eq=False)
class Answer:
    """A status, headers and a body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error object, which every refusal has in OpenAI's form."""
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


@dataclass(kw_only=True, eq=False)
class Running:
    """A server that runs, and where it is."""

    server: Server
    url: str
    pipelines: Any

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def client(self, **options: Any) -> OpenAI:
        """OpenAI's own client, which asks once."""
        given = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
        return OpenAI(base_url=f"{self.url}/v1", **given)

    def connection(self) -> HTTPConnection:
        return HTTPConnection(*self.address, timeout=PATIENCE)

    def socket(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def ask(self, path: str, body: Any = None, **headers: str) -> Answer:
        """GET, or POST of a body: bytes as they are, anything else as JSON."""
        connection = self.connection()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        method = "GET" if data is None else "POST"
        connection.request(method, path, data, {"content-type": "application/json", **named})
        given = connection.getresponse()
        found = {name.lower(): value for name, value in given.getheaders()}
        answer = Answer(status=given.status, headers=found, body=given.read())
        connection.close()
        return answer

    def draw(self, prompt: str = "a bell", **fields: Any) -> Answer:
        """POST a generation."""
        return self.ask(GENERATIONS, {"prompt": prompt, **fields})

    def edit(self, form: Form, **headers: str) -> Answer:
        """POST an edit."""
        return self.ask(EDITS, form.body, **{"content_type": form.content_type, **headers})

    def begin(self, prompt: str = "wait", **fields: Any) -> socket.socket:
        """Send a generation, and do not read the answer."""
        body = json.dumps({"prompt": prompt, **fields}).encode()
        sent = self.socket()
        sent.sendall(request_bytes(body))
        return sent

    def count(self, name: str, **labels: str) -> float:
        """A number of the metrics; 0 for one that is not there."""
        return self.server.service.meters.value(name, **labels)


class Form:
    """A multipart form as it goes over the wire."""

    content_type = "multipart/form-data; boundary=edge"

    def __init__(self, *pictures: bytes, **fields: Any) -> None:
        """Of pictures, each an `image[]` unless there is one, and of text fields."""
        parts = [part(name, str(value).encode()) for name, value in fields.items()]
        name = "image" if len(pictures) == 1 else "image[]"
        parts += [part(name, data, b'; filename="a.png"') for data in pictures]
        self.body = b"".join(parts) + b"--edge--\r\n"


def part(name: str, data: bytes, more: bytes = b"") -> bytes:
    """One part of a form."""
    head = b'content-disposition: form-data; name="%s"%s' % (name.encode(), more)
    return b"--edge\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def png(width: int = 64, height: int = 64, colour: Any = (200, 40, 90)) -> bytes:
    """A picture of one colour as a file."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, format="PNG")
    return file.getvalue()


def request_bytes(body: bytes, *more: bytes) -> bytes:
    """A POST of a generation as it goes over the wire."""
    lines = (
        b"POST /v1/images/generations HTTP/1.1",
        b"host: here",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *more,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextmanager
def serving(
    pipelines: FrescoPipelines,
    *,
    ready: bool = True,
    keys: Any = (),
    reload: Any = None,
    reloaded: Any = None,
    **limits: Any,
) -> Iterator[Running]:
    """A server in the scope, warm unless told otherwise; at its end it has stopped by itself."""
    warm = threading.Event()
    with listen("127.0.0.1", 0) as listening:
        server = Server(
            pipelines,
            listening,
            Limits(**limits),
            keys=keys,
            warm=lambda costs: warm.set(),
            reload=reload,
            reloaded=reloaded,
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert not ready or warm.wait(PATIENCE)
            yield Running(server=server, url=url_of(listening), pipelines=pipelines)
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def real(demo_bundle: Path) -> Iterator[Running]:
    """flux-tiny at 64x64, eager."""
    with serving(FrescoPipelines([open_bundle(demo_bundle)])) as server:
        yield server


@pytest.fixture
def scripted() -> Iterator[Running]:
    """A server that draws grey squares at 64x64 and 128x128; nothing of it is left over."""
    pipelines = ScriptedPipelines(64, 128)
    with serving(pipelines, queue=2) as server:
        yield server
        for script in pipelines.scripts.values():
            script.released.set()
