"""The two pictures beside a stored document: quality over speed, and strips of clips to look at.

    python -m bench.video.figures bench/results/video.json

draws the first of them again.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bench import plots
from bench.plots import check_plots as check_plots
from bench.video.points import COLOURS
from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from bench.video.engines import Engines, Frames
    from fresco_trt.bench.instrument import Draw
    from fresco_trt.bench.scenes.clips import Clip

    Row = Mapping[str, Any]

QUALITIES = {"score": "clips right", "ssim": "SSIM to the plain clip"}

SHOWN, FRAMES, SIDE = 4, 5, 96
"""Clips on the sheet, frames of each, and the side that these are drawn at."""

MARGIN, CAPTION = 190, 26

AT_LEAST = 4.0
"""The speed-up from which rows are chosen for the sheet."""


def pareto(document: Mapping[str, Any], path: Path) -> None:
    """Draw clips that are right, and closeness to the plain ones, over the measured speed-up, as a
    PNG. Raises ImportError without matplotlib.
    """
    width, height, frames = document["size"]
    plot = plots.Plot(
        title=f"{document['model']} {width}x{height}, {frames} frames, {document['backend']} "
        f"engines, {document['clips']} clips; bars are 95% intervals",
        colours={str(group): colour for group, colour in COLOURS.items()},
        qualities=QUALITIES,
        speed="speed-up over the plain sampler, measured",
    )
    plots.pareto(document["rows"], plot, path)


# --- the sheet --------------------------------------------------------------------------------


def strip_sheet(
    engines: Engines,
    draws: Mapping[str, Draw],
    rows: Sequence[Row],
    clips: Sequence[Clip],
    path: Path,
) -> None:
    """The first clips, one below another: the true frames, and what a point of each group made of
    them with the seeds that were measured; a JPEG.
    """
    shown = representatives(rows)
    labels = ["true clip", *(f"{row['point']}, {row['speedup']:.1f}x" for row in shown)]
    bands = []
    for number, clip in enumerate(clips[:SHOWN]):
        inputs = engines.prepared(clip)
        drawn = [draws[row["point"]](inputs, number) for row in shown]
        strips = [engines.true_frames(clip), *(engines.frames(each.latents) for each in drawn)]
        bands.append((clip.caption, [_strip(each) for each in strips]))
    with replacing(path) as partial:
        _sheet(bands, labels).save(partial, format="JPEG", quality=90)


def representatives(rows: Sequence[Row]) -> list[Row]:
    """The rows to show: of each group the one with most clips right among those at least
    :data:`AT_LEAST` times faster, or its fastest, and the plain one.
    """
    shown = []
    for group in COLOURS:
        own = [row for row in rows if row["group"] == group]
        fast = [row for row in own if row["speedup"] >= AT_LEAST]
        if fast:
            shown.append(max(fast, key=lambda row: (row["score"], row["ssim"])))
        elif own:
            shown.append(max(own, key=lambda row: row["speedup"]))
    return shown


def _strip(frames: Frames) -> Image:
    """Some frames uint8 [F,H,W,3] side by side."""
    from PIL.Image import fromarray

    from fresco_trt.pipelines.video import strip

    return strip([fromarray(each).resize((SIDE, SIDE)) for each in frames], FRAMES)


def _sheet(bands: Sequence[tuple[str, Sequence[Image]]], labels: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw

    band = CAPTION + SIDE * len(labels)
    widest = max(strip.width for _, strips in bands for strip in strips)
    canvas = Image.new("RGB", (MARGIN + widest, band * len(bands)), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (caption, strips) in enumerate(bands):
        top = number * band
        pen.text((MARGIN, top + 6), caption, fill="black", font_size=13)
        for line, (label, strip) in enumerate(zip(labels, strips, strict=True)):
            place = top + CAPTION + line * SIDE
            pen.text((4, place + 6), textwrap.fill(label, 28), fill="black", font_size=11)
            canvas.paste(strip, (MARGIN, place))
    return canvas


def main(result: Path) -> None:
    """Draw the plot of a stored result, beside it."""
    path = plots.beside(result, "pareto.png")
    pareto(json.loads(result.read_text(encoding="utf-8")), path)
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
