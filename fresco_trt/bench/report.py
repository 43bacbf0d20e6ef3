"""From the log's scores to the stored document: one row a point, and what follows from them.

Pure functions of what was measured; nothing is drawn or timed here. Keys of the document:
``bench/results/README.md``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.methods import PEERS, Point
from fresco_trt.bench.quality import DECIBELS, distance_interval, mean_interval, median_interval
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.bench.instrument import LeftOut, Scores

    Row = dict[str, Any]

SPEEDS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 25.0, 30.0, 40.0)
"""Speed-ups at which the best of each kind are put side by side."""

QUALITIES = ("score", "ssim")


def rows_of(
    points: Sequence[Point],
    scenes: Sequence[Mapping[str, Scores]],
    real: Tensor | None,
    peaks: Mapping[str, float],
    *,
    model: str,
    timed: bool,
    shared_seconds: float,
    simulated: Collection[str] = (),
) -> list[Row]:
    """One row a point, the plain pipeline's first.

    ``scenes`` are the scores of each scene by point; ``real`` features of true pictures; ``peaks``
    the memory of a process by point; ``model`` what draws where a point does not say;
    ``shared_seconds`` what every picture takes beside its denoising. Where not ``timed``, and for
    points quantised to a precision that is ``simulated``, everything that comes from a clock is
    None.
    """
    reference = [scene[points[0].name] for scene in scenes]
    rows = []
    for point in points:
        scores = [scene[point.name] for scene in scenes]
        clocked = timed and point.precision not in simulated
        row = {
            "method": point.method,
            "model": point.model or model,
            "preset": point.preset,
            "ablation": point.ablation,
            "variant": point.variant,
            "precision": point.precision,
            "nfe": point.nfe,
            **(_times(scores, reference, shared_seconds) if clocked else dict.fromkeys(_TIMES)),
            "flops_ratio": _sum(reference, "flops") / _sum(scores, "flops"),
            **_score(scores),
            **_closeness(scores),
            "twin_ssim": _twin_ssim(scores),
            **_distance(scores, real),
            "peak_mb": peaks.get(point.name),
            "point": point.name,
        }
        rows.append({key: _rounded(value) for key, value in row.items()})
    return rows


_TIMES = (
    "speedup",
    "speedup_low",
    "speedup_high",
    "images_per_second",
    "denoise_seconds",
    "host_share",
)


def _times(scores: Sequence[Scores], reference: Sequence[Scores], shared: float) -> Row:
    """The paired speed-up, scene by scene, its median with the interval; and what it rests on."""
    pairs = zip(reference, scores, strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
    seconds = statistics.median(each["seconds"] for each in scores)
    inside = [each["engine_seconds"] for each in scores]
    host = None if None in inside else 1 - sum(inside) / _sum(scores, "seconds")
    values = (*median_interval(ratios), 1 / (seconds + shared), seconds, host)
    return dict(zip(_TIMES, values, strict=True))


def _score(scores: Sequence[Scores]) -> Row:
    from fresco_trt.bench.quality import wilson_interval

    right = [each["right"] for each in scores]
    if None in right:
        return dict.fromkeys(("score", "score_low", "score_high"))
    low, high = wilson_interval(sum(right), len(right))
    return {"score": sum(right) / len(right), "score_low": low, "score_high": high}


def _closeness(scores: Sequence[Scores]) -> Row:
    found: Row = {}
    for name, most in (("ssim", 1.0), ("psnr", DECIBELS)):
        values = [each[name] for each in scores]
        interval = (None,) * 3 if None in values else mean_interval(values, most)
        keys = (name, f"{name}_low", f"{name}_high")
        found |= dict(zip(keys, interval, strict=True))
    return found


def _twin_ssim(scores: Sequence[Scores]) -> float | None:
    """Mean SSIM to the pictures of the same point unquantised; None for one that is, and where
    that one was not drawn."""
    found = [each["twin_ssim"] for each in scores if "twin_ssim" in each]
    return statistics.fmean(found) if found else None


def _distance(scores: Sequence[Scores], real: Tensor | None) -> Row:
    import torch

    from fresco_trt.bench.evaluator import decode

    keys = ("distance", "distance_low", "distance_high")
    if real is None or len(scores) < 2:
        return dict.fromkeys(keys)
    features = torch.stack([decode(each["features"]) for each in scores])
    return dict(zip(keys, distance_interval(features, real), strict=True))


def _sum(scores: Iterable[Scores], key: str) -> float:
    total: float = sum(each[key] for each in scores)
    return total


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- the tuned control ------------------------------------------------------------------------


def tuned(points: Sequence[Point], rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to show, and those of shifts and solvers that were tried and are not the best.

    Of the few-step points of one step count and one carrier, the row of Euler's steps at the
    default shift stays, and of the tuned ones the best by score and the best by SSIM, under the
    variant "<who>, tuned (mu ..., <solver>, best score)"; Euler's is not named. They are chosen on
    the very scenes that they are shown for: that favours the control.
    """
    groups: dict[tuple[str | None, str], list[Row]] = {}
    for point, row in zip(points, rows, strict=True):
        if _is_tuned(point):
            carrier = str(point.variant).split(",", maxsplit=1)[0]
            groups.setdefault((point.preset, carrier), []).append(row)
    best = {id(row): label for group in groups.values() for row, label in _best(group)}
    tried = {id(row) for group in groups.values() for row in group}
    shown = [
        row | {"variant": _tuned_variant(row, best[id(row)])} if id(row) in best else row
        for row in rows
        if id(row) not in tried or id(row) in best
    ]
    return shown, [row for row in rows if id(row) in tried and id(row) not in best]


