"""`fresco-trt export-triton`: bundles as a model repository of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fresco_trt.cli import display
from fresco_trt.cli.options import Json, Trusted, VerifyKey


def export_triton(
    engines: Annotated[
        list[Path],
        typer.Option(
            "--engines", help="Folder that 'fresco-trt build' wrote; may be given several times."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Model repository, a folder.")],
    name: Annotated[
        str | None,
        typer.Option(help="The model's name in it.", show_default="fresco- and the model's name"),
    ] = None,
    instances: Annotated[
        int, typer.Option(help="Instances a GPU, each with engines of its own.")
    ] = 1,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Write a Triton model repository around bundles of one model."""
    from fresco_trt.pipelines.loading import trust_of
    from fresco_trt.serve.triton_export import Export, export

    request = Export(
        engines=tuple(engines),
        out=out,
        name=name,
        instances=instances,
        trust=trust_of(trust, verify_key),
    )
    display.show(export(request), as_json, _say)


def _say(summary: dict[str, Any]) -> None:
    display.say(f"{summary['model']}: {', '.join(summary['bundles'])}")
    display.say(f"serve it with: tritonserver --model-repository {Path(summary['model']).parent}")
