"""A stored document of the bench of clips as Markdown: its rows, and whether targets were met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.video.report import AHEAD_FROM, MARGIN, SCORES, TARGETS
from fresco_trt.bench.table import interval, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Document = Mapping[str, Any]

HEADS = (
    "clip",
    "steps",
    "speed-up",
    "fewer FLOPs",
    "right",
    "object",
    "direction",
    "SSIM",
    "flicker",
)


def clips_table(document: Document) -> str:
    """A row for each way to draw, with 95% intervals, and a line on how it was measured."""
    machine, (width, height, frames) = document["machine"], document["size"]
    return "\n".join(
        [
            f"| {' | '.join(HEADS)} |",
            f"|---|{'--:|' * (len(HEADS) - 1)}",
            *(_line(_bound_cells(row)) for row in document["bounds"]),
            *(_line(_cells(row)) for row in document["rows"]),
            "",
            f"`{document['command']}` at {document['commit']}: {document['clips']} clips, model "
            f"`{document['model']}` at {width}x{height}, {frames} frames, {document['backend']} "
            f"engines, {document['threads']} thread{'s'[: document['threads'] != 1]}, "
            f"{machine['cores']} cores of {machine['processor']}. In brackets: 95% intervals. SSIM "
            "over all frames, and flicker in grey levels of 255, are to the plain clip.",
        ]
    )


def _bound_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["name"], "", "", "", *_quality(row)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    best = f" (best {row['best']})" if row.get("best") else ""
    return (
        f"{row['point']}{best}",
        "+".join(map(str, row["steps"])),
        interval(row, "speedup", 2),
        number(row["flops_ratio"], 2),
        *_quality(row),
    )


def _quality(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        interval(row, "score", 2),
        number(row["object"], 2),
        number(row["direction"], 2),
        interval(row, "ssim", 3),
        interval(row, "flicker", 2),
    )


def summary(document: Document) -> str:
    """The targets, and at which speeds a peer is ahead."""
    return "\n".join(
        [
            *(_target(name, each) for name, each in document["targets"].items()),
            _ahead(document["behind"], max(row["speedup"] for row in document["rows"])),
        ]
    )


def _target(name: str, found: Mapping[str, Any]) -> str:
    least, _ = TARGETS[name]
    points = f"{100 * MARGIN:g} points"
    what = f"{least:g}x, within {points} of the plain sampler in {_and(SCORES)}"
    if found["met_by"]:
        return f"- Target {name} ({what}): met by {'; '.join(found['met_by'])}."
    if not found["so_fast"]:
        return f"- Target {name} ({what}): missed, nothing of ours is so fast."
    nearest = min(found["so_fast"], key=lambda each: max(each[share] for share in SCORES))
    lost = ", ".join(f"{100 * nearest[share]:.0f} of {share}" for share in SCORES)
    return f"- Target {name} ({what}): missed; nearest {nearest['point']}, which loses {lost}."


def _ahead(behind: Sequence[Mapping[str, Any]], most: float) -> str:
    if most < AHEAD_FROM:
        return f"- Nothing is {AHEAD_FROM:g}x faster."
    if not behind:
        return f"- From {AHEAD_FROM:g}x on no peer is ahead of ours, at any speed."
    places = "; ".join(
        f"at {each['speedup']:g}x in {each['quality']} {each['by']}" for each in behind
    )
    return f"- A peer is ahead of ours {places}."


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
