"""What the rows say together: the best tuned controls, the best of each kind at each speed, and
whether the targets were met. Figures are taken as measured: whether two differ by more than chance,
their intervals say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.video.points import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = dict[str, Any]

QUALITIES = ("score", "ssim")

KINDS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "fresco": lambda row: row["group"] in OURS,
    "peer": lambda row: row["group"] in PEERS,
    "few-step": lambda row: row["group"] == "few-step",
}

MARGIN, SCORES = 0.02, ("score", "object", "direction")
"""What a row that meets a target may lose of the plain sampler's share, and of which shares."""

TARGETS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "4x": (4.0, OURS),
    "6x with a cache": (6.0, ("cache", "fresco")),
}
"""Least speed-up, and which groups may reach it; with a cache those rows that have one."""

AHEAD_FROM = 3.0
"""The speed-up from which ours are to be ahead of every peer."""


def comparison(rows: Sequence[Row]) -> dict[str, Any]:
    """``rows`` to show; ``tuning``, the shifts of few-step controls that were tried and are not the
    best of their steps and solver; ``frontier``; ``targets``; and ``behind``, at which speeds a
    peer's best is better than ours, and in what.
    """
    from fresco_trt.bench.report import frontier  # which imports torch

    shown, tried = tuned(rows)
    most = max(row["speedup"] for row in shown)
    entries = [each for each in frontier(shown, "speedup", KINDS) if each["speedup"] <= most]
    return {
        "rows": shown,
        "tuning": tried,
        "frontier": {"speedup": entries},
        "targets": {
            name: _target(shown, speed, groups, "cache" in name)
            for name, (speed, groups) in TARGETS.items()
        },
        "behind": [found for each in entries for found in _behind(each)],
    }


def tuned(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to show, and those of shifts that were tried and are not the best by any quality.

    They are chosen on the very clips that they are shown for: that favours the control.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["tuned"] is not None:
            groups.setdefault(row["label"].rpartition(", ")[0], []).append(row)
    best: dict[int, list[str]] = {}
    for group in groups.values():
        for quality in QUALITIES:
            row = max(group, key=lambda each: (each[quality], each["ssim"]))
            best.setdefault(id(row), []).append(quality)
    shown = [
        row | {"best": " and ".join(best[id(row)])} if id(row) in best else row
        for row in rows
        if row["tuned"] is None or id(row) in best
    ]
    return shown, [row for row in rows if row["tuned"] is not None and id(row) not in best]


def has_cache(row: Mapping[str, Any]) -> bool:
    """Whether a row of ours skips steps by a cache."""
    return row["group"] == "cache" or any(
        f", {name} " in row["label"] for name in ("taylor", "hicache", "reuse")
    )


def _target(
    rows: Sequence[Row], speed: float, groups: Sequence[str], cached: bool
) -> dict[str, Any]:
    """The rows that meet it; and of all that are so fast, what they lose of each share."""
    plain = rows[0]
    fast = [
        row
        for row in rows
        if row["group"] in groups
        and row["speedup"] >= speed
        and (has_cache(row) if cached else True)
    ]
    losses = [
        {"point": row["point"], **{name: round(plain[name] - row[name], 4) for name in SCORES}}
        for row in fast
    ]
    met = [each["point"] for each in losses if max(each[name] for name in SCORES) <= MARGIN + 1e-9]
    return {"met_by": met, "so_fast": losses}


def _behind(entry: Mapping[str, Any]) -> list[Row]:
    """Where a peer's best at least so fast is better than ours."""
    if entry["speedup"] < AHEAD_FROM:
        return []
    found = []
    for quality in QUALITIES:
        ours, theirs = entry["fresco"][quality], entry["peer"][quality]
        if theirs is not None and (ours is None or theirs["value"] > ours["value"]):
            found.append({"speedup": entry["speedup"], "quality": quality, "by": theirs["point"]})
    return found
