"""The two pictures beside a stored document: quality over speed, and the drawings themselves.

The last step of the bench. Both are written under another name first and then renamed.

    python -m fresco_trt.bench.figures RESULT.json

draws the first of them again.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fresco_trt.bench.methods import COLOURS, METHODS
from fresco_trt.bench.sheet import sheet
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Row = Mapping[str, Any]

_MARKERS = ("*", "o", "s", "D", "v", "^", "P", "h", "X")
_TICKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60)

AXES = {"speedup": "speed-up, measured", "flops_ratio": "times fewer FLOPs"}
QUALITIES = {"score": "score", "ssim": "SSIM to the reference"}


def pareto(document: Mapping[str, Any], path: Path) -> None:
    """Draw quality over speed-up and over FLOPs as a PNG: score above, SSIM below.

    Ablations are small and hollow, and so are a sibling's markers; a line joins those points of
    each method that no other of it beats in both, for each model. An axis without figures is
    left out. Raises ImportError without matplotlib.
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
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _panel(panel: Any, rows: Sequence[Row], axis: str, quality: str) -> None:
    for method, marker in zip(METHODS, _MARKERS, strict=True):
        colour = COLOURS[method]
        own = [row for row in rows if row["method"] == method and row[axis] is not None]
        own = [row for row in own if row[quality] is not None]
        changed = [row for row in own if row["ablation"]]
        if not own:
            continue
        for model, whole in _by_model([row for row in own if not row["ablation"]]).items():
            front = undominated([(row[axis], row[quality]) for row in whole])
            panel.plot(*zip(*front, strict=True), color=colour, linewidth=1.0, alpha=0.6)
            sibling = None if model == rows[0].get("model") else model
            label = method if sibling is None else f"{method}, {sibling}"
            style = {"fmt": marker, "color": colour, "label": label}
            markers = _scatter(panel, whole, axis, quality, style)
            if sibling is not None:
                markers.set_markerfacecolor("none")
        panel.scatter(
            [row[axis] for row in changed],
            [row[quality] for row in changed],
            s=14,
            facecolors="none",
            edgecolors=colour,
            linewidths=0.7,
        )
    panel.set_xscale("log")
    most = max(row[axis] for row in rows if row[axis] is not None)
    ticks = [tick for tick in _TICKS if tick <= max(most, 20)]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(QUALITIES[quality])
    panel.grid(alpha=0.25)


def _by_model(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    """Rows by what drew them; None for those of a file that does not say it for each row."""
    found: dict[str | None, list[Row]] = {}
    for row in rows:
        found.setdefault(row.get("model"), []).append(row)
    return found


def _scatter(
    panel: Any, rows: Sequence[Row], axis: str, quality: str, style: Mapping[str, str]
) -> Any:
    """Points with their 95% intervals, thin; the markers."""
    values = [row[quality] for row in rows]
    ends = [
        [abs(row[quality] - row[f"{quality}_{side}"]) for row in rows] for side in ("low", "high")
    ]
    drawn = panel.errorbar(
        [row[axis] for row in rows],
        values,
        yerr=ends,
        markersize=9 if style["label"].startswith("fresco") else 5.5,
        elinewidth=0.5,
        **style,
    )
    return drawn.lines[0]


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
    with replacing(path) as partial:
        drawn.save(partial, format="PNG")


def representatives(rows: Sequence[Row], axis: str, speed: float = 5.0) -> list[Row]:
    """The rows to show: the plain one, of each method and model the closest to it (by SSIM) of
    those at least ``speed`` times faster, or its fastest, and every preset of ours; of the caches
    on top of a preset the closest. All of these unquantised; of each model and precision follows
    the preset that quantising changes most.
    """
    quantised = [row for row in rows if row.get("twin_ssim") is not None]
    rows = [row for row in rows if row not in quantised]
    shown = [row for row in rows if row["method"] == "plain"]
    for method in METHODS[1:]:
        drawn = [row for row in rows if row["method"] == method and not row["ablation"]]
        if method == "fresco":
            shown += _of_ours(drawn)
            continue
        for own in _by_model(drawn).values():
            fast = [row for row in own if (row[axis] or 0.0) >= speed]
            shown.append(max(fast or own, key=lambda row: row["ssim" if fast else axis] or 0.0))
    return [*shown, *_of_quantised(quantised)]


def _of_ours(rows: Sequence[Row]) -> list[Row]:
    cached = [row for row in rows if has_interval(row)]
    closest: dict[tuple[str | None, str], Row] = {}
    for row in sorted(cached, key=lambda row: row["ssim"]):
        closest[row.get("model"), row["preset"]] = row
    return [row for row in rows if row not in cached or row in closest.values()]


def _of_quantised(rows: Sequence[Row]) -> list[Row]:
    presets = [row for row in rows if row["method"] == "fresco" and not has_interval(row)]
    worst: dict[tuple[str, str], Row] = {}
    for row in sorted(presets, key=lambda row: -row["twin_ssim"]):
        worst[row["model"], row["precision"]] = row
    return [row for row in presets if row in worst.values()]


def has_interval(row: Mapping[str, Any]) -> bool:
    """Whether a row's variant is a cache at an interval, on top of what the preset says."""
    return "interval" in (row["variant"] or "")


def label_of(row: Row, axis: str, model: str | None = None) -> str:
    """A row in the margin of the sheet: its method, setup, precision where it is quantised, and
    how many times faster, by its FLOPs where there are no seconds; and what drew it, where that is
    not ``model``.
    """
    who = row.get("model", model)
    sibling = None if who == model else who
    by_flops = f"{row['flops_ratio']:.1f}x by FLOPs"
    speed = by_flops if row[axis] is None else f"{row[axis]:.1f}x"
    codes = None if row.get("twin_ssim") is None else row["precision"]
    parts = (row["method"], sibling, row["preset"], row["variant"], codes, speed)
    return ", ".join(part for part in parts if part)


def main(result: Path) -> None:
    """Draw the plot of a stored result, beside it."""
    path = result.with_name(f"{result.stem}-pareto.png")
    pareto(json.loads(result.read_text(encoding="utf-8")), path)
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
