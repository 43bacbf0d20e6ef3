"""`fresco-trt inspect`: what a bundle is, without loading an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import Json, VerifyKey

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle


def inspect(
    folder: Annotated[Path, typer.Argument(help="Bundle folder.")],
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle is, without loading an engine."""
    from fresco_trt.bundle import open_bundle
    from fresco_trt.bundle.signature import check_signature, is_signed
    from fresco_trt.pipelines.sizes import check_sizes

    bundle = open_bundle(folder, sizes=check_sizes)
    if verify_key is not None:
        check_signature(bundle, verify_key)
    signed = "valid" if verify_key is not None else "unchecked" if is_signed(bundle) else None
    summary = {
        "folder": str(folder),
        **json.loads(bundle.manifest.to_bytes()),
        "networks": _networks(bundle),
        "attention": _attention(bundle),
        "signature": signed,
        "native_code": _native_code(bundle, signed),
    }
    display.show(summary, as_json, tables.manifest_table)


def _native_code(bundle: Bundle, signed: str | None) -> dict[str, Any] | None:
    """What of the engines is native code, and who vouches for it: None for a bundle without."""
    from fresco_trt.backends import backend, backend_names
    from fresco_trt.bundle.own_builds import is_own

    name = bundle.manifest.backend.name
    unknown = {"": "whatever the unknown backend has"}
    known = backend(name).native_code if name in backend_names() else unknown
    files = {path for engine in bundle.manifest.engines for path in engine.files}
    if not known:
        return None
    by = "build" if is_own(bundle.manifest) else None
    return {
        "kinds": list(known.values()),
        "files": sorted(path for path in files if path.endswith(tuple(known))),
        "trusted_by": "signature" if signed == "valid" else by,
    }


def _networks(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Matrix products by type of each engine whose library counted them."""
    from fresco_trt.backends.tensorrt.backend import PRODUCTS, read_products

    counted = {
        engine.name: bundle.folder / path
        for engine in bundle.manifest.engines
        for path in engine.files
        if path.endswith(PRODUCTS)
    }
    return {name: read_products(path) for name, path in counted.items()}


def _attention(bundle: Bundle) -> dict[str, Any]:
    """Which attention every compiled piece has and what was measured, where a build chose."""
    from fresco_trt.backends.inductor.attention import read_attention
    from fresco_trt.backends.inductor.naming import ATTENTION

    listed = {file.path for file in bundle.manifest.files}
    return read_attention(bundle.folder / ATTENTION) if ATTENTION in listed else {}
