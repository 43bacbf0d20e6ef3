"""The measurement: every edit made by every point in turn, and kept as soon as it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench import turns
from fresco_trt.bench.scenes.edit_judge import edit_verdicts, judged_edits
from fresco_trt.bench.scenes.edits import changed
from fresco_trt.bench.scenes.pictures import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.editing.engines import Draw, Made, Prepared
    from fresco_trt.bench.instrument import LeftOut
    from fresco_trt.bench.results_log import ResultsLog
    from fresco_trt.bench.scenes.edits import Edit
    from fresco_trt.bench.scenes.judge import Judge

Scores = dict[str, Any]
"""Of one edit by one point: made, outside, seconds, engine_seconds, flops, stage and iou; None for
what it does not have."""


def warmed_up(
    draws: Mapping[str, Draw], prepare: Callable[[Edit], Prepared]
) -> tuple[dict[str, Draw], list[LeftOut]]:
    """Draw an edit that no round has with each point; those that cannot are left out."""
    (edit,) = judged_edits(1, seed=turns.WARM_UP_SEED)
    return turns.warmed_up(draws, prepare(edit))


def measure(
    edits: Sequence[Edit],
    draws: Mapping[str, Draw],
    prepare: Callable[[Edit], Prepared],
    judge: Judge,
    log: ResultsLog,
) -> list[dict[str, Scores]]:
    """The scores of every edit by the name of its point, with the edit's number as its seed."""

    def line(edit: Edit, made: Mapping[str, Made]) -> dict[str, Any]:
        scores = scores_of(judge, edit, made)
        return {"kind": edit.kind, "instruction": edit.instruction, "scores": scores}

    lines = turns.take_turns("edit", edits, draws, prepare, line, log)
    return [each["scores"] for each in lines]


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
