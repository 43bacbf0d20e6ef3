"""The measurement: every edit made by every point in turn, and kept as soon as it is judged.

Points take turns within an edit, so that a ratio compares neighbours in time; who begins moves on
from edit to edit, so that no point always follows the same one. One edit warms up, apart.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fresco_trt.bench.instrument import LeftOut, said
from fresco_trt.bench.scenes.edit_judge import edit_verdicts, judged_edits
from fresco_trt.bench.scenes.edits import changed
from fresco_trt.bench.scenes.pictures import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.editing.engines import Draw, Made, Prepared
    from fresco_trt.bench.results_log import ResultsLog
    from fresco_trt.bench.scenes.edits import Edit
    from fresco_trt.bench.scenes.judge import Judge

Scores = dict[str, Any]
"""Of one edit by one point: made, outside, seconds, engine_seconds, flops, stage and iou; None for
what it does not have."""

WARM_UP_SEED = 10**6


def warmed_up(
    draws: Mapping[str, Draw], prepare: Callable[[Edit], Prepared]
) -> tuple[dict[str, Draw], list[LeftOut]]:
    """Draw an edit that no round has with each point; those that cannot are left out."""
    (edit,) = judged_edits(1, seed=WARM_UP_SEED)
    prepared, left_out, usable = prepare(edit), [], {}
    for name, draw in draws.items():
        try:
            draw(prepared, WARM_UP_SEED)
        except Exception as error:  # a peer's code raises whatever it likes
            left_out.append(LeftOut(what=name, reason=said(error)))
        else:
            usable[name] = draw
    return usable, left_out


def measure(
    edits: Sequence[Edit],
    draws: Mapping[str, Draw],
    prepare: Callable[[Edit], Prepared],
    judge: Judge,
    log: ResultsLog,
    say: Callable[[str], None],
) -> list[dict[str, Scores]]:
    """The scores of every edit by the name of its point, with the edit's number as its seed.

    Goes on from what ``log`` holds; what a round raises leaves the rounds before it there.
    """
    began, done = perf_counter(), len(log.scenes)
    for number, edit in enumerate(edits):
        if number in log.scenes:
            continue
        prepared, names = prepare(edit), list(draws)
        first = number % len(names)
        made = {name: draws[name](prepared, number) for name in names[first:] + names[:first]}
        line = {"kind": edit.kind, "instruction": edit.instruction}
        log.add_scene(number, {**line, "scores": scores_of(judge, edit, made)})
        each = (perf_counter() - began) / (len(log.scenes) - done)
        left = (len(edits) - len(log.scenes)) * each
        say(f"edit {number + 1} of {len(edits)}: {each:.1f} s each, {left / 60:.1f} minutes left")
    return [log.scenes[number]["scores"] for number in range(len(edits))]


def scores_of(judge: Judge, edit: Edit, made: Mapping[str, Made]) -> dict[str, Scores]:
    """Judge what several points made of an edit."""
    pictures = scaled(np.stack([each.pixels for each in made.values()]))
    found = edit_verdicts(judge, pictures, [edit] * len(made))
    return {
        name: {
            "made": verdict.made,
            "outside": verdict.outside,
            "seconds": each.seconds,
            "engine_seconds": each.engine_seconds,
            "flops": each.flops,
            "stage": each.stage,
            "iou": _iou(each, edit),
        }
        for (name, each), verdict in zip(made.items(), found, strict=True)
    }


def _iou(made: Made, edit: Edit) -> float | None:
    """Intersection over union of the mask that was found and the true one."""
    if made.mask is None:
        return None
    height, width = made.mask.shape
    true = changed(edit, width, height)
    return float((made.mask & true).sum() / (made.mask | true).sum())
