"""The power spectrum of a model's latents, which places the switches of spectral schedules.

Beside the data path, and light to import. Measured by :mod:`fresco_trt.lower.calibrate.spectrum`
on drawn scenes or given pictures; its two numbers go from the stored file into the model's facts by
hand, so that no plan depends on a file that may not be there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt import __version__
from fresco_trt.errors import CalibrationError, IncompatibleOptions, PlanError
from fresco_trt.files.atomic_file import check_writable, store_json
from fresco_trt.lower.calibrate.options import DEMO, SCENES
from fresco_trt.models.weights import bundled_components
from fresco_trt.plan.facts import check_calibrated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from fresco_trt.backends.base import Progress
    from fresco_trt.lower.calibrate.options import Options
    from fresco_trt.lower.calibrate.spectrum import Measured
    from fresco_trt.models.family import Encoder
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

    Pixels = npt.NDArray[np.uint8]
    Scenes: TypeAlias = Callable[[int, int, Size], Iterator[Pixels]]
    """(count, seed, size) to pictures uint8 [H,W,3] of the demo's scenes, one at a time."""

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


def run_spectrum(options: Options, progress: Progress, scenes: Scenes) -> dict[str, Any]:
    """Measure and store; what was stored. ``scenes`` draws the demo's.

    Raises UnknownModel, IncompatibleOptions, PlanError, CalibrationError, WeightsNotFound,
    OutputNotWritable and DiskFull; all but the last before anything is measured, unless a picture
    turns out to be broken.
    """
    from fresco_trt.models.registry import family_of, model_facts

    facts = model_facts(options.model)
    check_calibrated(facts, "a calibration")
    source = _source(options, facts, scenes)
    check_writable(options.path)
    components = family_of(facts).components
    folder = components.find_vae(options.weights, facts.name)

    from fresco_trt.lower.calibrate.spectrum import measure

    encoder = components.encoder(folder)
    measured = measure(encoder, _batches(source, facts, progress), facts)
    document = _document(facts, encoder, source, measured)
    store_json(document, options.path)
    return document


# --- pictures ---------------------------------------------------------------------------------


def _source(options: Options, facts: ModelFacts, scenes: Scenes) -> Source:
    if options.pictures is None:
        return _renders(facts, SCENES if options.scenes is None else options.scenes, scenes)
    if options.scenes is not None:
        raise IncompatibleOptions(
            f"--scenes {options.scenes} with --pictures {options.pictures}",
            expected="one of the two: every picture of the folder is measured, no scene is drawn",
            fix="leave --scenes out",
        )
    return _folder(options.pictures, facts)


def _renders(facts: ModelFacts, count: int, scenes: Scenes) -> Source:
    if bundled_components(facts.name).name != DEMO:
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
            fix="pip install 'fresco-trt[bench]'",
        )

    return Source(
        name="drawn scenes of the demo",
        count=count,
        seed=SEED,
        draw=lambda: scenes(count, SEED, facts.default_size),
    )


def _folder(folder: Path, facts: ModelFacts) -> Source:
    from fresco_trt.lower.calibrate.pictures import find_pictures, read_picture

    files = find_pictures(folder, facts.default_size)

    def draw() -> Iterator[Pixels]:
        return (read_picture(path, facts.default_size) for path in files)

    return Source(name="a given folder", count=len(files), seed=None, draw=draw)


def _batches(source: Source, facts: ModelFacts, progress: Progress) -> Iterator[Pixels]:
    """The pictures in batches uint8 [B,H,W,3], telling how many were asked for so far."""
    import numpy as np

    width, height = facts.default_size[:2]
    pictures, done = source.draw(), 0
    while batch := list(islice(pictures, max(1, _BATCH_PIXELS // (width * height)))):
        progress("measuring the spectrum", done / source.count)
        yield np.stack(batch)
        done += len(batch)
    progress("measuring the spectrum", 1.0)


# --- result -----------------------------------------------------------------------------------


def _document(
    facts: ModelFacts, encoder: Encoder, source: Source, measured: Measured
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
