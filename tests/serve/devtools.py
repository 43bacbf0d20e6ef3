"""A page in a headless Chromium that a test can click in: DevTools' protocol over a bare socket."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.browser import CHROMIUM

PATIENCE = 60  # seconds, against a hang; nothing is measured


class Page:
    """One page; what it said on its console is in `said`, what it asked for in `asked`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._number = 0
        self.said: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Send a command, and note what happens until it is answered."""
        self._number += 1
        self._send({"id": self._number, "method": method, "params": parameters})
        while (message := self._receive()).get("id") != self._number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def get(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.get(expression):
            assert time.monotonic() < end, (expression, self.said)
            time.sleep(0.01)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(parameters))

    def _send(self, message: dict[str, Any]) -> None:
        """One masked text frame (RFC 6455); a mask of zeros is one."""
        data = json.dumps(message).encode()
        short = len(data) < 126
        size = bytes([128 + len(data)]) if short else b"\xfe" + len(data).to_bytes(2, "big")
        self._connection.sendall(b"\x81" + size + bytes(4) + data)

    def _receive(self) -> Any:
        size = self._read(2)[1]
        if size >= 126:
            size = int.from_bytes(self._read(2 if size == 126 else 8), "big")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        assert len(data) == size
        return data


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Page]:
    """A page in the scope; `folder` is for the browser's own files."""
    assert CHROMIUM is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
    hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with subprocess.Popen(
        [CHROMIUM, *options, hosts, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            with _connected(_port(folder)) as connection:
                page = Page(connection)
                page.do("Page.navigate", url=url)
                yield page
        finally:
            process.kill()


def _port(folder: Path) -> int:
    told, end = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
    while not (told.is_file() and told.read_text().count("\n")):
        assert time.monotonic() < end, "no browser"
        time.sleep(0.02)
    return int(told.read_text().splitlines()[0])


def _connected(port: int) -> socket.socket:
    with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
        pages = [each for each in json.load(answer) if each["type"] == "page"]
    path = pages[0]["webSocketDebuggerUrl"].split(str(port), 1)[1]
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    key = "AAAAAAAAAAAAAAAAAAAAAA=="
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    )
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert b" 101 " in head.splitlines()[0]
    return connection
