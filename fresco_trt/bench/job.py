"""One run of the bench, from options to files.

<stem>.json, its table <stem>.md, <stem>-pareto.png and <stem>-pictures.png; and <stem>.jsonl with
every single measurement: a killed run leaves it, and the same command goes on from there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend
from fresco_trt.backends.base import unavailable
from fresco_trt.bench import figures
from fresco_trt.bench.combinations import combined_points
from fresco_trt.bench.instrument import Skipped
from fresco_trt.bench.journal import inputs_digest
from fresco_trt.bench.memory import kind_of, peak_mb
from fresco_trt.bench.oracle_studio import OracleStudio
from fresco_trt.bench.plain import MODEL, is_judged
from fresco_trt.bench.points import chosen, points_of
from fresco_trt.bench.record import circumstances, store, store_text
from fresco_trt.bench.report import document_of, rows_of
from fresco_trt.bench.rounds import TILES, Measured, measure
from fresco_trt.bench.studio import Setting, Studio
from fresco_trt.bench.table import tables
from fresco_trt.errors import IncompatibleOptions, PlanError, WeightsNotFound
from fresco_trt.models.flux.components import COMPONENTS
from fresco_trt.models.pretrained import siblings, whole_folder
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import BUNDLED
from fresco_trt.plan.sizes import check_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.command import Options
    from fresco_trt.bench.instrument import Instrument
    from fresco_trt.bench.methods import Point

RENDERS, QUICK_RENDERS = 1000, 300
"""True pictures that the Frechet distance is taken to."""

MEMBERS, QUICK_MEMBERS = 256, 64
"""Scenes of a caption that the oracle knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a run's files go; ``tiles`` is a folder that exists while it runs."""

    result: Path
    table: Path
    pareto: Path
    pictures: Path
    journal: Path
    tiles: Path


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure, write the files, and return the stored document.

    Raises PlanError leaves for a wrong request, WeightsNotFound, BackendUnavailable,
    OutputNotWritable, and what the engines raise.
    """
    files = _files(options)
    with ExitStack() as scope:
        setting = _setting(options, scope, progress)
        points = chosen(_points(options, setting), options.methods, options.quick)
        drawing = dict.fromkeys(point.model for point in points)
        instrument = _instrument(options, setting)
        where = circumstances() | {"command": options.command}
        measured = measure(
            instrument,
            points,
            scope,
            journal=files.journal,
            header={
                **where,
                "command": options.request,
                **inputs_digest(*(setting.of(model).pipeline for model in drawing)),
            },
            tiles=files.tiles,
            progress=progress,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        document = where | _document(options, setting, instrument, measured)
    document["skipped"] += [asdict(each) for each in _draw(document, measured, files)]
    store(document, files.result)
    store_text(f"{tables(document)}\n", files.table)
    measured.journal.complete()
    shutil.rmtree(files.tiles, ignore_errors=True)
    return document


def _points(options: Options, setting: Setting) -> tuple[Point, ...]:
    if options.compare == "combinations":
        # Siblings are distilled from the packaged weights, not from those of some path.
        names = siblings(setting.facts.name) if options.weights is None else ()
        return combined_points(setting.facts, [model_facts(name) for name in names])
    return points_of(setting.facts, setting.size)


def _files(options: Options) -> Files:
    out, stem = options.out, options.stem
    return Files(
        result=out / f"{stem}.json",
        table=out / f"{stem}.md",
        pareto=out / f"{stem}-pareto.png",
        pictures=out / f"{stem}-pictures.png",
        journal=out / f"{stem}.jsonl",
        tiles=out / f"{stem}.tiles.partial",
    )


def _setting(options: Options, scope: ExitStack, progress: Progress) -> Setting:
    facts, library = model_facts(options.model), backend(options.backend)
    size = facts.default_size if options.size is None else parse_size(options.size)
    check_size(facts, size, 1)
    for missing in library.check():
        raise unavailable(library.name, missing)
    return Setting(
        facts=facts,
        size=size,
        pipeline=_pipeline(options.weights, facts.name),
        backend=library,
        engines=Path(scope.enter_context(tempfile.TemporaryDirectory(prefix="fresco-trt-bench-"))),
        scenes=options.scenes,
        renders=QUICK_RENDERS if options.quick else RENDERS,
        progress=progress,
    )


def _pipeline(weights: str | None, model: str) -> Path:
    """The folder that is measured: the one given or the bundled one, never a substitute."""
    given = BUNDLED / model if weights is None else Path(weights).expanduser()
    folder = whole_folder(given)
    absent = [part for part in (*COMPONENTS, "transformer") if not (folder / part).exists()]
    if absent:
        raise WeightsNotFound(
            f"the pipeline folder {folder} lacks {', '.join(absent)}",
            expected="a whole diffusers pipeline: plain sampling is what all is measured against",
            fix="pass --weights with such a folder",
        )
    return folder


def _instrument(options: Options, setting: Setting) -> Instrument:
    if is_judged(setting.facts.name) and find_spec("resvg_py") is None:
        raise PlanError(
            "a bench of the demo without resvg-py",
            expected="what draws the true pictures that drawings are judged by",
            fix="pip install 'fresco-trt[bench]'",
        )
    if options.instrument == "model":
        return Studio(setting)
    if setting.facts.name != MODEL:
        raise IncompatibleOptions(
            f"--instrument oracle for {setting.facts.name}",
            expected=f"the model {MODEL}: the oracle is made of the demo's renders and codec",
            fix=f"pass --model {MODEL}, or leave --instrument out",
        )
    return OracleStudio(setting, QUICK_MEMBERS if options.quick else MEMBERS)


# --- what was measured ------------------------------------------------------------------------


def _document(
    options: Options, setting: Setting, instrument: Instrument, measured: Measured
) -> dict[str, Any]:
    scenes = [measured.journal.scenes[case.number] for case in instrument.cases]
    shared = _shared_seconds(scenes, measured.points[0].name) if instrument.timed else {}
    rows = rows_of(
        measured.points,
        [scene["marks"] for scene in scenes],
        instrument.real_features(),
        _peaks(setting, measured) if instrument.timed else {},
        model=setting.facts.name,
        timed=instrument.timed,
        shared_seconds=sum(shared.values()),
        simulated=setting.backend.describe().simulated,
    )
    return {
        "instrument": options.instrument,
        "compare": options.compare,
        "model": options.model,
        "size": list(setting.size),
        "scenes": len(scenes),
        "backend": options.backend,
        **instrument.facts(),
        **shared,
        **document_of(measured.points, rows, measured.skipped, timed=instrument.timed),
    }


def _shared_seconds(scenes: Sequence[dict[str, Any]], reference: str) -> dict[str, float]:
    """Medians of what every picture takes beside its denoising."""
    return {
        "text_seconds": median(scene["text_seconds"] for scene in scenes),
        "decode_seconds": median(scene["marks"][reference]["decode_seconds"] for scene in scenes),
    }


def _peaks(setting: Setting, measured: Measured) -> dict[str, float]:
    """Peak memory by point; those that keep the same things in memory share one measurement."""
    kinds = {point.name: kind_of(point, setting.facts, setting.size) for point in measured.points}
    notes = measured.journal.notes
    for index, point in enumerate(measured.points):
        key = f"peak_mb: {kinds[point.name]}"
        if key not in notes:
            setting.progress("measuring memory", index / len(measured.points))
            measured.journal.add_note(key, peak_mb(setting, point))
    return {name: notes[f"peak_mb: {kind}"] for name, kind in kinds.items()}


def _draw(document: dict[str, Any], measured: Measured, files: Files) -> list[Skipped]:
    """The plot and the contact sheet; what could not be drawn."""
    skipped: list[Skipped] = []
    try:
        figures.pareto(document, files.pareto)
    except ImportError as error:
        reason = f"{error}: pip install 'fresco-trt[bench]'"
        skipped.append(Skipped(what=files.pareto.name, reason=reason))
    axis = "speedup" if document["instrument"] == "model" else "flops_ratio"
    shown = figures.representatives(document["rows"], axis)
    order = [point.name for point in measured.points]
    scenes = measured.journal.scenes
    figures.contact_sheet(
        [figures.label_of(row, axis, document["model"]) for row in shown],
        [order.index(row["point"]) for row in shown],
        [scenes[number]["caption"] for number in sorted(scenes)[:TILES]],
        files.tiles,
        files.pictures,
    )
    return skipped
