"""`fresco-trt calibrate`: measure what plans and caches need to know of a model, and store it.

Beside the data path, and light to import. The power spectrum of its latents places switches
(:mod:`fresco_trt.lower.spectrum`); its two numbers go from the stored file into the model's facts
by hand, so that no plan depends on a file that may not be there. What caches need of its features
is in :mod:`fresco_trt.calibrate_features`, what quantising needs in
:mod:`fresco_trt.calibrate_ranges`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from errno import EISDIR
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt import __version__, display, display_measured
from fresco_trt import calibrate_options as choices
from fresco_trt.calibrate_options import DEMO, OUT, READS, SCENES, Measure, Options
from fresco_trt.errors import CalibrationError, IncompatibleOptions, PlanError
from fresco_trt.models.weights import bundled_parts
from fresco_trt.options import Json, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from fresco_trt.display import Report
    from fresco_trt.lower.spectrum import Measured
    from fresco_trt.models.flux_parts import FluxEncoder
    from fresco_trt.plan.facts import ModelFacts

    Pixels = npt.NDArray[np.uint8]
    Measurement: TypeAlias = Callable[["Options", Report], dict[str, Any]]

SCHEMA = 1
SEED = 2  # the demo's VAE was trained and normalised on the scenes of 0 and 1

_BATCH_PIXELS = 1 << 19  # encoded at once: 8 pictures of 256x256, one of 1024x1024
_DIGITS = 6  # significant ones that are stored; latents in float32 have no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where pictures come from: ``draw`` yields ``count`` of them, uint8 [H,W,3]."""

    name: str
    count: int
    seed: int | None
    draw: Callable[[], Iterator[Pixels]]


def calibrate(
    model: Model,
    measure: choices.MeasureName = "spectrum",
    pictures: choices.Pictures = None,
    scenes: choices.Scenes = None,
    prompts: choices.Prompts = None,
    energy: choices.Energy = None,
    cache: choices.Predictor = None,
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
    from fresco_trt.calibrate_features import run_basis, run_skips
    from fresco_trt.calibrate_ranges import run_ranges, run_sensitivity

    return {
        "spectrum": (run, display_measured.spectrum_table),
        "basis": (run_basis, display_measured.basis_table),
        "skips": (run_skips, display_measured.skips_table),
        "ranges": (run_ranges, display_measured.ranges_table),
        "sensitivity": (run_sensitivity, display_measured.sensitivity_table),
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


def run(options: Options, progress: Report) -> dict[str, Any]:
    """Measure and store; what was stored.

    Raises UnknownModel, IncompatibleOptions, PlanError, CalibrationError, WeightsNotFound,
    OutputNotWritable and DiskFull; all but the last before anything is measured, unless a picture
    turns out to be broken.
    """
    from fresco_trt.models.flux_parts import find_codec
    from fresco_trt.models.zoo import model_facts

    facts = model_facts(options.model)
    source = _source(options, facts)
    check_writable(options.path)
    folder = find_codec(options.weights, facts.name)

    from fresco_trt.lower.spectrum import measure
    from fresco_trt.models.flux_parts import FluxEncoder

    encoder = FluxEncoder(folder)
    measured = measure(encoder, _batches(source, facts, progress), facts)
    document = _document(facts, encoder, source, measured)
    store(document, options.path)
    return document


# --- pictures ---------------------------------------------------------------------------------


def _source(options: Options, facts: ModelFacts) -> Source:
    if options.pictures is None:
        return _renders(facts, SCENES if options.scenes is None else options.scenes)
    if options.scenes is not None:
        raise IncompatibleOptions(
            f"--scenes {options.scenes} with --pictures {options.pictures}",
            expected="one of the two: every picture of the folder is measured, no scene is drawn",
            fix="leave --scenes out",
        )
    return _folder(options.pictures, facts)


def _renders(facts: ModelFacts, count: int) -> Source:
    if bundled_parts(facts.name).name != DEMO:
        raise CalibrationError(
            f"no pictures for {facts.name}",
            expected=f"a folder of them: only the scenes of {DEMO} can be drawn here",
            fix="pass --pictures with some hundreds of pictures like those that it is to draw",
        )
    if count < 2:
        raise PlanError(
            f"--scenes {count}",
            expected="2 or more: a standard error needs them",
            fix=f"leave --scenes out for {SCENES} of them",
        )
    if find_spec("resvg_py") is None:
        raise CalibrationError(
            f"scenes of {facts.name} without resvg-py",
            expected="what draws their icons, or --pictures with a folder of pictures",
            fix="pip install 'fresco-trt[train]'",
        )

    def draw() -> Iterator[Pixels]:
        from fresco_trt.demo.batches import scene_stream
        from fresco_trt.demo.render import render

        for scene in islice(scene_stream(SEED), count):
            yield render(scene, *facts.default_size)

    return Source(name="drawn scenes of the demo", count=count, seed=SEED, draw=draw)


def _folder(folder: Path, facts: ModelFacts) -> Source:
    from fresco_trt.lower.pictures import find_pictures, read_picture

    files = find_pictures(folder, facts.default_size)

    def draw() -> Iterator[Pixels]:
        return (read_picture(path, facts.default_size) for path in files)

    return Source(name="a given folder", count=len(files), seed=None, draw=draw)


def _batches(source: Source, facts: ModelFacts, progress: Report) -> Iterator[Pixels]:
    """The pictures in batches uint8 [B,H,W,3], telling how many were asked for so far."""
    import numpy as np

    width, height = facts.default_size
    pictures, done = source.draw(), 0
    while batch := list(islice(pictures, max(1, _BATCH_PIXELS // (width * height)))):
        progress("measuring the spectrum", done / source.count)
        yield np.stack(batch)
        done += len(batch)
    progress("measuring the spectrum", 1.0)


# --- result -----------------------------------------------------------------------------------


def _document(
    facts: ModelFacts, encoder: FluxEncoder, source: Source, measured: Measured
) -> dict[str, Any]:
    law = asdict(measured.law)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "model": facts.name,
        "vae": {"sha256": encoder.digest, "scaling": encoder.scaling, "shift": encoder.shift},
        "size": list(facts.default_size),
        "pictures": {
            "source": source.name,
            "count": measured.pictures,
            "sha256": measured.digest,
        },
        "seed": source.seed,
        "mean_square": measured.square,
        "amplitude": law.pop("amplitude"),
        "beta": law.pop("beta"),
        "fit": law,
        "spectrum": [asdict(ring) for ring in measured.rings],
    }
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def check_writable(path: Path) -> None:
    """Before any picture is drawn: a minute of work must not end in "no such folder".

    Creates nothing. Raises OutputNotWritable or DiskFull.
    """
    from fresco_trt.backends.base import writing

    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        parents = (parent for parent in path.absolute().parents if os.path.lexists(parent))
        with TemporaryFile(dir=next(parents)):
            pass


def store(document: dict[str, Any], path: Path) -> None:
    """Write a result as JSON beside its final place, then rename it.

    Raises OutputNotWritable or DiskFull; whatever happens, ``path`` is the old file or the new one.
    """
    from fresco_trt.backends.base import writing

    partial = path.with_name(f".{token_hex(8)}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(document, indent=1, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
