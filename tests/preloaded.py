"""Runs programs in forks of one process that has imported torch and diffusers already, and what
exports graphs.

These take longer to import than most blocks and examples take to run, and the exporter's table of
operators as long to read. Nothing of this package is imported before the fork, so that each program
imports it as a fresh process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from types import TracebackType
from typing import Self

PATIENCE = 600  # seconds, against a hang; nothing is measured

# What was imported stays, and no program's collector has to look through it.
_SERVER = """
import functools, gc, json, os, sys, traceback
import onnx_ir.passes.common, onnxruntime, onnxscript.optimizer, torch, torch._dynamo
from diffusers import FluxPipeline
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._registration import ONNXRegistry

# No program adds an operator to what is read here once for all of them.
read = functools.cache(ONNXRegistry.from_torchlib)
read()
ONNXRegistry.from_torchlib = staticmethod(read)
gc.freeze()

def program(task):
    exec(compile(task["code"], task["argv"][0], "exec"), {"__name__": "__main__"})

def child(task):
    said = os.open(task["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (said, 1), (said, 2)):
        os.dup2(old, new)
    os.chdir(task["folder"])
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

assert "fresco_trt" not in sys.modules
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        child(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
_COMMAND = "import sys; from fresco_trt.cli.main import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How a program ended: its exit status, and all that it printed."""

    status: int
    said: str


class Preloaded:
    """The process; ends with the ``with`` block, or with the process that started it."""

    def __init__(self, scratch: Path) -> None:
        self._said = scratch / "said"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(
        self, code: str, folder: Path, *argv: str, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run a program in ``folder`` as ``python argv[0] argv[1]...`` would."""
        task = {
            "code": code,
            "folder": str(folder),
            "argv": argv or ["-c"],
            "environment": dict(environment or {}),
            "said": str(self._said),
        }
        tasks, ends = self._process.stdin, self._process.stdout
        assert tasks is not None
        assert ends is not None
        tasks.write(json.dumps(task) + "\n")
        tasks.flush()
        if not select([ends], [], [], PATIENCE)[0]:
            self._process.kill()
            raise TimeoutError(f"not over after {PATIENCE} s: {code}")
        status = int(ends.readline())
        return Done(status=status, said=self._said.read_text(encoding="utf-8", errors="replace"))

    def command(
        self, arguments: Sequence[str], folder: Path, *, environment: Mapping[str, str]
    ) -> Done:
        """Run ``fresco-trt`` with arguments."""
        return self.run(_COMMAND, folder, "fresco-trt", *arguments, environment=environment)


def environment_with(cache: Path) -> dict[str, str]:
    """This interpreter's commands first on the path, and a cache folder that is not the user's."""
    commands = Path(sys.executable).parent
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "FRESCO_TRT_CACHE": str(cache),
    }
