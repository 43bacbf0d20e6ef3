"""Peak memory of a method on its own: a fresh process loads what it needs and draws one picture.

python -m fresco_trt.bench.memory --model flux-tiny --point NAME --table MODULE:FUNCTION ...

Within the bench's process every method's memory is on top of all the others'. Points that load the
same things share one measurement, see :func:`kind_of`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fresco_trt.bench.engines import kinds_of
from fresco_trt.bench.methods import CacheDit, FirstBlock
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.points import table_named
from fresco_trt.files.peak_memory import peak_memory
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.sizes import format_size, parse_size

if TYPE_CHECKING:
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.model_runner import Setup
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

PATIENCE = 600  # seconds, against a hang; nothing is timed


def kind_of(point: Point, facts: ModelFacts, size: Size) -> str:
    """What a point keeps in memory, in words: its engines, or the cache on diffusers' pipeline.

    A sibling's engines are as large as the model's own on the same grids.
    """
    settings = point.settings
    if isinstance(settings, Preset):
        plan = plan_from_preset(facts, settings, size=size)
        keys = sorted({kind.key for kind in kinds_of(plan).values()})
        cache = "" if plan.cache is None else f" with {plan.cache.name}"
        quant = "" if point.quant is None else f"{point.quant} "
        return f"{quant}engines of {', '.join(keys)} tokens{cache}"
    if isinstance(settings, Plain):
        return "diffusers"
    if isinstance(settings, FirstBlock):
        return "diffusers with first-block"
    if isinstance(settings, CacheDit):
        return f"diffusers with cache-dit{' and Taylor' if settings.taylor else ''}"
    return f"diffusers with taylorseer of order {settings.order}{', lite' if settings.lite else ''}"


def peak_mb(setup: Setup, point: Point, table: str) -> float | None:
    """Peak resident megabytes (10^6 bytes) of a process that draws one picture with ``point``.

    It looks the point up in ``table``, see :func:`~fresco_trt.bench.points.table_named`.
    None where that process failed, as for lack of memory, or came to no end, and on a system that
    does not count it.
    """
    width, height = setup.size[:2]
    command = [
        *(sys.executable, "-m", "fresco_trt.bench.memory"),
        *("--model", setup.facts.name, "--size", format_size((width, height))),
        *("--pipeline", str(setup.pipeline), "--engines", str(setup.engines)),
        *("--backend", setup.backend.name, "--point", point.name, "--table", table),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    except subprocess.SubprocessError:
        return None
    found: float | None = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
    return found


def main(
    model: Annotated[str, typer.Option()],
    size: Annotated[str, typer.Option()],
    pipeline: Annotated[Path, typer.Option()],
    engines: Annotated[Path, typer.Option()],
    backend: Annotated[str, typer.Option()],
    point: Annotated[str, typer.Option()],
    table: Annotated[str, typer.Option()],
) -> None:
    """Draw one picture with one point and print this process's peak memory."""
    from fresco_trt.backends import backend as library_of
    from fresco_trt.bench.model_runner import ModelRunner, Setup

    facts, asked = model_facts(model), parse_size(size)
    runner = ModelRunner(
        Setup(
            facts=facts,
            size=asked,
            pipeline=pipeline,
            backend=library_of(backend),
            engines=engines,
            scenes=1,
        )
    )
    only = next(each for each in table_named(table)(facts, asked) if each.name == point)
    with ExitStack() as scope:
        methods, left_out = runner.methods([only], scope)
        if left_out:
            raise SystemExit(left_out[0].reason)
        methods[point](runner.encode(runner.warm_up), runner.warm_up.seed)
    peak = peak_memory()
    print(json.dumps({"peak_mb": None if peak is None else round(peak.own / 1e6, 1)}))


if __name__ == "__main__":
    typer.run(main)
