"""What the rows say together: who is beaten by whom, and whether the targets were met.

A row is beaten by one that is at least as fast, makes at least as many edits, leaves the rest at
least as well alone, and is better in one of the three. Figures are taken as measured: whether two
differ by more than chance, their intervals say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.editing.points import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

AXES = ("speedup", "score", "outside")

TARGETS: Mapping[str, tuple[float, Callable[[Row], bool]]] = {
    "5x": (5.0, lambda row: row["group"] in OURS),
    "7x with a cache": (7.0, lambda row: row["group"] in OURS and "hicache" in row["label"]),
}
"""Least speed-up, and what may reach it; at it edits within :data:`MARGIN` of the plain edit's, and
the rest left alone better than by it."""

MARGIN = 0.02


def beats(one: Row, other: Row) -> bool:
    """Whether a row is nowhere behind another and somewhere ahead."""
    pairs = [(one[axis], other[axis]) for axis in AXES]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def comparison(rows: Sequence[Row]) -> dict[str, Any]:
    """``others``: of each control and peer the best that ours reach at least as fast; ``behind``:
    each of ours that a control or peer beats, by which and how much; ``targets``.
    """
    plain, ours = rows[0], [row for row in rows if row["group"] in OURS]
    others = [row for row in rows[1:] if row["group"] not in OURS]
    return {
        "others": [_against(row, ours) for row in others],
        "behind": [
            {"name": row["name"], "by": [_gap(row, each) for each in found]}
            for row in ours
            if (found := [each for each in others if beats(each, row)])
        ],
        "targets": {
            name: _target(plain, [row for row in ours if may(row)], speed)
            for name, (speed, may) in TARGETS.items()
        },
    }


def _against(row: Row, ours: Sequence[Row]) -> dict[str, Any]:
    fast = [each for each in ours if each["speedup"] >= row["speedup"]]
    return {
        "name": row["name"],
        "peer": row["group"] in PEERS,
        "score": _best(fast, "score"),
        "outside": _best(fast, "outside"),
        "beaten_by": [_gap(row, each) for each in fast if beats(each, row)],
    }


def _best(rows: Iterable[Row], quality: str) -> dict[str, Any] | None:
    row = max(rows, key=lambda each: each[quality], default=None)
    return None if row is None else {"name": row["name"], "value": row[quality]}


def _gap(behind: Row, ahead: Row) -> dict[str, Any]:
    """By how much a row is ahead: times the speed, share of edits, decibels."""
    return {
        "name": ahead["name"],
        "speedup": round(ahead["speedup"] / behind["speedup"], 4),
        "score": round(ahead["score"] - behind["score"], 4),
        "outside": round(ahead["outside"] - behind["outside"], 4),
    }


def _target(plain: Row, rows: Sequence[Row], speed: float) -> dict[str, Any]:
    """The rows that meet it; and how far from the plain edit are all that are so fast."""
    fast = [row for row in rows if row["speedup"] >= speed]
    met = [
        row["name"]
        for row in fast
        if row["score"] >= plain["score"] - MARGIN - 1e-9 and row["outside"] > plain["outside"]
    ]
    return {"met_by": met, "so_fast": [_gap(plain, row) for row in fast]}
