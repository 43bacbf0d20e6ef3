"""The command line: every command is a thin shell over the public Python call of the same name.

Exit codes: 0 on success, 2 for a wrong request, 1 for a failure, 130 for an interrupt, 143 for a
SIGTERM. Standard output carries the result (one JSON object with `--json`); progress and warnings
go to standard error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import typer

from fresco_trt.cli import display, streams
from fresco_trt.cli.bench import bench
from fresco_trt.cli.build import build
from fresco_trt.cli.calibrate import calibrate
from fresco_trt.cli.command import Command
from fresco_trt.cli.doctor import doctor
from fresco_trt.cli.edit import edit
from fresco_trt.cli.export_triton import export_triton
from fresco_trt.cli.generate import generate
from fresco_trt.cli.inspect import inspect
from fresco_trt.cli.plan import plan
from fresco_trt.cli.profile import profile
from fresco_trt.cli.report import report
from fresco_trt.cli.serve import serve
from fresco_trt.cli.sign import sign
from fresco_trt.cli.termination import TERMINATED, termination
from fresco_trt.cli.tune import tune
from fresco_trt.cli.verify import verify
from fresco_trt.cli.video import video
from fresco_trt.errors import FrescoError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compiled, progressive-resolution generation for diffusion transformers.",
)
COMMANDS = (
    *(plan, build, generate, edit, video, verify, inspect, sign, doctor, calibrate, bench, report),
    *(tune, export_triton, profile, serve),
)
for command in COMMANDS:
    app.command(cls=Command)(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with warnings.catch_warnings(), termination() as terminated:
        warnings.showwarning = display.show_warning
        streams.prepare()
        return _code_of(lambda: app(args=arguments), terminated) or _code_of(
            streams.flush, terminated
        )


def _code_of(step: Callable[[], None], terminated: Callable[[], bool]) -> int:
    """The exit code of a step, after its error was told."""
    try:
        step()
    except FrescoError as error:
        display.error(str(error))
        return error.exit_code
    except OSError as error:
        return _refused(error)
    except SystemExit as stop:
        return _exit_code(stop, TERMINATED if terminated() else INTERRUPTED)
    return 0


def _refused(error: OSError) -> int:
    typed = streams.refused(error)
    if typed is None:
        return 1  # nobody reads on: there is nobody to tell
    display.error(str(typed))
    return typed.exit_code


def _exit_code(stop: SystemExit, interrupted: int) -> int:
    code = stop.code if isinstance(stop.code, int) else 0
    if code != INTERRUPTED:
        return code
    what = "terminated" if interrupted == TERMINATED else "interrupted"
    display.error(f"{what}; what was being written is gone, what was there before is kept")
    return interrupted


if __name__ == "__main__":
    sys.exit(main())
