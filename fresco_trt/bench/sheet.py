"""Pictures side by side on one sheet, under their captions."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

COLUMNS, TILE, CAPTION, MARGIN = 8, 144, 44, 140


def sheet(scenes: Sequence[tuple[str, Sequence[Image]]], labels: Sequence[str] = ()) -> Image:
    """Tiles of (caption, its pictures from top to bottom), eight scenes to a band.

    ``labels`` say what each line of pictures is, in a margin on the left.
    """
    from PIL import Image, ImageDraw

    lines, margin = len(scenes[0][1]), MARGIN if labels else 0
    band = lines * TILE + CAPTION
    bands = -(-len(scenes) // COLUMNS)
    canvas = Image.new("RGB", (margin + COLUMNS * TILE, bands * band), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (caption, pictures) in enumerate(scenes):
        left, top = margin + index % COLUMNS * TILE, index // COLUMNS * band
        pen.text((left + 3, top + 2), textwrap.fill(caption, 22), fill="black", font_size=11)
        for line, picture in enumerate(pictures):
            place = (left, top + CAPTION + line * TILE)
            canvas.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), place)
    for index, label in enumerate([*labels] * bands):
        top = index // lines * band + CAPTION + index % lines * TILE
        pen.text((3, top + 4), textwrap.fill(label, 22), fill="black", font_size=11)
    return canvas
