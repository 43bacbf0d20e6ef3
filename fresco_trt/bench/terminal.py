"""The stored document as a table on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fresco_trt.bench.report import KINDS, QUALITIES
from fresco_trt.bench.table import interval, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

PAGE = 140
"""Columns of output that is no terminal."""

_COLUMNS = (
    "method",
    "steps",
    "speed-up (95%)",
    "FLOPs",
    "score (95%)",
    "SSIM",
    "PSNR",
    "distance",
    "img/s",
    "MB",
)


def show(document: Mapping[str, Any]) -> None:
    """Print rows, the best of each kind at each speed, and what was left out."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=PAGE)
    width, height = document["size"]
    title = (
        f"{document['model']} {width}x{height}, {document['instrument']}, "
        f"{document['scenes']} scenes"
    )
    _print(console, title, _COLUMNS, [_cells(row, document["model"]) for row in document["rows"]])
    for axis, entries in document["frontier"].items():
        _frontier(console, axis, entries)
    for each in document["left_out"]:
        console.print(escape(f"not measured: {each['what']}: {each['reason']}"), soft_wrap=True)


def _cells(row: Row, model: str) -> tuple[str, ...]:
    sibling = None if row["model"] == model else row["model"]
    parts = (row["method"], sibling, row["preset"], row["ablation"], row["variant"])
    return (
        ", ".join(part for part in parts if part),
        str(row["nfe"]),
        interval(row, "speedup", 2),
        number(row["flops_ratio"], 2),
        interval(row, "score", 2),
        number(row["ssim"], 3),
        number(row["psnr"], 1),
        number(row["distance"], 1),
        number(row["images_per_second"], 2),
        number(row["peak_mb"], 0),
    )


def _frontier(console: Console, axis: str, entries: Sequence[Row]) -> None:
    for quality in QUALITIES:
        title = f"best {quality} at {axis} of at least"
        rows = [
            (f"{entry[axis]:g}", *(_best(entry[kind][quality]) for kind in KINDS))
            for entry in entries
        ]
        _print(console, title, ("", *KINDS), rows)


def _best(found: Row | None) -> str:
    return "-" if found is None else f"{found['value']:.3f} {found['point']}"


def _print(
    console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]
) -> None:
    table = Table(title=escape(title), title_justify="left", header_style="bold", box=SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index > 0 and column not in KINDS)
    for row in rows:
        table.add_row(*(escape(cell) or "-" for cell in row))
    console.print(table)
