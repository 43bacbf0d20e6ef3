"""Quality over speed as a picture, for benches whose points come in groups."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.figures import undominated
from fresco_trt.errors import BackendUnavailable
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Row = Mapping[str, Any]

_MARKERS = ("*", "o", "P", "s", "D", "v", "^", "<", ">", "X", "h", "d")
_TICKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What is drawn: the ``colours`` of groups, in order, a panel for each of the ``qualities``
    (key of a row -> what it is), and over what; rows of quantised engines are hollow.
    """

    title: str
    colours: Mapping[str, str]
    qualities: Mapping[str, str]
    speed: str


def beside(out: Path, ending: str) -> Path:
    """Where a picture of a result lies: its name, then the ending."""
    return out.with_name(f"{out.stem}-{ending}")


def check_plots() -> None:
    """Raise BackendUnavailable without matplotlib, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise BackendUnavailable(
            "no matplotlib to plot what is measured",
            expected="matplotlib, which comes with the extra 'bench'",
            fix="pip install 'fresco-trt[bench]'",
        )


def pareto(rows: Sequence[Row], plot: Plot, path: Path) -> None:
    """Draw each quality over the measured speed-up, as a PNG; the first row is the plain one.

    A line joins the points of a group that no other of it beats in both. Raises ImportError without
    matplotlib.
    """
    figures: Any = import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(6.4 * len(plot.qualities), 4.6), layout="constrained")
    panels = figure.subplots(1, len(plot.qualities))
    for panel, quality in zip(panels, plot.qualities, strict=True):
        _panel(panel, rows, plot, quality)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=-(-len(labels) // 2), frameon=False
    )
    figure.suptitle(plot.title)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _panel(panel: Any, rows: Sequence[Row], plot: Plot, quality: str) -> None:
    recipes = dict.fromkeys(row.get("quant") for row in rows)
    series = product(zip(plot.colours.items(), _MARKERS, strict=False), recipes)
    for ((group, colour), marker), recipe in series:
        own = [row for row in rows if (row["group"], row.get("quant")) == (group, recipe)]
        if not own:
            continue
        speeds, values = [row["speedup"] for row in own], [row[quality] for row in own]
        front = undominated(list(zip(speeds, values, strict=True)))
        panel.plot(*zip(*front, strict=True), color=colour, linewidth=1.0, alpha=0.6)
        ends = [
            [abs(row[quality] - row[f"{quality}_{side}"]) for row in own]
            for side in ("low", "high")
        ]
        panel.errorbar(
            speeds,
            values,
            yerr=ends,
            fmt=marker,
            color=colour,
            markerfacecolor=colour if recipe is None else "white",
            label=group if recipe is None else f"{group}, {recipe}",
            markersize=5.5,
            elinewidth=0.5,
        )
    plain = next(iter(plot.colours.values()))
    panel.axhline(rows[0][quality], color=plain, linewidth=0.7, linestyle=":")
    panel.set_xscale("log")
    most = max(row["speedup"] for row in rows)
    ticks = [tick for tick in _TICKS if tick <= max(most, 5)]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(plot.speed)
    panel.set_ylabel(plot.qualities[quality])
    panel.grid(alpha=0.25)
