"""The measurement: every scene drawn by every method in turn, and kept as soon as it is judged.

Methods take turns within a scene, so a speed-up compares neighbours in time; who begins moves on
from scene to scene, so that no method always follows the same one. One scene warms up, apart.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import Progress
from fresco_trt.bench.instrument import LeftOut, said
from fresco_trt.bench.results_log import ResultsLog
from fresco_trt.errors import EngineFailed
from fresco_trt.files.atomic_file import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.bench.instrument import Case, Draw, Drawn, Instrument, Pixels
    from fresco_trt.bench.methods import Point

TILES, TILE = 8, 128
"""Scenes whose pictures are kept for the contact sheet, and the side they are kept at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The points that were measured, every scene's scores by point, and what was left out."""

    points: tuple[Point, ...]
    log: ResultsLog
    left_out: tuple[LeftOut, ...]


def measure(
    instrument: Instrument,
    points: Sequence[Point],
    scope: ExitStack,
    *,
    log: Path,
    header: Mapping[str, Any],
    tiles: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> Measured:
    """Draw and judge every case with every point that can run; resumes a log of this request.

    ``say`` is told once whether it did, and if not, why not.

    Raises EngineFailed if the reference itself cannot run, and what a method raises after it once
    ran: the log then keeps the scenes before.
    """
    progress("preparing", 0.0)
    methods, left_out = instrument.methods(points, scope)
    left_out += _warm_up(instrument, methods, progress)
    usable = tuple(point for point in points if point.name in methods)
    reference = _reference(points, methods, left_out)
    kept = ResultsLog(log, {**header, "points": [point.name for point in usable]})
    say(kept.said)
    if not kept.scenes:
        shutil.rmtree(tiles, ignore_errors=True)
    for case in instrument.cases:
        progress("drawing scenes", case.number / len(instrument.cases))
        if case.number in kept.scenes:
            continue
        began = perf_counter()
        inputs = instrument.encode(case)
        text_seconds = perf_counter() - began
        drawn = _take_turns(methods, inputs, case)
        scores, pictures = instrument.judge(case, drawn, reference)
        if case.number < TILES:
            _keep_tiles(tiles, case.number, [pictures[point.name] for point in usable])
        line = {"caption": case.caption, "seed": case.seed, "text_seconds": text_seconds}
        kept.add_scene(case.number, {**line, "scores": scores})
    return Measured(points=usable, log=kept, left_out=tuple(left_out))


def _warm_up(instrument: Instrument, methods: dict[str, Draw], progress: Progress) -> list[LeftOut]:
    """Draw one case with each method; those that cannot are taken out and say why."""
    left_out: list[LeftOut] = []
    inputs = instrument.encode(instrument.warm_up)
    for index, name in enumerate(list(methods)):
        progress("warming up", index / len(methods))
        try:
            methods[name](inputs, instrument.warm_up.seed)
        except Exception as error:  # a peer's code raises whatever it likes
            del methods[name]
            left_out.append(LeftOut(what=name, reason=said(error)))
    return left_out


def _reference(
    points: Sequence[Point], methods: Mapping[str, Draw], left_out: Sequence[LeftOut]
) -> str:
    """The name of the plain pipeline's point."""
    name = next(point.name for point in points if point.method == "plain")
    if name in methods:
        return name
    reasons = [each.reason for each in left_out if each.what == name]
    raise EngineFailed(
        f"the plain pipeline, which all else is measured against: {reasons[0]}",
        expected="a model that diffusers' pipeline draws with",
        fix="pass --weights with a whole diffusers pipeline folder",
    )


def _take_turns(
    methods: Mapping[str, Draw], inputs: Mapping[str, Tensor], case: Case
) -> dict[str, Drawn]:
    names = list(methods)
    first = case.number % len(names)
    return {name: methods[name](inputs, case.seed) for name in names[first:] + names[:first]}


def _keep_tiles(folder: Path, number: int, pictures: Sequence[Pixels]) -> None:
    """Small PNGs of one scene, numbered as the points are."""
    from PIL.Image import Resampling, fromarray

    target = folder / str(number)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(pictures):
            small = fromarray(pixels).resize((TILE, TILE), Resampling.LANCZOS)
            small.save(target / f"{index}.png")
