"""`fresco-trt sign`: vouch for a bundle, so that others can load its native code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import Engines, Json


def sign(
    engines: Engines,
    key: Annotated[Path, typer.Option("--key", help="Private ed25519 key, a PEM file.")],
    as_json: Json = False,
) -> None:
    """Sign a bundle's manifest with an ed25519 key, into manifest.sig beside it."""
    from fresco_trt.bundle.signature import sign_bundle
    from fresco_trt.files.canonical_json import SIGNATURE_NAME

    bundle, public = sign_bundle(engines, key)
    summary = {
        "folder": str(engines),
        "signature": str(bundle.folder / SIGNATURE_NAME),
        "manifest": bundle.manifest.digest,
        "public_key": public,
    }
    display.show(summary, as_json, tables.signed_table)
