"""The two pictures beside a stored document: quality over speed, and the drawings themselves.

The last step of the bench. Both are written under another name first and then renamed.

    python -m fresco_trt.bench.figures RESULT.json

draws the first of them again.
"""

from __future__ import annotations

import json
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fresco_trt.backends.base import writing
from fresco_trt.bench.contact_sheet import sheet
from fresco_trt.bench.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Row = Mapping[str, Any]

# Okabe and Ito's colours, told apart by people who see fewer of them; marks differ as well.
_COLOURS = (
    "#000000",
    "#7f7f7f",
    "#56b4e9",
    "#0072b2",
    "#cc79a7",
    "#009e73",
    "#e69f00",
    "#f0e442",
    "#d55e00",
)
_MARKS = ("*", "o", "s", "D", "v", "^", "P", "h", "X")

AXES = {"speedup": "speed-up, measured", "flops_ratio": "times fewer FLOPs"}
QUALITIES = {"score": "score", "ssim": "SSIM to the reference"}


def pareto(document: Mapping[str, Any], path: Path) -> None:
    """Draw quality over speed-up and over FLOPs as a PNG: score above, SSIM below.

    Ablations are small and hollow; a line joins each method's points that no other of it beats in
    both. An axis without figures is left out. Raises ImportError without matplotlib.
    """
    figures: Any = import_module("matplotlib.figure")
    rows = document["rows"]
    axes = [axis for axis in AXES if any(row[axis] is not None for row in rows)]
    qualities = [name for name in QUALITIES if any(row[name] is not None for row in rows)]
    figure = figures.Figure(figsize=(6.4 * len(axes), 4.6 * len(qualities)), layout="constrained")
    panels = figure.subplots(len(qualities), len(axes), squeeze=False)
    for line, quality in enumerate(qualities):
        for column, axis in enumerate(axes):
            _panel(panels[line][column], rows, axis, quality)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.suptitle(
        f"{document['model']}, {document['instrument']}, {document['scenes']} scenes\n"
        f"score: {document['score']}"
    )
    _write(path, lambda partial: figure.savefig(partial, format="png", dpi=130))


def _panel(panel: Any, rows: Sequence[Row], axis: str, quality: str) -> None:
    for method, colour, mark in zip(METHODS, _COLOURS, _MARKS, strict=True):
        own = [row for row in rows if row["method"] == method and row[axis] is not None]
        own = [row for row in own if row[quality] is not None]
        whole = [row for row in own if not row["ablation"]]
        changed = [row for row in own if row["ablation"]]
        if not own:
            continue
        front = undominated([(row[axis], row[quality]) for row in whole])
        panel.plot(*zip(*front, strict=True), color=colour, linewidth=1.0, alpha=0.6)
        _scatter(panel, whole, axis, quality, colour=colour, mark=mark, label=method)
        panel.scatter(
            [row[axis] for row in changed],
            [row[quality] for row in changed],
            s=14,
            facecolors="none",
            edgecolors=colour,
            linewidths=0.7,
        )
    panel.set_xscale("log")
    ticks = [1, 2, 3, 4, 5, 7, 10, 15, 20]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(QUALITIES[quality])
    panel.grid(alpha=0.25)


def _scatter(
    panel: Any, rows: Sequence[Row], axis: str, quality: str, *, colour: str, mark: str, label: str
) -> None:
    """Points with their 95% intervals, thin."""
    values = [row[quality] for row in rows]
    ends = [
        [abs(row[quality] - row[f"{quality}_{side}"]) for row in rows] for side in ("low", "high")
    ]
    panel.errorbar(
        [row[axis] for row in rows],
        values,
        yerr=ends,
        fmt=mark,
        color=colour,
        markersize=9 if label == "fresco" else 5.5,
        elinewidth=0.5,
        label=label,
    )


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (speed, quality) points that no other reaches in both, slowest first."""
    found: list[tuple[float, float]] = []
    for speed, quality in sorted(points, reverse=True):
        if not found or quality > found[-1][1]:
            found.append((speed, quality))
    return found[::-1]


# --- the contact sheet ------------------------------------------------------------------------


def contact_sheet(
    labels: Sequence[str], indices: Sequence[int], captions: Sequence[str], tiles: Path, path: Path
) -> None:
    """Scenes side by side, one line a method: the kept tiles of the points at ``indices``."""
    from PIL import Image

    columns = [
        (caption, [Image.open(tiles / str(scene) / f"{index}.png") for index in indices])
        for scene, caption in enumerate(captions)
    ]
    drawn = sheet(columns, labels)
    _write(path, lambda partial: drawn.save(partial, format="PNG"))


def representatives(rows: Sequence[Row], axis: str, speed: float = 5.0) -> list[Row]:
    """The rows to show: the plain one, of each method the closest to it (by SSIM) of those at least
    ``speed`` times faster, or its fastest, and every preset of ours.
    """
    shown = [row for row in rows if row["method"] == "plain"]
    for method in METHODS[1:]:
        own = [row for row in rows if row["method"] == method and not row["ablation"]]
        if method == "fresco":
            shown += own
        elif own:
            fast = [row for row in own if row[axis] >= speed]
            key = "ssim" if fast else axis
            shown.append(max(fast or own, key=itemgetter(key)))
    return shown


def label_of(row: Row, axis: str) -> str:
    """A row in the margin of the sheet: its method, setting and how many times faster."""
    parts = (row["method"], row["preset"], row["variant"], f"{row[axis]:.1f}x")
    return ", ".join(part for part in parts if part)


def _write(path: Path, save: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        partial.replace(path)


def main(result: Path) -> None:
    """Draw the plot of a stored result, beside it."""
    path = result.with_name(f"{result.stem}-pareto.png")
    pareto(json.loads(result.read_text(encoding="utf-8")), path)
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
