"""One run of the bench, from options to files.

<stem>.json, its table <stem>.md, <stem>-pareto.png and <stem>-pictures.png; and <stem>.jsonl with
every single measurement: a killed run leaves it, and the same command goes on from there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend
from fresco_trt.backends.base import unavailable
from fresco_trt.bench import figures
from fresco_trt.bench.instrument import Instrument, LeftOut
from fresco_trt.bench.memory import kind_of, peak_mb
from fresco_trt.bench.model_runner import ModelRunner, Setup
from fresco_trt.bench.options import BACKEND
from fresco_trt.bench.plain import is_judged
from fresco_trt.bench.points import chosen, table_named
from fresco_trt.bench.record import circumstances, store, store_text
from fresco_trt.bench.report import document_of, rows_of
from fresco_trt.bench.results_log import PACKAGE, inputs_digest
from fresco_trt.bench.rounds import TILES, Measured, measure
from fresco_trt.bench.table import bench_table
from fresco_trt.errors import PlanError, WeightsNotFound
from fresco_trt.files.process_folder import process_folder
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.facts import check_calibrated
from fresco_trt.plan.sizes import check_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.options import Options
    from fresco_trt.plan.facts import ModelFacts

RENDERS, QUICK_RENDERS = 1000, 300
"""True pictures that the Frechet distance is taken to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What tells one kind of run from another, beside its options.

    ``name`` is in the document and, but for the command's own "methods", in the files' names.
    ``program`` is the command. ``points`` names the function (facts, size) that lists every point,
    as "module:function": the processes that measure memory look points up there. ``instrument``
    makes of a setup, and of whether the run is quick, what draws and judges. ``table`` writes the
    document as Markdown. A killed run goes on if the code in ``sources`` is the same, and with
    another number of scenes too, where ``scenes_alone`` says that each is drawn by itself.
    """

    name: str = "methods"
    program: str = "fresco-trt bench"
    points: str = "fresco_trt.bench.points:points_of"
    instrument: Callable[[Setup, bool], Instrument] = lambda setup, quick: ModelRunner(setup)
    table: Callable[[dict[str, Any]], str] = bench_table
    sources: tuple[Path, ...] = (PACKAGE,)
    scenes_alone: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a run's files go; ``tiles`` is a folder that exists while it runs."""

    result: Path
    table: Path
    pareto: Path
    pictures: Path
    log: Path
    tiles: Path


METHODS = Study()


