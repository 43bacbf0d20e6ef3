"""Runs programs in forks of one process that has imported torch and diffusers already, and what
exports graphs. It is one for all processes of a run.

These take longer to import than most blocks and examples take to run, and the exporter's table of
operators as long to read. Nothing of this package is imported before the fork, so that each program
imports it as a fresh process does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tests.once import locked

PATIENCE = 600  # seconds, against a hang; nothing is measured

# What was imported stays, and no program's collector has to look through it.
_SERVER = """
import functools, gc, json, os, select, signal, socket, sys, traceback
import onnx_ir.passes.common, onnxruntime, onnxscript.optimizer, pydantic.main, torch
import torch._dynamo, torch.export._trace
from diffusers import FluxPipeline
from torch._export import utils
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._registration import ONNXRegistry

# No program adds an operator to what is read here once for all of them.
read = functools.cache(ONNXRegistry.from_torchlib)
read()
ONNXRegistry.from_torchlib = staticmethod(read)
utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
utils._collect_all_valid_cia_ops()
gc.freeze()

def program(task):
    exec(compile(task["code"], task["argv"][0], "exec"), {"__name__": "__main__"})

def child(task):
    said = os.open(task["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (said, 1), (said, 2)):
        os.dup2(old, new)
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.argv = task["argv"]
    try:
        program(task)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

def serve(connection):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            pid = os.fork()
            if not pid:
                connection.close()
                child(json.loads(line))
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(status, file=lines, flush=True)
    os._exit(0)

assert "fresco_trt" not in sys.modules
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    # Its input ends with the process that started it. Whoever has asked before is served on.
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        asked = listener.accept()[0]
        if not os.fork():
            listener.close()
            serve(asked)
        asked.close()
"""
_COMMAND = "import sys; from fresco_trt.cli.main import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How a program ended: its exit status, and all that it printed."""

    status: int
    said: str


class Preloaded:
    """The process, by a connection of one's own; ``folder`` is one of all processes of the run."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._said = folder, scratch / "said"

    def __enter__(self) -> Self:
        self._scope = ExitStack()
        self._asked = self._scope.enter_context(socket.socket(socket.AF_UNIX))
        place = self._folder / "preloaded"
        with locked(place):
            try:
                self._asked.connect(place.read_text())
            except OSError:  # nobody has started it, or who did has ended
                place.write_text(address := self._scope.enter_context(_started()))
                self._asked.connect(address)
        self._lines = self._scope.enter_context(self._asked.makefile("rw"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scope.close()

    def run(
        self, code: str, folder: Path, *argv: str, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run a program in ``folder`` as ``python argv[0] argv[1]...`` would."""
        task = {
            "code": code,
            "folder": str(folder),
            "argv": argv or ["-c"],
            "environment": {**os.environ, **(environment or {})},
            "said": str(self._said),
        }
        print(json.dumps(task), file=self._lines, flush=True)
        if not select([self._asked], [], [], PATIENCE)[0]:
            raise TimeoutError(f"not over after {PATIENCE} s: {code}")
        status = int(self._lines.readline())
        return Done(status=status, said=self._said.read_text(encoding="utf-8", errors="replace"))

    def command(
        self, arguments: Sequence[str], folder: Path, *, environment: Mapping[str, str]
    ) -> Done:
        """Run ``fresco-trt`` with arguments."""
        return self.run(_COMMAND, folder, "fresco-trt", *arguments, environment=environment)


@contextmanager
def _started() -> Iterator[str]:
    """The process, and the address at which it listens while the scope lasts."""
    # A socket's address has about a hundred letters; a folder of the tests may have more.
    with TemporaryDirectory(prefix="fresco-trt-") as folder:
        address = str(Path(folder) / "preloaded")
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield address
            process.stdin.close()


def environment_with(cache: Path) -> dict[str, str]:
    """This interpreter's commands first on the path, and a cache folder that is not the user's."""
    commands = Path(sys.executable).parent
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "FRESCO_TRT_CACHE": str(cache),
    }
