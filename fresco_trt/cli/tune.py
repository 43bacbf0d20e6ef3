"""`fresco-trt tune`: the best plan for a model's weights, at a speed or a closeness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fresco_trt.cli import display
from fresco_trt.cli.options import Backend, Json, Model, Weights
from fresco_trt.plan.sizes import parse_size
from fresco_trt.tune.options import METRICS, OUT, Options, parse_floor


def tune(
    model: Model,
    weights: Weights = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Times faster than the plain pipeline; the closest plan is found."),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(
            help="How close to the many-step picture: ssim=0.9, perceptual=0.8, or score= of the "
            "scorer; the fastest plan is found."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, one prompt a line; for a model that edits, a folder of sources, "
            "prompts in its metadata.jsonl.",
            show_default="what the model is calibrated on",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="module:function of a picture and its prompt, which gives a number."),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Picture size WxH.", show_default="the model's")
    ] = None,
    backend: Backend = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer candidates on fewer pictures.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", help="JSON to write; all else goes into <out>.tune beside it.")
    ] = OUT,
    as_json: Json = False,
) -> None:
    """Find the best plan for a model's weights on this machine, among every kind there is."""
    options = Options(
        model=model,
        weights=weights,
        speed=speed,
        floor=None if floor is None else parse_floor(floor),
        prompts=prompts,
        scorer=scorer,
        size=None if size is None else parse_size(size),
        backend=backend,
        quick=quick,
        out=out,
    )
    from fresco_trt.tune.job import run

    with display.progress() as report:
        tuned = run(options, report, display.note)
    display.show({**tuned.document, "plan": str(out)}, as_json, _table)


def _table(document: dict[str, Any]) -> None:
    """The finalists, and what became of the control."""
    metrics = [name for name in METRICS if name in document["metrics"]]
    rows = document["rows"][: document["finalists"]]
    display.table(
        f"{document['model']}, {document['target']}: {document['pictures']} pictures each",
        ("plan", "speed", "steps", *metrics),
        [
            (
                row["name"],
                f"{row['speed']:.2f}x",
                f"{row['full_steps']} of {row['steps']} full",
                *(f"{row[name]:.3f}" for name in metrics),
            )
            for row in rows
        ],
    )
    display.say(document["verdict"])
    beside = document["beside"]["winner"]
    display.say(
        f"side by side {beside['speed']:.2f}x ({beside['low']:.2f} to {beside['high']:.2f})"
    )
    display.say(f"build it: fresco-trt build --plan {document['plan']}")
