"""The command: from arguments to the stored document, its plot and its sheet of strips."""

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
from fresco_trt.plan.sizes import check_size, frames_of, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.video.engines import Engines
    from bench.video.points import ClipPoint
    from fresco_trt.bench.instrument import Draw
    from fresco_trt.bench.scenes.clips import Clip
    from fresco_trt.bench.scenes.judge import Judge

MODEL, OUT = "hunyuan-tiny", Path("bench/results/video.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured: ``clips`` of a ``seed``, by points whose names have one of ``only``, and by
    the plain sampler; on the engines of one ``backend``, so that seconds compare methods.
    """

    model: str = MODEL
    clips: int = 100
    seed: int = 0
    out: Path = OUT
    weights: str | None = None
    size: str | None = None
    backend: str = "eager"
    only: tuple[str, ...] = ()


def run(options: Options) -> dict[str, Any]:
    """Measure, write the files, and return the stored document.

    Raises IncompatibleOptions for a model or a size that is not of square clips, peers beside
    engines of another library, and an unfinished run of another request; PlanError,
    WeightsNotFound, BackendUnavailable, OutputNotWritable.
    """
    import torch

    from bench.video import figures
    from bench.video.report import comparison
    from bench.video.rounds import measure, warmed_up
    from bench.video.rows import rows_of
    from fresco_trt.bench.scenes.clip_judge import judged_clips
    from fresco_trt.bench.scenes.judge import load_judge

    figures.check_plots()
    engines, points = _engines(options)
    clips, judge = judged_clips(options.clips, options.seed), load_judge()
    request = {"model": options.model, "size": list(engines.size), "clips": options.clips}
    request |= {"seed": options.seed, "backend": options.backend}
    where = circumstances() | request | {"threads": torch.get_num_threads()}
    header = {**where, "points": [point.name for point in points]}
    log = opened_log(options.out, header | inputs_digest(engines.folder, sources=SOURCES))
    with ExitStack() as scope:
        built = Path(scope.enter_context(tempfile.TemporaryDirectory(dir=process_folder())))
        draws, left_out = warmed_up(_draws(engines, points, built, scope), engines)
        check_reference(points[0].name, left_out)
        usable = [point for point in points if point.name in draws]
        scores = measure(clips, draws, engines, judge, log, points[0].name)
        document = where | {
            "bounds": _bounds(engines, clips, judge),
            **comparison(rows_of(usable, scores)),
            "left_out": [asdict(each) for each in left_out],
        }
        store(document, options.out)
        figures.pareto(document, beside(options.out, "pareto.png"))
        sheet = beside(options.out, "strips.jpg")
        figures.strip_sheet(engines, draws, document["rows"], clips, sheet)
    log.complete()
    return document


def _engines(options: Options) -> tuple[Engines, list[ClipPoint]]:
    """The engines to be, and the points that are measured on them, the plain sampler first."""
    from bench.video.engines import Engines
    from bench.video.peers import check_backend
    from bench.video.points import points_of

    facts, library = model_facts(options.model), backend_named(options.backend)
    if facts.max_frames == 1:
        raise IncompatibleOptions(
            f"--model {facts.name}",
            expected="a model that draws clips",
            fix=f"pass one, such as {MODEL}",
        )
    size = facts.default_size if options.size is None else parse_size(options.size)
    check_size(facts, size, 1)
    if size[0] != size[1] or frames_of(size) < 3:
        raise IncompatibleOptions(
            f"--size {'x'.join(map(str, size))}",
            expected="square clips of 5 frames or more: the true ones have no other sides, and "
            "flicker takes three frames",
            fix="pass one like 128x128x13",
        )
    plain, *others = points_of(facts)
    chosen = [
        point
        for point in others
        if not options.only or any(part in point.name for part in options.only)
    ]
    points = [plain, *chosen]
    check_backend(options.backend, points)
    folder = pipeline_folder(options.weights, facts.name)
    return Engines(facts, folder, library, size, points), points


def _draws(
    engines: Engines, points: Sequence[ClipPoint], built: Path, scope: ExitStack
) -> dict[str, Draw]:
    """What draws, by the point's name, in the order of the points."""
    from bench.video.peers import peer_draws

    with display.progress() as report:
        found = engines.draws(built, scope, report) | peer_draws(engines, points)
    return {point.name: found[point.name] for point in points}


def _bounds(engines: Engines, clips: Sequence[Clip], judge: Judge) -> list[dict[str, Any]]:
    """The best that clips may be: the true ones through the codec, beside the true ones."""
    from bench.video.rounds import judged
    from bench.video.rows import quality_of

    name = "true clips through the codec, beside the true ones"
    scores = [
        judged(judge, clip, {name: engines.coded(clip)}, engines.true_frames(clip))[name]
        for clip in clips
    ]
    return [{"name": name, **quality_of(scores)}]


def main(
    model: Annotated[str, typer.Option(help="A model that draws clips.")] = MODEL,
    clips: Annotated[int, typer.Option(min=1, help="Clips that every point draws.")] = 100,
    seed: Annotated[int, typer.Option(help="Which clips: those of 0 are stored.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON; pictures lie beside it.")] = OUT,
    weights: Annotated[
        str | None,
        typer.Option(help="Whole diffusers pipeline folder.", show_default="the bundled one"),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WxHxF.", show_default="the model's")] = None,
    backend: Annotated[str, typer.Option(help="Engine library.")] = "eager",
    only: Annotated[
        list[str] | None, typer.Option(help="Only points whose names have this; repeatable.")
    ] = None,
) -> None:
    """Measure every way to draw clips, and store and show what came of it."""
    from bench.tables import video_tables

    options = Options(
        model=model,
        clips=clips,
        seed=seed,
        out=out,
        weights=weights,
        size=size,
        backend=backend,
        only=tuple(only or ()),
    )
    try:
        document = run(options)
    except FrescoError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    print(*video_tables(document), sep="\n\n")
    print(f"stored {out}")
