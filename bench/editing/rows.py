"""From single measurements to rows: shares with their intervals, ratios to the plain edit."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.ratios import flops_ratio, host_share, rounded
from fresco_trt.bench.quality import DECIBELS, mean_interval, wilson_interval
from fresco_trt.bench.scenes.edits import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.editing.points import EditPoint
    from bench.editing.rounds import Scores
    from fresco_trt.bench.scenes.edits import Edit

    Row = dict[str, Any]

RESAMPLES = 1000


def rows_of(
    points: Sequence[EditPoint], edits: Sequence[Edit], scores: Sequence[Mapping[str, Scores]]
) -> list[Row]:
    """A row for each point; the first of them is the plain edit, which all ratios are to."""
    kinds = [edit.kind for edit in edits]
    plain = [each[points[0].name] for each in scores]
    return [row_of(point, kinds, [each[point.name] for each in scores], plain) for point in points]


def row_of(
    point: EditPoint, kinds: Sequence[str], scores: Sequence[Scores], plain: Sequence[Scores]
) -> Row:
    """One point's row: quality, and what it cost beside the plain edit of the same scenes."""
    row = {
        "name": point.name,
        "group": point.group,
        "label": point.label,
        "quant": point.quant,
        "steps": list(point.steps),
        **quality_of(kinds, scores),
        "gained": sum(a["made"] and not b["made"] for a, b in zip(scores, plain, strict=True)),
        "lost": sum(b["made"] and not a["made"] for a, b in zip(scores, plain, strict=True)),
        **_speed(kinds, scores, plain),
        "flops_ratio": flops_ratio(scores, plain),
        "host_share": host_share(scores),
        **_found(point, scores),
    }
    return {key: rounded(value) for key, value in row.items()}


def quality_of(kinds: Sequence[str], scores: Sequence[Scores]) -> Row:
    """Edits made and decibels outside of them, with 95% intervals; the share made of each kind."""
    made, ends = [each["made"] for each in scores], ("", "_low", "_high")
    shares = (sum(made) / len(made), *wilson_interval(sum(made), len(made)))
    outside = mean_interval([each["outside"] for each in scores], DECIBELS)
    return {
        **{f"score{end}": value for end, value in zip(ends, shares, strict=True)},
        **{f"outside{end}": value for end, value in zip(ends, outside, strict=True)},
        "kinds": {
            kind: statistics.fmean(own)
            for kind in KINDS
            if (own := [each for each, of in zip(made, kinds, strict=True) if of == kind])
        },
    }


def _speed(kinds: Sequence[str], scores: Sequence[Scores], plain: Sequence[Scores]) -> Row:
    """Seconds of all plain edits over those of this point, and the interval of that by resampling
    edits: an edit may cost more than another, and a server pays for all.
    """
    ours, theirs = (np.array([s["seconds"] for s in each]) for each in (scores, plain))
    ratio = theirs.sum() / ours.sum()
    picks = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    spread = theirs[picks].sum(axis=1) / ours[picks].sum(axis=1)
    low, high = np.quantile(spread, (0.025, 0.975))
    of_kind = {kind: np.array([kind == each for each in kinds]) for kind in KINDS}
    return {
        "seconds": statistics.median(ours.tolist()),
        "speedup": float(ratio),
        # The whole set is one of those that may be drawn.
        "speedup_low": min(float(low), float(ratio)),
        "speedup_high": max(float(high), float(ratio)),
        "speedup_kinds": {
            kind: float(theirs[own].sum() / ours[own].sum())
            for kind, own in of_kind.items()
            if own.any()
        },
    }


def _found(point: EditPoint, scores: Sequence[Scores]) -> Row:
    """What became of the search for the edited tokens; None for what has none.

    ``iou`` is the mean over edits, ``stages`` the share of edits that each stage ended.
    """
    ious = [each["iou"] for each in scores]
    stages = [each["stage"] for each in scores]
    is_selective = point.preset is not None and point.preset.edit is not None
    return {
        "iou": None if None in ious else statistics.fmean(ious),
        "stages": {str(stage): stages.count(stage) / len(stages) for stage in sorted(set(stages))}
        if is_selective
        else None,
    }
