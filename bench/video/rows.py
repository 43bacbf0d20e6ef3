"""From single measurements to rows: shares with their intervals, ratios to the plain sampler."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from bench.ratios import flops_ratio, host_share, rounded
from fresco_trt.bench.quality import mean_interval, median_interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.video.points import ClipPoint
    from bench.video.rounds import Scores

    Row = dict[str, Any]

SHARES = {"score": "right", "object": "object", "colour": "colour", "direction": "direction"}
"""Shares of clips that rows have, and what of a clip's scores each counts."""


def rows_of(points: Sequence[ClipPoint], scores: Sequence[Mapping[str, Scores]]) -> list[Row]:
    """A row for each point; the first of them is the plain sampler, which all ratios are to."""
    plain = [each[points[0].name] for each in scores]
    return [row_of(point, [each[point.name] for each in scores], plain) for point in points]


def row_of(point: ClipPoint, scores: Sequence[Scores], plain: Sequence[Scores]) -> Row:
    """One point's row: quality, and what it cost beside the plain clips of the same captions."""
    row = {
        "point": point.name,
        "group": point.group,
        "label": point.label,
        "steps": list(point.steps),
        "tuned": point.tuned,
        **quality_of(scores),
        **_speed(scores, plain),
        "flops_ratio": flops_ratio(scores, plain),
        "host_share": host_share(scores),
    }
    return {key: rounded(value) for key, value in row.items()}


def quality_of(scores: Sequence[Scores]) -> Row:
    """Shares of clips that are right, in all and in each claim, mean flicker (grey levels of 255)
    and mean SSIM, all with 95% intervals.
    """
    found: Row = {}
    for name, claim in SHARES.items():
        right, total = sum(each[claim] for each in scores), len(scores)
        found |= _with_ends(name, (right / total, *wilson_interval(right, total)))
    found |= _with_ends("flicker", mean_interval([each["flicker"] for each in scores]))
    return found | _with_ends("ssim", mean_interval([each["ssim"] for each in scores], 1.0))


def _speed(scores: Sequence[Scores], plain: Sequence[Scores]) -> Row:
    """The paired speed-up, clip by clip, its median with the interval."""
    pairs = zip(plain, scores, strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
    seconds = statistics.median(each["seconds"] for each in scores)
    return {"seconds": seconds, **_with_ends("speedup", median_interval(ratios))}


def _with_ends(name: str, values: tuple[float, float, float]) -> Row:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
