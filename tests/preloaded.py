"""Runs programs in forks of one process that has imported torch and diffusers already, and what
exports graphs. It is one for all processes of a run.

These take longer to import than most blocks and examples take to run, and the exporter's table of
operators as long to read. Nothing of this package is imported before the fork of a Python program,
so that each imports it as a fresh process does. What forks commands has imported the command line,
as each of them does before anything else.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tests.once import locked

PATIENCE = 600  # seconds, against a hang; nothing is measured

# What was imported stays, and no program's collector has to look through it.
_SERVER = """
import contextlib, functools, gc, json, os, select, socket, sys, traceback
import onnx_ir.passes.common, onnxruntime, onnxscript.optimizer, pydantic.main, torch
import PIL.PngImagePlugin, torch._dynamo, torch.export._trace
from diffusers import FluxPipeline
from pydantic import BaseModel, Field
from torch._export import utils
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("t5")  # which makes that of all models, and keeps it
# No program adds an operator to what is read here once for all of them.
read = functools.cache(ONNXRegistry.from_torchlib)
read()
ONNXRegistry.from_torchlib = staticmethod(read)
utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
utils._collect_all_valid_cia_ops()
gc.freeze()

def program(task):
    exec(compile(task["code"], task["argv"][0], "exec"), {"__name__": "__main__"})

def child(task, streams):
    for old, new in zip(streams, range(3)):
        os.dup2(old, new)
        os.close(old)
    # What the streams were, a file or a pipe, is not what they are.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
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
    streams = socket.recv_fds(connection, 1, 3)[1]
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            pid = os.fork()
            if not pid:
                connection.close()
                child(json.loads(line), streams)
            print(pid, file=lines, flush=True)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(status, file=lines, flush=True)
    os._exit(0)

def listen(listener, until):
    while listener in select.select([listener, until], [], [])[0]:
        asked = listener.accept()[0]
        if not os.fork():
            listener.close()
            serve(asked)
        asked.close()
        reap(os.WNOHANG)
    listener.close()
    reap(0)

def reap(how):
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass

assert "fresco_trt" not in sys.modules
programs, commands = (socket.socket(socket.AF_UNIX) for _ in range(2))
for listener, name in ((programs, "programs"), (commands, "commands")):
    listener.bind(f"{sys.argv[1]}/{name}")
    listener.listen()
print("ready", flush=True)
over, open_until_then = os.pipe()
if not os.fork():
    commands.close()
    # Its input ends with the process that started it. Whoever has asked before is served on.
    listen(programs, sys.stdin)
    os._exit(0)
programs.close()
os.close(open_until_then)
import fresco_trt.cli.main
gc.freeze()
listen(commands, over)
"""

# In the place of the installed one; it passes on the signals that it gets.
_COMMAND = """
import json, os, signal, socket, sys

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(sys.argv[1])
    socket.send_fds(asked, [b"."], [0, 1, 2])
    task = {
        "code": "import sys; from fresco_trt.cli.main import main; sys.exit(main())",
        "folder": os.getcwd(),
        "argv": ["fresco-trt", *sys.argv[2:]],
        "environment": dict(os.environ),
    }
    with asked.makefile("rw") as lines:
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        print(json.dumps(task), file=lines, flush=True)
        pid = int(lines.readline())
        for each in PASSED_ON:
            signal.signal(each, lambda number, frame: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        status = int(lines.readline())
sys.exit(status if status >= 0 else 128 - status)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How a program ended: its exit status, and all that it printed."""

    status: int
    said: str


class Preloaded:
    """The process, by a connection of one's own; ``folder`` is one of all processes of the run.
    ``command`` is a program that does what ``fresco-trt`` does, in a fork.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._said = folder, scratch / "said"
        self.command = scratch / "commands" / "fresco-trt"

    def __enter__(self) -> Self:
        self._scope = ExitStack()
        self.command.parent.mkdir()
        self._asked = socket.socket(socket.AF_UNIX)
        place = self._folder / "preloaded"
        with locked(place):
            try:
                self._asked.connect(f"{(address := place.read_text())}/programs")
            except OSError:  # nobody has started it, or who did has ended
                place.write_text(address := self._scope.enter_context(_started()))
                self._asked.connect(f"{address}/programs")
        # Closed before the process is waited for, which serves all that have asked.
        self._scope.enter_context(self._asked)
        with Path(os.devnull).open() as nothing, self._said.open("a") as said:
            socket.send_fds(self._asked, [b"."], [nothing.fileno(), said.fileno(), said.fileno()])
        self._asked.settimeout(PATIENCE)
        self._lines = self._scope.enter_context(self._asked.makefile("rw"))
        self._write_command(f"{address}/commands")
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
        }
        os.truncate(self._said, 0)
        print(json.dumps(task), file=self._lines, flush=True)
        self._lines.readline()  # the number of its process
        status = int(self._lines.readline())
        return Done(status=status, said=self._said.read_text(encoding="utf-8", errors="replace"))

    def shell(self, code: str, folder: Path, *, environment: Mapping[str, str]) -> Done:
        """Run a script in ``folder`` up to the first command that fails; what it calls
        ``fresco-trt`` are forks too.
        """
        path = f"{self.command.parent}{os.pathsep}{environment.get('PATH', os.environ['PATH'])}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder,
            env={**os.environ, **environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Done(status=done.returncode, said=done.stdout)

    def _write_command(self, address: str) -> None:
        """The command ``fresco-trt``, which asks there for a fork."""
        code = self.command.with_suffix(".py")
        code.write_text(_COMMAND)
        words = shlex.join([sys.executable, "-IS", str(code), address])
        self.command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        self.command.chmod(0o755)


@contextmanager
def _started() -> Iterator[str]:
    """The process, and the folder of the addresses at which it listens while the scope lasts."""
    # A socket's address has about a hundred letters; a folder of the tests may have more.
    with TemporaryDirectory(prefix="fresco-trt-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield folder
            process.stdin.close()


def environment_with(cache: Path) -> dict[str, str]:
    """This interpreter's commands first on the path, and a cache folder that is not the user's."""
    commands = Path(sys.executable).parent
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "FRESCO_TRT_CACHE": str(cache),
    }
