"""What studies on the package's measuring code share: their options, and how they are run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fresco_trt.bench.job import run
from fresco_trt.bench.options import BACKEND, OUT, QUICK_SCENES, SCENES, Options
from fresco_trt.bench.plain import MODEL
from fresco_trt.bench.results_log import PACKAGE
from fresco_trt.bench.terminal import show
from fresco_trt.cli import display
from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fresco_trt.bench.job import Study

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


def command(about: str, study_of: Callable[[str | None], Study]) -> Callable[..., None]:
    """A study's command line, which says what it is ``about``; ``study_of`` gives the study of the
    weights at a path, or of the packaged ones.
    """

    def main(
        model: Model = MODEL,
        out: Out = OUT,
        scenes: Scenes = None,
        quick: Quick = False,
        size: Size = None,
        weights: Weights = None,
        backend: Backend = BACKEND,
    ) -> None:
        options = Options(
            model=model,
            out=out,
            scenes=scenes,
            quick=quick,
            size=size,
            weights=weights,
            backend=backend,
        )
        run_study(study_of(weights), options)

    main.__doc__ = about
    return main


def run_study(study: Study, options: Options) -> None:
    """Measure and show; an error is told in words and ends the process with its exit code."""
    try:
        with display.progress() as report:
            document = run(options, report, study)
    except FrescoError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    show(document)
