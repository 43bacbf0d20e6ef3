"""A run's document as Markdown: every point, its intervals, blanks where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def bench_table(document: dict[str, Any]) -> str:
    """One row a point of a bench's document, ablations left out, and a line on how it was run."""
    rows = [row for row in document["rows"] if not row["ablation"]]
    return "\n".join(
        [
            *bench_head("method"),
            *(bench_row(named(row, "method", "preset", "variant"), row) for row in rows),
            "",
            how(document),
        ]
    )


def how(document: Mapping[str, Any]) -> str:
    """The line below a table: what was measured, where and with which command."""
    machine, (width, height) = document["machine"], document["size"]
    return (
        f"`{document['command']}` at {document['commit']}: {document['scenes']} scenes, model "
        f"`{document['model']}` at {width}x{height}, {document['instrument']} instrument, "
        f"{machine['cores']} cores of {machine['processor']}. Score: {document['score']}. "
        "In brackets: 95% intervals."
    )


def bench_head(first: str) -> tuple[str, str]:
    """The two lines that begin a table of :func:`bench_row` lines."""
    closeness = ("SSIM", "PSNR, dB", "distance")
    columns = (first, "steps", "speed-up", "fewer FLOPs", "score", *closeness, "img/s", "peak MB")
    return f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"


def bench_row(name: str, row: dict[str, Any]) -> str:
    """A row as a line under ``name``."""
    cells = (
        name,
        str(row["nfe"]),
        interval(row, "speedup", 2),
        number(row["flops_ratio"], 2),
        interval(row, "score", 2),
        interval(row, "ssim", 3),
        number(row["psnr"], 1),
        interval(row, "distance", 1),
        number(row["images_per_second"], 2),
        number(row["peak_mb"], 0),
    )
    return f"| {' | '.join(cells)} |"


def named(row: dict[str, Any], *keys: str) -> str:
    """What a row says of itself under some keys, where it says anything."""
    return ", ".join(row[key] for key in keys if row[key])


def interval(row: Mapping[str, Any], key: str, digits: int) -> str:
    """A value and its 95% interval; nothing where it was not measured."""
    if row[key] is None:
        return ""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{row[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def number(value: float | None, digits: int) -> str:
    """A value, or nothing where it was not measured."""
    return "" if value is None else f"{value:.{digits}f}"
