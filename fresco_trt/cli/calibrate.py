"""`fresco-trt calibrate`: which measurement it is, whether it reads the options, what is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from fresco_trt.bench.scenes.pictures import drawn_scenes
from fresco_trt.cli import calibrate_tables as tables
from fresco_trt.cli import display
from fresco_trt.cli.options import Json, Model
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.calibrate.options import DEMO, OUT, READS, SCENES, Measure, Options
from fresco_trt.lower.calibrate.run_amax import run_amax, run_sensitivity
from fresco_trt.lower.calibrate.run_features import (
    run_basis,
    run_cache_schedule,
    run_sea_schedule,
)
from fresco_trt.lower.calibrate.run_spectrum import run_spectrum
from fresco_trt.plan.config import CacheConfig, QuantConfig

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress

    Measurement: TypeAlias = Callable[[Options, Progress], dict[str, Any]]


def calibrate(
    model: Model,
    measure: Annotated[
        str,
        typer.Option(
            help="spectrum (for --preset NAME,delta=), basis (for --cache svd), cache-schedule or "
            "sea-schedule (for --cache NAME,actions=), amax (for --precision int8 or fp8) or "
            "sensitivity (for keep=)."
        ),
    ] = "spectrum",
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Of a spectrum: folder of pictures like those the model draws, none smaller. Of "
            "all else, for a model that edits: folder of sources, prompts in its metadata.jsonl.",
            show_default=f"drawn scenes of {DEMO}, or calibration/<model>-edits",
        ),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="Of a spectrum: scenes to draw.", show_default=str(SCENES))
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Of all but a spectrum: text file, one prompt a line; not for a model that edits.",
            show_default="calibration/<model>-prompts.txt",
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Of a basis: share of energy that is kept.", show_default="0.85"),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Of a cache schedule: what predicts, hicache,max_order=1.", show_default="hicache"
        ),
    ] = None,
    stages: Annotated[
        int | None, typer.Option(help="Stages of the plan that is walked.", show_default="3")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Preset of the plan that is walked.", show_default="balanced"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Of a cache schedule: largest relative error of a velocity. Of a SeaCache one: "
            "the sum of relative changes that a full step follows.",
            show_default="several",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of amax: int8 or fp8; then recipe=, keep='*.ff.net.2+proj_out'.",
            show_default="int8",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Of amax: picture size WxH.", show_default="the model's"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Diffusers pipeline folder.", show_default="bundled")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the result.")] = OUT,
    as_json: Json = False,
) -> None:
    """Measure what plans, caches and precisions need of a model; store it in calibration/."""
    options = Options(
        model=model,
        measure=_measure(measure),
        pictures=pictures,
        scenes=scenes,
        prompts=prompts,
        energy=energy,
        cache=None if cache is None else CacheConfig.parse(cache),
        stages=stages,
        preset=preset,
        tolerance=tolerance,
        precision=None if precision is None else QuantConfig.parse(precision),
        size=size,
        weights=weights,
        out=out,
    )
    check_read(options)
    measured, table = _measurements()[options.measure]
    with display.progress() as report:
        shown = {"file": str(options.path), **measured(options, report)}
    display.show(shown, as_json, table)


def _measure(name: str) -> Measure:
    for known in READS:
        if name == known:
            return known
    raise IncompatibleOptions(
        f"--measure {name}",
        expected=f"one of {', '.join(READS)}",
        fix="leave --measure out for the spectrum",
    )


def _measurements() -> Mapping[Measure, tuple[Measurement, Callable[[Any], None]]]:
    """What is measured, and how the command shows it."""
    return {
        "spectrum": (partial(run_spectrum, scenes=drawn_scenes), tables.spectrum_table),
        "basis": (run_basis, tables.basis_table),
        "cache-schedule": (run_cache_schedule, tables.cache_schedule_table),
        "sea-schedule": (run_sea_schedule, tables.sea_schedule_table),
        "amax": (run_amax, tables.amax_table),
        "sensitivity": (run_sensitivity, tables.sensitivity_table),
    }


def check_read(options: Options) -> None:
    """Raise IncompatibleOptions for an option that this measurement would ignore."""
    every = dict.fromkeys(name for names in READS.values() for name in names)
    unread = [name for name in every if name not in READS[options.measure]]
    given = [f"--{name}" for name in unread if getattr(options, name) is not None]
    if given:
        readers = [each for each, names in READS.items() if given[0].removeprefix("--") in names]
        raise IncompatibleOptions(
            f"{' and '.join(given)} with --measure {options.measure}",
            expected=f"of these only {', '.join(f'--{each}' for each in READS[options.measure])}",
            fix=f"leave {' and '.join(given)} out, or pass --measure {readers[0]}",
        )
