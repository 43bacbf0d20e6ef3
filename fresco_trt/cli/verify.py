"""`fresco-trt verify`: engines against the eager reference, stage by stage, then end to end."""

from __future__ import annotations

from typing import Annotated

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import Engines, Json, Seed, Trusted, VerifyKey, Weights


def verify(
    engines: Engines,
    weights: Weights = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed error of an output, relative to its largest value.",
            show_default="0.001 for fp32",
        ),
    ] = None,
    seed: Seed = 0,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Compare every engine with the eager reference, stage by stage, then end to end."""
    from fresco_trt.verify import verify_bundle

    with display.progress() as report:
        found = verify_bundle(
            engines,
            weights=weights,
            tolerance=tolerance,
            seed=seed,
            progress=report,
            trust_native_code=trust,
            verify_key=verify_key,
        )
    display.show(found.to_json(), as_json, tables.verify_table)
    found.require()
