"""What studies on the package's measuring code share: their options, and how they are run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fresco_trt.bench.job import run
from fresco_trt.bench.options import OUT, QUICK_SCENES, SCENES
from fresco_trt.bench.results_log import PACKAGE
from fresco_trt.bench.terminal import show
from fresco_trt.cli import display
from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    from fresco_trt.bench.job import Study
    from fresco_trt.bench.options import Options

SOURCES = (PACKAGE, Path(__file__).parent)
"""Code that a study's results depend on."""

Model = Annotated[str, typer.Option(help="Model name.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.", show_default=str(OUT))]
Scenes = Annotated[
    int | None,
    typer.Option(
        help="Scenes that every point draws.",
        show_default=f"{SCENES}, or {QUICK_SCENES} with --quick",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer points and scenes.")]
Size = Annotated[str | None, typer.Option(help="Picture size WxH.", show_default="the model's")]
Weights = Annotated[
    str | None,
    typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
]
Backend = Annotated[str, typer.Option(help="Engine library of our plans.")]


def run_study(study: Study, options: Options) -> None:
    """Measure and show; an error is told in words and ends the process with its exit code."""
    try:
        with display.progress() as report:
            document = run(options, report, study)
    except FrescoError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    show(document)
