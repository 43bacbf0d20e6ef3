"""`fresco-trt edit`: a picture changed as a prompt says, with a bundle's engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.cli.generate import draw
from fresco_trt.cli.options import (
    Engines,
    Guidance,
    Json,
    Picture,
    Preview,
    Seed,
    Trusted,
    VerifyKey,
)


def edit(
    engines: Engines,
    image: Annotated[Path, typer.Option("--image", help="Picture to edit.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What to change.")],
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="White where the picture may change; found if left out."),
    ] = None,
    save_mask: Annotated[
        Path | None, typer.Option("--save-mask", help="PNG to write: white where it was edited.")
    ] = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    out: Picture = Path("picture.png"),
    preview: Preview = False,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Edit a picture with the engines of a model that edits, such as flux-kontext."""
    from fresco_trt.pipelines.loading import trust_of

    request = {
        "prompt": prompt,
        "image": image,
        "mask": mask,
        "seed": seed,
        "guidance": guidance,
    }
    trusted = trust_of(trust, verify_key)
    draw(engines, trusted, request, out, preview=preview, save_mask=save_mask, as_json=as_json)
