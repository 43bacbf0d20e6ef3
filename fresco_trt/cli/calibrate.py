"""The command: which measurement it is, whether that reads the options, and what is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt.bench.scenes.pictures import drawn_scenes
from fresco_trt.cli import calibrate_tables as tables
from fresco_trt.cli import display
from fresco_trt.cli.options import Json, Model
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.calibrate import options as choices
from fresco_trt.lower.calibrate.options import OUT, READS, Measure, Options
from fresco_trt.lower.calibrate.run_amax import run_amax, run_sensitivity
from fresco_trt.lower.calibrate.run_features import run_basis, run_cache_schedule
from fresco_trt.lower.calibrate.run_spectrum import run_spectrum

if TYPE_CHECKING:
    from fresco_trt.cli.display import Report

    Measurement: TypeAlias = Callable[[Options, Report], dict[str, Any]]


def calibrate(
    model: Model,
    measure: choices.MeasureName = "spectrum",
    pictures: choices.Pictures = None,
    scenes: choices.Scenes = None,
    prompts: choices.Prompts = None,
    energy: choices.Energy = None,
    cache: choices.Predictor = None,
    order: choices.Order = None,
    stages: choices.PlanStages = None,
    preset: choices.PlanPreset = None,
    tolerance: choices.Tolerance = None,
    precision: choices.Precision = None,
    recipe: choices.RecipeName = None,
    keep: choices.Keep = None,
    size: choices.Size = None,
    weights: choices.Weights = None,
    out: choices.Out = OUT,
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
        cache=cache,
        order=order,
        stages=stages,
        preset=preset,
        tolerance=tolerance,
        precision=precision,
        recipe=recipe,
        keep=tuple(keep) if keep else None,
        size=size,
        weights=weights,
        out=out,
    )
    check_read(options)
    measured, table = _measurements()[options.measure]
    with display.progress() as report:
        shown = {"file": str(options.path), **measured(options, report)}
    if as_json:
        sys.stdout.write(json.dumps(shown, indent=1, allow_nan=False) + "\n")
    else:
        table(shown)


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
