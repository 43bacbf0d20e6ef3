"""`fresco-trt serve` in a process of its own, for the studies that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PROMPT = "a red apple on a plain blue background"
GENERATIONS = "/v1/images/generations"
PATIENCE = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Status and body, the seconds to the first byte of the body and to its end, and the place in
    the queue that the server gave the request, 0 where it has none.
    """

    status: int
    early: float
    seconds: float
    place: int
    body: bytes

    @property
    def drawing(self) -> float:
        """Seconds that the server says it drew; of an answer that is no stream."""
        return float(json.loads(self.body)["inference_seconds"])


@dataclass(kw_only=True, eq=False)
class Served:
    """A server, where it is, and the process it is in if that is another one."""

    url: str
    process: subprocess.Popen[str] | None = None
    cold: float = 0.0
    """Seconds from its start until it was ready."""

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.url.removeprefix("http://")

    def ask(self, **fields: Any) -> Answer:
        """POST a generation."""
        began = time.perf_counter()
        connection = HTTPConnection(self.address, timeout=PATIENCE)
        body = json.dumps({"prompt": PROMPT, **fields})
        connection.request("POST", GENERATIONS, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        first = answer.read(1)
        early = time.perf_counter() - began
        data = first + answer.read()
        connection.close()
        seconds = time.perf_counter() - began
        place = int(answer.getheader("x-queue-position", "0"))
        return Answer(status=answer.status, early=early, seconds=seconds, place=place, body=data)

    def count(self, name: str) -> float:
        """The sum of a metric over its labels; 0 for one that is not there."""
        with urlopen(f"{self.url}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def resident(self) -> int:
        """Bytes that its process holds."""
        lines = (self._proc / "status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    def descriptors(self) -> int:
        """Files and sockets that its process has open."""
        return sum(1 for _ in (self._proc / "fd").iterdir())

    @property
    def _proc(self) -> Path:
        if self.process is None:
            raise ValueError("a server in this process")
        return Path(f"/proc/{self.process.pid}")


def command_of(bundle: Path, *options: str) -> list[str]:
    """The command that serves a bundle."""
    program = [sys.executable, "-m", "fresco_trt.cli", "serve"]
    return [*program, "--engines", str(bundle), "--json", *options]


def started(command: Sequence[str], **environment: str) -> Served:
    """A process that was started and is ready. Raises RuntimeError if it ends before it is."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    said = ""
    for line in process.stdout or ():
        said += line
        if line == "}\n":
            cold = time.perf_counter() - began
            return Served(url=json.loads(said)["url"], process=process, cold=cold)
    raise RuntimeError(f"the server ended with {process.wait()} before it was ready")


@contextmanager
def served(command: Sequence[str], **environment: str) -> Iterator[Served]:
    """A server in the scope, which ends by itself when it is told to."""
    server = started(command, **environment)
    if server.process is None:
        raise RuntimeError("a server without a process")
    with server.process as process:
        try:
            yield server
        finally:
            process.terminate()
            if process.wait(PATIENCE) != 0:
                raise RuntimeError(f"the server ended with {process.returncode}")
