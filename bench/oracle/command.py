"""What `python -m bench.oracle` can be asked for, and the points that it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bench.ablations import ablated_points
from bench.oracle.runner import OracleRunner
from bench.study import SOURCES, Model, Out, Quick, Scenes, Size, run_study
from bench.tables import methods_table
from fresco_trt.bench.job import Study
from fresco_trt.bench.options import OUT, Options
from fresco_trt.bench.plain import MODEL
from fresco_trt.bench.points import points_of
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.model_runner import Setup
    from fresco_trt.plan import sizes
    from fresco_trt.plan.facts import ModelFacts

MEMBERS, QUICK_MEMBERS = 256, 64
"""Scenes of a caption that the oracle knows."""


def every_point(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """All that the command compares, and the ablations."""
    return (*points_of(facts, size), *ablated_points(facts))


def _instrument(setup: Setup, quick: bool) -> OracleRunner:
    if setup.facts.name != MODEL:
        raise IncompatibleOptions(
            f"--model {setup.facts.name}",
            expected=f"{MODEL}: the oracle is made of the demo's renders and codec",
            fix="leave --model out",
        )
    return OracleRunner(setup, QUICK_MEMBERS if quick else MEMBERS)


STUDY = Study(
    name="oracle",
    program="python -m bench.oracle",
    points="bench.oracle.command:every_point",
    instrument=_instrument,
    table=methods_table,
    sources=SOURCES,
    scenes_alone=False,  # the captions depend on how many scenes there are
)


def main(
    model: Model = MODEL,
    out: Out = OUT,
    scenes: Scenes = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, with commas between; plain always is.")
    ] = None,
    quick: Quick = False,
    size: Size = None,
) -> None:
    """Draw every plan with the exact flow of the demo's scenes; quality over FLOPs."""
    names = None if methods is None else tuple(name.strip() for name in methods.split(","))
    run_study(
        STUDY,
        Options(
            model=model,
            out=out,
            scenes=scenes,
            methods=names,
            quick=quick,
            size=size,
        ),
    )
