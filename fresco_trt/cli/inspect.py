"""`fresco-trt inspect`: what a bundle is, without loading an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import Json

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle


def inspect(
    folder: Annotated[Path, typer.Argument(help="Bundle folder.")], as_json: Json = False
) -> None:
    """Show what a bundle is, without loading an engine."""
    from fresco_trt.bundle import open_bundle

    bundle = open_bundle(folder)
    summary = {
        "folder": str(folder),
        **json.loads(bundle.manifest.to_bytes()),
        "networks": _networks(bundle),
        "attention": _attention(bundle),
    }
    display.show(summary, as_json, tables.manifest_table)


def _networks(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Matrix products by type of each engine whose library counted them."""
    from fresco_trt.backends.tensorrt.backend import PRODUCTS

    counted = {
        engine.name: bundle.folder / path
        for engine in bundle.manifest.engines
        for path in engine.files
        if path.endswith(PRODUCTS)
    }
    return {name: json.loads(path.read_bytes()) for name, path in counted.items()}


def _attention(bundle: Bundle) -> dict[str, Any]:
    """Which attention every compiled piece has and what was measured, where a build chose."""
    from fresco_trt.backends.inductor.naming import ATTENTION

    listed = {file.path for file in bundle.manifest.files}
    found: dict[str, Any] = {}
    if ATTENTION in listed:
        found = json.loads((bundle.folder / ATTENTION).read_bytes())
    return found
