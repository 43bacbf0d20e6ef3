"""`fresco-trt bench`: methods side by side, from the command line's options to the files it leaves.

Light to import: what measures, :mod:`fresco_trt.bench.job`, is imported when the command runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.bench.options import BACKEND, OUT, QUICK_SCENES, SCENES, Options
from fresco_trt.cli import display


def bench(
    model: Annotated[str, typer.Option("--model", help="Model name, e.g. flux-tiny.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = OUT,
    scenes: Annotated[
        int | None,
        typer.Option(
            help="Scenes that every method draws.",
            show_default=f"{SCENES}, or {QUICK_SCENES} with --quick",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, with commas between; plain always is.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and scenes.")] = False,
    size: Annotated[
        str | None, typer.Option("--size", help="Picture size WxH.", show_default="the model's")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
    ] = None,
    backend: Annotated[str, typer.Option(help="Engine library of our plans.")] = BACKEND,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Compare speed and quality of methods side by side: JSON, table, plot and pictures."""
    options = Options(
        model=model,
        out=out,
        scenes=scenes,
        methods=None if methods is None else tuple(name.strip() for name in methods.split(",")),
        quick=quick,
        size=size,
        weights=weights,
        backend=backend,
    )
    from fresco_trt.bench.job import run
    from fresco_trt.bench.terminal import show

    with display.progress() as report:
        document = run(options, report)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
    else:
        show(document)
