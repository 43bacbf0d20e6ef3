"""The study of fitness as numbers: a row for each entry, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.bench.evaluator import decode
from fresco_trt.bench.quality import (
    distance_interval,
    lost_interval,
    mean_interval,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bench.fitness.entries import Entry
    from fresco_trt.bench.instrument import Scores

    Scene = Mapping[str, Scores]
    Row = dict[str, Any]
    Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The least share of the score that has to be lost at so many steps."""

    steps: int
    tuned: bool
    least: float


TARGETS = (
    Target(steps=10, tuned=False, least=0.08),
    Target(steps=5, tuned=True, least=0.10),
)
"""About what published models lose: FLUX.1-dev goes from an ImageReward of 1.095 at 50 steps to
0.981 at 10, by a tenth (RALU, arXiv 2507.08422)."""

DISTANCES = {"distance": "features", "imagenet_distance": "imagenet"}
"""Names of distances, and the key in scores of the features that they are of."""


def document_of(
    entries: Sequence[Entry], scenes: Sequence[Scene], real: Mapping[str, Tensor]
) -> dict[str, Any]:
    """``rows``, ``targets`` and ``fit`` of the stored document.

    All entries are compared with the first. ``scenes`` are the scores of each by the point's name;
    ``real`` has features [N,D] of true renders, by their key in scores.
    """
    rows = [_row(entry, entries[0], scenes, real) for entry in entries]
    targets = [_target(each, rows) for each in TARGETS]
    return {"rows": rows, "targets": targets, "fit": all(each["met"] for each in targets)}


def _row(
    entry: Entry, reference: Entry, scenes: Sequence[Scene], real: Mapping[str, Tensor]
) -> Row:
    ours = [scene[entry.point.name] for scene in scenes]
    right, theirs = (
        [int(scene[each.point.name]["right"]) for scene in scenes] for each in (entry, reference)
    )
    has_lost = entry != reference and any(theirs)
    row = {
        "name": entry.name,
        "steps": entry.steps,
        "tuned": entry.tuned,
        "mu": entry.mu,
        "solver": entry.solver,
        **_spread("score", (sum(right) / len(right), *wilson_interval(sum(right), len(right)))),
        **_spread("lost", lost_interval(right, theirs) if has_lost else None),
        **_spread("ssim", mean_interval([each["ssim"] for each in ours], 1.0)),
    }
    for name, key in DISTANCES.items():
        row |= _spread(name, _distance(ours, key, real[key]) if key in real else None)
    return {key: _rounded(value) for key, value in row.items()}


def _distance(scores: Sequence[Scores], key: str, real: Tensor) -> Interval:
    return distance_interval(torch.stack([decode(each[key]) for each in scores]), real)


def _spread(name: str, interval: Interval | None) -> Row:
    keys = (name, f"{name}_low", f"{name}_high")
    return dict(zip(keys, interval or (None,) * 3, strict=True))


def _target(target: Target, rows: Sequence[Row]) -> Row:
    """Whether so much is lost, and surely anything: the interval may hold the target all the same,
    but not 0.
    """
    row = next(r for r in rows if (r["steps"], r["tuned"]) == (target.steps, target.tuned))
    return {
        "steps": target.steps,
        "tuned": target.tuned,
        "least": target.least,
        **{key: row[key] for key in ("lost", "lost_low", "lost_high")},
        "met": row["lost"] is not None and row["lost"] >= target.least and row["lost_low"] > 0,
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