def run(options: Options, progress: Progress, study: Study = METHODS) -> dict[str, Any]:
    """Measure, write the files, and return the stored document.

    Raises PlanError leaves for a wrong request, WeightsNotFound, BackendUnavailable,
    OutputNotWritable, and what the engines raise.
    """
    files = files_of(options, study)
    with ExitStack() as scope:
        setup = setup_of(options, scope, progress)
        every = table_named(study.points)(setup.facts, setup.size)
        points = chosen(every, options.methods, options.quick)
        drawing = dict.fromkeys(point.model for point in points)
        check_renderer(setup.facts)
        instrument = study.instrument(setup, options.quick)
        where = circumstances() | {"command": options.line(study.program)}
        folders = [setup.of(model).pipeline for model in drawing]
        measured = measure(
            instrument,
            points,
            scope,
            log=files.log,
            header={
                **where,
                "command": options.line(study.program, scenes=not study.scenes_alone),
                **inputs_digest(*folders, sources=study.sources),
            },
            tiles=files.tiles,
            progress=progress,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        document = where | {"compare": study.name, "backend": setup.backend.name}
        document |= _document(setup, instrument, measured, study.points)
    document["left_out"] += [asdict(each) for each in _draw(document, measured, files)]
    store(document, files.result)
    store_text(f"{study.table(document)}\n", files.table)
    measured.log.complete()
    shutil.rmtree(files.tiles, ignore_errors=True)
    return document


def files_of(options: Options, study: Study = METHODS) -> Files:
    """The files of a run, all called after its model, its study and whether it is quick."""
    parts = [options.model, *([] if study.name == METHODS.name else [study.name])]
    stem = "-".join([*parts, *(["quick"] if options.quick else [])])
    return Files(
        result=options.out / f"{stem}.json",
        table=options.out / f"{stem}.md",
        pareto=options.out / f"{stem}-pareto.png",
        pictures=options.out / f"{stem}-pictures.png",
        log=options.out / f"{stem}.jsonl",
        tiles=options.out / f"{stem}.tiles.partial",
    )


def setup_of(options: Options, scope: ExitStack, progress: Progress) -> Setup:
    """What the options ask to measure, with a folder for engines as long as ``scope`` is open."""
    facts, library = model_facts(options.model), backend(options.backend or BACKEND)
    check_calibrated(facts, "a benchmark")
    size = facts.default_size if options.size is None else parse_size(options.size)
    check_size(facts, size, 1)
    for missing in library.check():
        raise unavailable(library.name, missing)
    return Setup(
        facts=facts,
        size=size,
        pipeline=pipeline_folder(options.weights, facts.name),
        backend=library,
        engines=Path(scope.enter_context(tempfile.TemporaryDirectory(dir=process_folder()))),
        scenes=options.count,
        renders=QUICK_RENDERS if options.quick else RENDERS,
        progress=progress,
    )


def check_renderer(facts: ModelFacts) -> None:
    """Raise PlanError where true pictures of a judged model cannot be drawn."""
    if is_judged(facts.name) and find_spec("resvg_py") is None:
        raise PlanError(
            "a bench of the demo without resvg-py",
            expected="what draws the true pictures that drawings are judged by",
            fix="pip install 'fresco-trt[bench]'",
        )


def pipeline_folder(weights: str | None, model: str) -> Path:
    """The folder that is measured: the one given or the bundled one, never a substitute."""
    given = bundled_folder(model) if weights is None else Path(weights).expanduser()
    folder = whole_folder(given)
    components = family_of(model_facts(model)).components
    names = (*components.names, "transformer")
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise WeightsNotFound(
            f"the pipeline folder {folder} lacks {', '.join(absent)}",
            expected="a whole diffusers pipeline: plain sampling is what all is measured against",
            fix="pass --weights with such a folder",
        )
    components.check(folder, model_facts(model))
    return folder


# --- what was measured ------------------------------------------------------------------------


def _document(
    setup: Setup, instrument: Instrument, measured: Measured, table: str
) -> dict[str, Any]:
    scenes = [measured.log.scenes[case.number] for case in instrument.cases]
    shared = _shared_seconds(scenes, measured.points[0].name) if instrument.timed else {}
    rows = rows_of(
        measured.points,
        [scene["scores"] for scene in scenes],
        instrument.real_features(),
        _peaks(setup, measured, table) if instrument.timed else {},
        model=setup.facts.name,
        timed=instrument.timed,
        shared_seconds=sum(shared.values()),
        simulated=setup.backend.describe().simulated,
    )
    return {
        "model": setup.facts.name,
        "size": list(setup.size),
        "scenes": len(scenes),
        **instrument.facts(),
        **shared,
        **document_of(measured.points, rows, measured.left_out, timed=instrument.timed),
    }


def _shared_seconds(scenes: Sequence[dict[str, Any]], reference: str) -> dict[str, float]:
    """Medians of what every picture takes beside its denoising."""
    return {
        "text_seconds": median(scene["text_seconds"] for scene in scenes),
        "decode_seconds": median(scene["scores"][reference]["decode_seconds"] for scene in scenes),
    }


def _peaks(setup: Setup, measured: Measured, table: str) -> dict[str, float]:
    """Peak memory by point; those that keep the same things in memory share one measurement."""
    kinds = {point.name: kind_of(point, setup.facts, setup.size) for point in measured.points}
    notes = measured.log.notes
    for index, point in enumerate(measured.points):
        key = f"peak_mb: {kinds[point.name]}"
        if key not in notes:
            setup.progress("measuring memory", index / len(measured.points))
            measured.log.add_note(key, peak_mb(setup, point, table))
    return {name: notes[f"peak_mb: {kind}"] for name, kind in kinds.items()}


def _draw(document: dict[str, Any], measured: Measured, files: Files) -> list[LeftOut]:
    """The plot and the contact sheet; what could not be drawn."""
    left_out: list[LeftOut] = []
    try:
        figures.pareto(document, files.pareto)
    except ImportError as error:
        reason = f"{error}: pip install 'fresco-trt[bench]'"
        left_out.append(LeftOut(what=files.pareto.name, reason=reason))
    axis = "flops_ratio" if document["rows"][0]["speedup"] is None else "speedup"
    shown = figures.representatives(document["rows"], axis)
    order = [point.name for point in measured.points]
    scenes = measured.log.scenes
    figures.contact_sheet(
        [figures.label_of(row, axis, document["model"]) for row in shown],
        [order.index(row["point"]) for row in shown],
        [scenes[number]["caption"] for number in sorted(scenes)[:TILES]],
        files.tiles,
        files.pictures,
    )
    return left_out
