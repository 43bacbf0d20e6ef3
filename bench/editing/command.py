"""The command: from arguments to the stored document, its plot and its sheet of pictures."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.plots import beside
from bench.study import SOURCES
from bench.turns import check_reference, opened_log
from fresco_trt.backends import backend as backend_named
from fresco_trt.bench.job import pipeline_folder
from fresco_trt.bench.record import circumstances, store
from fresco_trt.bench.results_log import inputs_digest
from fresco_trt.cli import display
from fresco_trt.errors import FrescoError, IncompatibleOptions
from fresco_trt.files.process_folder import process_folder
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.plan.sizes import check_size, parse_size

if TYPE_CHECKING:
    from bench.editing.engines import Draw, Engines
    from bench.editing.points import EditPoint
    from fresco_trt.bench.scenes.edits import Edit
    from fresco_trt.bench.scenes.judge import Judge

MODEL, OUT = "flux-tiny-kontext", Path("bench/results/editing.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured: ``scenes`` edits of a ``seed``, by points whose names have one of ``only``,
    and by the plain edit; on the engines of one ``backend``, so that seconds compare methods. What
    these draw is drawn once more for each recipe of ``quant``, on engines quantised by it.
    """

    model: str = MODEL
    scenes: int = 100
    seed: int = 0
    out: Path = OUT
    weights: str | None = None
    size: str | None = None
    backend: str = "eager"
    only: tuple[str, ...] = ()
    quant: tuple[str, ...] = ()


def run(options: Options) -> dict[str, Any]:
    """Measure, write the files, and return the stored document.

    Raises IncompatibleOptions for a model that does not edit, a recipe that is none or that the
    backend has no engines for, and an unfinished run of another request; PlanError,
    WeightsNotFound, BackendUnavailable, OutputNotWritable.
    """
    import torch

    from bench.editing import figures
    from bench.editing.report import comparison
    from bench.editing.rounds import measure, warmed_up
    from bench.editing.rows import rows_of
    from fresco_trt.bench.scenes.edit_judge import judged_edits
    from fresco_trt.bench.scenes.judge import load_judge

    figures.check_plots()
    engines, points = _engines(options)
    edits, judge = judged_edits(options.scenes, options.seed), load_judge()
    request = {"model": options.model, "size": list(engines.size[:2]), "scenes": options.scenes}
    request |= {"seed": options.seed, "backend": options.backend}
    where = circumstances() | request | {"threads": torch.get_num_threads()}
    header = {**where, "points": [point.name for point in points]}
    log = opened_log(options.out, header | inputs_digest(engines.folder, sources=SOURCES))
    with ExitStack() as scope:
        built = Path(scope.enter_context(tempfile.TemporaryDirectory(dir=process_folder())))
        draws, left_out = warmed_up(_draws(engines, points, built, scope), engines.prepared)
        check_reference(points[0].name, left_out)
        usable = [point for point in points if point.name in draws]
        scores = measure(edits, draws, engines.prepared, judge, log)
        rows = rows_of(usable, edits, scores)
        document = where | {
            "bounds": _bounds(engines, edits, judge),
            "rows": rows,
            "comparison": comparison(rows),
            "left_out": [asdict(each) for each in left_out],
        }
        store(document, options.out)
        figures.pareto(document, beside(options.out, "pareto.png"))
        sheet = beside(options.out, "pictures.jpg")
        figures.contact_sheet(engines, draws, rows, edits, sheet)
    log.complete()
    return document


def _engines(options: Options) -> tuple[Engines, list[EditPoint]]:
    """The engines to be, and the points that are measured on them, the plain edit first."""
    from bench.editing.engines import Engines
    from bench.editing.peers import check_backend
    from bench.editing.points import points_of, quantised

    facts, library = model_facts(options.model), backend_named(options.backend)
    if not facts.references:
        raise IncompatibleOptions(
            f"--model {facts.name}",
            expected="a model that edits",
            fix=f"pass one, such as {MODEL}",
        )
    size = facts.default_size if options.size is None else parse_size(options.size)
    check_size(facts, size, 1)
    plain, *others = points_of(facts)
    chosen = [
        point
        for point in others
        if not options.only or any(part in point.name for part in options.only)
    ]
    folder = pipeline_folder(options.weights, facts.name)
    points = [plain, *chosen]
    check_backend(options.backend, points)
    precisions = library.describe().precisions
    known = [name for name, recipe in RECIPES.items() if recipe.precision in precisions]
    for name in options.quant:
        if name not in known:
            raise IncompatibleOptions(
                f"--quant {name} with the backend {options.backend}",
                expected=f"one of {', '.join(known)}" if known else "nothing quantised with it",
                fix="pass one of these" if known else "leave it out, or pass --backend onnxruntime",
            )
    points += quantised(points, options.quant)
    return Engines(facts, folder, library, size, points), points


def _draws(
    engines: Engines, points: list[EditPoint], built: Path, scope: ExitStack
) -> dict[str, Draw]:
    """What draws, by the point's name, in the order of the points."""
    from bench.editing.peers import peer_draws

    with display.progress() as report:
        found = engines.draws(built, scope, report) | peer_draws(engines, points)
    return {point.name: found[point.name] for point in points}


def _bounds(engines: Engines, edits: list[Edit], judge: Judge) -> list[dict[str, Any]]:
    """The worst and the best that edits may be: nothing done, and all of it."""
    from bench.editing.rows import quality_of
    from fresco_trt.bench.scenes.edit_judge import edit_verdicts
    from fresco_trt.bench.scenes.pictures import pixels_of, scaled

    found = []
    for name in ("unedited", "true targets through the codec"):
        scores = []
        for edit in edits:
            pixels = pixels_of([edit.source], *engines.size[:2])
            if name != "unedited":
                pixels = engines.coded(edit)[None]
            (verdict,) = edit_verdicts(judge, scaled(pixels), [edit])
            scores.append({"made": verdict.made, "outside": verdict.outside})
        found.append({"name": name, **quality_of([edit.kind for edit in edits], scores)})
    return found


def main(
    model: Annotated[str, typer.Option(help="A model that edits.")] = MODEL,
    scenes: Annotated[int, typer.Option(min=1, help="Edits that every point makes.")] = 100,
    seed: Annotated[int, typer.Option(help="Which edits: those of 0 are stored.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON; pictures lie beside it.")] = OUT,
    weights: Annotated[
        str | None,
        typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WxH.", show_default="the model's")] = None,
    backend: Annotated[str, typer.Option(help="Engine library.")] = "eager",
    only: Annotated[
        list[str] | None, typer.Option(help="Only points whose names have this; repeatable.")
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option(help="What engines draw, also quantised by this recipe; repeatable."),
    ] = None,
) -> None:
    """Measure every way to edit, and store and show what came of it."""
    from bench.editing.tables import editing_table, summary

    options = Options(
        model=model,
        scenes=scenes,
        seed=seed,
        out=out,
        weights=weights,
        size=size,
        backend=backend,
        only=tuple(only or ()),
        quant=tuple(quant or ()),
    )
    try:
        document = run(options)
    except FrescoError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    print(editing_table(document), summary(document), sep="\n\n")
    print(f"stored {out}")
