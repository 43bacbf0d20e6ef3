"""The timeline of one request as a PNG: its stages, their steps, and the parts of these.

Beside the Chrome trace, of the same tracks. Needs matplotlib, as the figures of the bench do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fresco_trt.files.atomic_file import replacing
from fresco_trt.profile.spans import HOST
from fresco_trt.profile.tracks import Bar, Track
from fresco_trt.run.trace import (
    BYPASS,
    DECODE,
    FULL,
    REPLAY,
    REQUEST,
    STAGE,
    STEP,
    TEXT,
    TRANSITION,
)

if TYPE_CHECKING:
    from pathlib import Path

# Okabe and Ito's colours, which people tell apart who see fewer of them.
COLOURS: Mapping[str, str] = {
    TEXT: "#e69f00",
    FULL: "#0072b2",
    BYPASS: "#56b4e9",
    REPLAY: "#0072b2",
    TRANSITION: "#d55e00",
    DECODE: "#cc79a7",
    HOST: "#9a9a9a",
}
_HOLDERS = {STAGE: ("#d9d9d9", "#ececec"), STEP: ("#c4d4e0", "#dfe8ee")}
_ROWS = ((STAGE, TEXT, DECODE), (STEP, TRANSITION), (FULL, BYPASS, REPLAY))
_NAMES = ("stages", "steps", "engines")
_UNITS = ((1e9, "seconds"), (1e6, "milliseconds"), (1e3, "microseconds"))
_INCHES, _ROW_INCHES, _DPI = 12.0, 0.5, 130
_CHARACTER = 0.0105
"""Of the axis' width, about what a character takes."""


def timeline(tracks: Sequence[Track], shares: Mapping[str, int], title: str, path: Path) -> None:
    """Draw the tracks of a request over its time, and below it one bar of ``shares`` by part, in
    tenths of a percent. The first track is the host's; a further one is a device's.

    Raises ImportError without matplotlib, and as :func:`fresco_trt.files.atomic_file.writing`.
    """
    figures: Any = import_module("matplotlib.figure")
    host, *devices = tracks
    rows = [
        *(
            (name, [bar for bar in host.bars if bar.name in kinds])
            for name, kinds in zip(_NAMES, _ROWS, strict=True)
        ),
        *((track.name, list(track.bars)) for track in devices),
    ]
    size = (_INCHES, _ROW_INCHES * len(rows) + 2.4)
    figure = figures.Figure(figsize=size, layout="constrained")
    heights = [_ROW_INCHES * len(rows), 0.45]
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _draw_rows(upper, rows, max((bar.end for _, bars in rows for bar in bars), default=1))
    _draw_shares(lower, shares)
    figure.suptitle(title, fontsize=11)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def _draw_rows(panel: Any, rows: Sequence[tuple[str, Sequence[Bar]]], end: int) -> None:
    scale, unit = next((each for each in _UNITS if end >= each[0]), _UNITS[-1])
    for row, (_, bars) in enumerate(rows):
        for index, bar in enumerate(bars):
            length = bar.end - bar.begin
            panel.barh(
                row,
                length / scale,
                left=bar.begin / scale,
                height=0.86,
                color=_colour(bar.name, index),
                linewidth=0,
            )
            text = _text(bar, length / end)
            if text:
                dark = bar.name in (FULL, REPLAY, TRANSITION)
                panel.text(
                    (bar.begin + length / 2) / scale,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                    clip_on=True,
                )
    panel.set_yticks(range(len(rows)), [name for name, _ in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, end / scale)
    panel.set_xlabel(f"{unit} since the request began", loc="left")
    panel.grid(axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _text(bar: Bar, width: float) -> str:
    """What there is room for in a bar of that share of the axis: its label, its number, nothing."""
    number = {STAGE: bar.place.stage, STEP: bar.place.step}.get(bar.name)
    texts = [] if bar.name == STEP else [bar.label]
    texts += [] if number is None else [str(number)]
    return next((text for text in texts if width > _CHARACTER * len(text)), "")


def _draw_shares(panel: Any, shares: Mapping[str, int]) -> None:
    left = 0
    for name, share in shares.items():
        if share:
            label = f"{name} {share / 10:.1f}%"
            panel.barh(0, share, left=left, color=_colour(name, 0), linewidth=0, label=label)
            left += share
    panel.set_xlim(0, max(left, 1))
    panel.set_yticks([0], ["shares"])
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    if not left:
        return
    panel.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=len(shares),
        frameon=False,
        fontsize=9,
    )


def _colour(name: str, index: int) -> str:
    """Of a part its own; of what holds others, the one of two in turn."""
    if name in _HOLDERS:
        return _HOLDERS[name][index % 2]
    return COLOURS.get(name, "#eeeeee" if name == REQUEST else COLOURS[HOST])