def _is_tuned(point: Point) -> bool:
    """Whether it is a few-step point with a shift or a solver that is not the model's own."""
    settings = point.settings
    if point.method != "few-step":
        return False
    if isinstance(settings, Preset):
        return settings.shift is not None or settings.solver != "euler"
    return settings.mu is not None


def _best(group: Sequence[Row]) -> list[tuple[Row, str]]:
    found: dict[int, tuple[Row, str]] = {}
    for quality in QUALITIES:
        ranked = [row for row in group if row[quality] is not None]
        if not ranked:
            continue
        row = max(ranked, key=lambda each: (each[quality], each["ssim"]))
        before = found.get(id(row), (row, ""))[1]
        found[id(row)] = (row, f"{before} and {quality}" if before else f"best {quality}")
    return list(found.values())


def _tuned_variant(row: Row, label: str) -> str:
    who, way = str(row["variant"]).split(", ", maxsplit=1)
    return f"{who}, tuned ({way}, {label})"


# --- what the rows say together ---------------------------------------------------------------

KINDS: Mapping[str, Callable[[Row], bool]] = {
    "fresco": lambda row: row["method"] in ("cache", "fresco"),
    "peer": lambda row: row["method"] in PEERS,
    "few-step": lambda row: row["method"] == "few-step",
}


def frontier(
    rows: Sequence[Row], axis: str, kinds: Mapping[str, Callable[[Row], bool]] = KINDS
) -> list[Row]:
    """At each speed, the best score and the best SSIM that each kind reaches at least that fast.

    ``axis`` is "speedup" or "flops_ratio". A kind with no point so fast has None. Ablations do not
    count as ours: nobody is offered them.
    """
    found = []
    for speed in SPEEDS:
        entry: Row = {axis: speed}
        for kind, belongs in kinds.items():
            fast = [
                row
                for row in rows
                if belongs(row) and not row.get("ablation") and (row[axis] or 0.0) >= speed
            ]
            entry[kind] = {quality: _highest(fast, quality) for quality in QUALITIES}
        found.append(entry)
    return found


def _highest(rows: Iterable[Row], quality: str) -> Row | None:
    known = [row for row in rows if row[quality] is not None]
    if not known:
        return None
    row = max(known, key=lambda each: each[quality])
    return {"value": row[quality], "point": row["point"]}


def document_of(
    points: Sequence[Point], rows: Sequence[Row], left_out: Iterable[LeftOut], *, timed: bool
) -> dict[str, Any]:
    """``rows``, ``tuning``, ``frontier`` and ``left_out`` of the stored document.

    The frontier is that of the model itself: a sibling is another one.
    """
    shown, tried = tuned(points, rows)
    own = [row for row in shown if row["model"] == rows[0]["model"]]
    axes = ("speedup", "flops_ratio") if timed else ("flops_ratio",)
    return {
        "rows": shown,
        "tuning": tried,
        "frontier": {axis: frontier(own, axis) for axis in axes},
        "left_out": [asdict(each) for each in left_out],
    }
