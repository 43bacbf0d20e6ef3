"""A stored document of the bench of editing as Markdown: rows, kinds, and who is ahead of whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.editing.report import MARGIN, TARGETS
from fresco_trt.bench.scenes.edits import KINDS
from fresco_trt.bench.table import interval, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Document = Mapping[str, Any]


def editing_tables(document: Document) -> Iterator[str]:
    """All that the page shows: every row, the same by kind, and the summary."""
    yield editing_table(document)
    yield kinds_table(document)
    yield summary(document)


def editing_table(document: Document) -> str:
    """A row for each way to edit, with 95% intervals, and a line on how it was measured."""
    heads = ("edit", "steps", "speed-up", "fewer FLOPs", "edits made", "outside, dB", "mask IoU")
    machine, (width, height) = document["machine"], document["size"]
    return "\n".join(
        [
            f"| {' | '.join(heads)} |",
            f"|---|{'--:|' * (len(heads) - 1)}",
            *(_line(_cells(row)) for row in document["bounds"]),
            *(_line(_cells(row)) for row in document["rows"]),
            "",
            f"`{document['command']}` at {document['commit']}: {document['scenes']} edits, model "
            f"`{document['model']}` at {width}x{height}, {document['backend']} engines, "
            f"{document['threads']} thread{'s'[: document['threads'] != 1]}, "
            f"{machine['cores']} cores of {machine['processor']}. "
            "In brackets: 95% intervals.",
        ]
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    quality = interval(row, "score", 2), interval(row, "outside", 1)
    if "speedup" not in row:
        return row["name"], "", "", "", *quality, ""
    return (
        row["name"],
        "+".join(map(str, row["steps"])),
        interval(row, "speedup", 2),
        number(row["flops_ratio"], 2),
        *quality,
        number(row["iou"], 2),
    )


def quantised_tables(document: Document) -> Iterator[str]:
    """Every row of a run with quantised engines, and who is ahead of whom."""
    yield editing_table(document)
    yield summary(document)


def kinds_table(document: Document) -> str:
    """The share of edits made of each kind, and behind it the speed-up on these."""
    kinds = [kind for kind in KINDS if kind in document["rows"][0]["kinds"]]
    return "\n".join(
        [
            f"| edit | {' | '.join(kinds)} |",
            f"|---|{'--:|' * len(kinds)}",
            *(_line(_kind_cells(row, kinds)) for row in document["rows"]),
        ]
    )


def _kind_cells(row: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, ...]:
    made, speed = row["kinds"], row["speedup_kinds"]
    return row["name"], *(f"{made[kind]:.2f} ({speed[kind]:.1f}x)" for kind in kinds)


def summary(document: Document) -> str:
    """The targets, then what each control and peer is up against, then which of ours are beaten."""
    found = document["comparison"]
    return "\n".join(
        [
            *(_target(name, each) for name, each in found["targets"].items()),
            "",
            "| control or peer | most edits made by ours as fast | best outside by ours as fast "
            "| beaten by |",
            "|---|---|---|---|",
            *(_line(_against(each)) for each in found["others"]),
            "",
            *(_behind(each) for each in found["behind"]),
        ]
    )


def _target(name: str, found: Mapping[str, Any]) -> str:
    least, _ = TARGETS[name]
    what = f"{least:g}x, edits within {100 * MARGIN:g} points of the plain edit, better outside"
    if found["met_by"]:
        return f"- Target {name} ({what}): met by {'; '.join(found['met_by'])}."
    nearest = max(found["so_fast"], key=lambda each: each["score"], default=None)
    if nearest is None:
        return f"- Target {name} ({what}): missed, nothing of ours is so fast."
    return f"- Target {name} ({what}): missed; nearest {_gap(nearest)} against the plain edit."


def _against(each: Mapping[str, Any]) -> tuple[str, ...]:
    best = (_best(each["score"], 2), _best(each["outside"], 1))
    return each["name"], *best, _fastest(each["beaten_by"]) or "none of ours"


def _best(found: Mapping[str, Any] | None, digits: int) -> str:
    return "none so fast" if found is None else f"{found['value']:.{digits}f} ({found['name']})"


def _behind(each: Mapping[str, Any]) -> str:
    return f"- {each['name']} is beaten by {_fastest(each['by'])}."


def _fastest(gaps: Sequence[Mapping[str, Any]]) -> str:
    """The fastest of those that are ahead, and how many others are."""
    if not gaps:
        return ""
    others = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
    return _gap(max(gaps, key=lambda gap: gap["speedup"])) + others


def _gap(gap: Mapping[str, Any]) -> str:
    """Who, and how far ahead in speed, points of edits made, and decibels outside."""
    return (
        f"{gap['name']} ({gap['speedup']:.2f}x its speed, {100 * gap['score']:+.0f} points, "
        f"{gap['outside']:+.1f} dB)"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
