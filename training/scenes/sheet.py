"""A contact sheet of scenes with their captions, for people to look at."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from training.scenes.render import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.scenes.captions import Captioned
    from training.scenes.render import Drawings

COLUMNS, LINES, LINE = 6, 5, 12
"""Pictures in a row, lines of text below each, and a line's height in pixels."""


def sheet_of(scenes: Sequence[Captioned], drawings: Drawings, side: int) -> Image.Image:
    """Pictures of scenes and the beginnings of their captions, six in a row."""
    wide, high = max(side, 128) + 8, side + LINES * LINE + 8
    sheet = Image.new("RGB", (COLUMNS * wide, -(-len(scenes) // COLUMNS) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for index, each in enumerate(scenes):
        x, y = index % COLUMNS * wide + 4, index // COLUMNS * high + 4
        sheet.paste(Image.fromarray(render(each.scene, drawings, side)), (x, y))
        lines = textwrap.wrap(each.caption, (wide - 8) // 6, max_lines=LINES, placeholder=" ...")
        pen.multiline_text(
            (x, y + side + 1), "\n".join(lines), "black", spacing=1, font_size=LINE - 2
        )
    return sheet
