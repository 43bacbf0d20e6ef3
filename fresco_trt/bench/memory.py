"""Peak memory of a method on its own: a fresh process loads what it needs and draws one picture.

python -m fresco_trt.bench.memory --model flux-tiny --pipeline DIR --engines DIR --point NAME ...

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

from fresco_trt.bench.combinations import combined_points
from fresco_trt.bench.engines import kinds_of
from fresco_trt.bench.methods import CacheDit, FirstBlock
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.points import points_of
from fresco_trt.files.peak_memory import peak_memory
from fresco_trt.models.pretrained import siblings
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.sizes import format_size, parse_size

if TYPE_CHECKING:
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.studio import Setting
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

PATIENCE = 600  # seconds, against a hang; nothing is timed


def kind_of(point: Point, facts: ModelFacts, size: Size) -> str:
    """What a point keeps in memory, in words: its engines, or the cache on diffusers' pipeline.

    A sibling's engines are as large as the model's own on the same grids.
    """
    recipe = point.recipe
    if isinstance(recipe, Preset):
        plan = plan_from_preset(facts, recipe, size=size)
        keys = sorted({kind.key for kind in kinds_of(plan).values()})
        cache = "" if plan.cache is None else f" with {plan.cache.name}"
        quant = "" if point.quant is None else f"{point.quant} "
        return f"{quant}engines of {', '.join(keys)} tokens{cache}"
    if isinstance(recipe, Plain):
        return "diffusers"
    if isinstance(recipe, FirstBlock):
        return "diffusers with first-block"
    if isinstance(recipe, CacheDit):
        return f"diffusers with cache-dit{' and Taylor' if recipe.taylor else ''}"
    return f"diffusers with taylorseer of order {recipe.order}{', lite' if recipe.lite else ''}"


def peak_mb(setting: Setting, point: Point) -> float | None:
    """Peak resident megabytes (10^6 bytes) of a process that draws one picture with ``point``.

    None where that process failed, as for lack of memory, or came to no end, and on a system that
    does not count it.
    """
    width, height = setting.size
    command = [
        *(sys.executable, "-m", "fresco_trt.bench.memory"),
        *("--model", setting.facts.name, "--size", format_size((width, height))),
        *("--pipeline", str(setting.pipeline), "--engines", str(setting.engines)),
        *("--backend", setting.backend.name, "--point", point.name),
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
) -> None:
    """Draw one picture with one point and print this process's peak memory."""
    from fresco_trt.backends import backend as library_of
    from fresco_trt.bench.studio import Setting, Studio

    facts, asked = model_facts(model), parse_size(size)
    studio = Studio(
        Setting(
            facts=facts,
            size=asked,
            pipeline=pipeline,
            backend=library_of(backend),
            engines=engines,
            scenes=1,
        )
    )
    others = [model_facts(name) for name in siblings(model)]
    every = (*points_of(facts, asked), *combined_points(facts, others))
    only = next(each for each in every if each.name == point)
    with ExitStack() as scope:
        methods, skipped = studio.methods([only], scope)
        if skipped:
            raise SystemExit(skipped[0].reason)
        methods[point](studio.encode(studio.warm_up), studio.warm_up.seed)
    peak = peak_memory()
    print(json.dumps({"peak_mb": None if peak is None else round(peak.own / 1e6, 1)}))


if __name__ == "__main__":
    typer.run(main)
