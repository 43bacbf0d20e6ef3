"""Records requests with Nsight Systems: its command line, the process under it, and the export.

Before :mod:`fresco_trt.profile.nsight`, which reads what this leaves. The process under ``nsys`` is
:mod:`fresco_trt.profile.recorded`; it warms up before it opens the capture range.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fresco_trt.errors import ProfileError, ProfilerUnavailable
from fresco_trt.files.atomic_file import writing
from fresco_trt.profile.nvtx import INSTALL

if TYPE_CHECKING:
    from fresco_trt.profile.options import Options

REPORT, EXPORT = "profile.nsys-rep", "profile.sqlite"
RECORDED = "fresco_trt.profile.recorded"

Run = Callable[[Sequence[str]], None]

FLAGS = (
    "--trace=cuda,nvtx,osrt",
    "--sample=none",
    "--cpuctxsw=none",
    # What is before it, imports, loading and warm-up, is not recorded.
    "--capture-range=cudaProfilerApi",
    "--capture-range-end=stop",
    # Else a graph is one row: no kernel of a replayed engine would be seen.
    "--cuda-graph-trace=node",
    "--force-overwrite=true",
)


def record(options: Options, out: Path, run: Run | None = None) -> Path:
    """Draw the requests under ``nsys``, and export what it recorded: the report and its SQLite file
    in ``out``, the path of which is returned. ``run`` starts a program and waits for it.

    Raises ProfilerUnavailable where nsys, nvtx or a GPU is missing, ProfileError if one of the
    programs fails, and as :func:`fresco_trt.files.atomic_file.writing`.
    """
    nsys = _require()
    started = run or _run
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        # Renamed at the end: what was killed leaves nothing under a name that is read.
        with TemporaryDirectory(prefix=".nsys-", dir=out) as folder:
            report, export = Path(folder) / REPORT, Path(folder) / EXPORT
            target = f"--output={report.with_suffix('')}"  # nsys appends its own
            started([nsys, "profile", *FLAGS, target, *_program(options)])
            target = f"--output={export}"
            started(
                [nsys, "export", "--type=sqlite", "--force-overwrite=true", target, str(report)]
            )
            missing = [made.name for made in (report, export) if not made.is_file()]
            if missing:
                raise _failed(f"nsys left no {' and no '.join(missing)}")
            for made in (report, export):
                made.replace(out / made.name)
    return out / EXPORT


def _require() -> str:
    """The program nsys, where it, NVTX and a GPU are there."""
    nsys = shutil.which("nsys")
    if nsys is None:
        raise ProfilerUnavailable(
            "--nsys on a machine without nsys",
            expected="the command of Nsight Systems on the PATH",
            fix="install Nsight Systems (nsight-systems-cli), or record on a machine that has it "
            "and pass its export with --from-nsys",
        )
    if find_spec("nvtx") is None:
        raise ProfilerUnavailable(
            "--nsys without the Python package nvtx",
            expected="it beside this package, to mark stages and steps",
            fix=INSTALL,
        )
    import torch

    if not torch.cuda.is_available():
        raise ProfilerUnavailable(
            "--nsys without a GPU that torch can use",
            expected="an NVIDIA GPU, its driver and a CUDA build of torch",
            fix="leave --nsys out to record on the host, or record on a machine with a GPU",
        )
    return nsys


def _program(options: Options) -> list[str]:
    paths = {
        name: str(path)
        for name, path in (("engines", options.engines), ("verify_key", options.verify_key))
        if path is not None
    }
    return [sys.executable, "-m", RECORDED, json.dumps(asdict(options) | paths)]


def _run(command: Sequence[str]) -> None:
    """Run a program in a group of its own, which ends with this call."""
    name = f"'{Path(command[0]).name} {command[1]}'"
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _failed(f"{name} does not start: {error.strerror or error}") from error
    with program:
        try:
            said, _ = program.communicate()
        except BaseException:
            # nsys passes no signal on to the process under it.
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            raise
    if program.returncode:
        lines = [line for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        raise _failed(f"{name} ended with {program.returncode}: {last}")


def _failed(given: str) -> ProfileError:
    return ProfileError(
        given,
        expected="a recording and its export",
        fix="run 'nsys status --environment', which says what this machine lacks",
    )
