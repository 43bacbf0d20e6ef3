"""Scenes to pixels: Noto emoji icons rasterised once, composed over a procedural background.

Icons are vector graphics of the npm package `@iconify-json/noto` (Apache-2.0, see NOTICE); the ones
used here are stored in `icons.json`. A scene renders to the same layout at every size.
"""

from __future__ import annotations

import functools
import io
import json
from importlib import resources
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, Background, Placement, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Floats = npt.NDArray[np.float32]

ICON_PIXELS = 256


def render(scene: Scene, width: int, height: int | None = None) -> npt.NDArray[np.uint8]:
    """Draw a scene: uint8 sRGB of shape [height, width, 3] (square when height is not given).

    In a frame that is not square, fractions refer to the shorter side for an object's size and to
    each side for its place.
    """
    (picture,) = renders([scene], width, height or width)
    return picture


def renders(scenes: Sequence[Scene], width: int, height: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw scenes that share a background, as :func:`render` does; the background is drawn once."""
    import numpy as np
    from PIL import Image

    pixels = background_pixels(scenes[0].background, width, height)
    empty = Image.fromarray((pixels * 255 + 0.5).astype(np.uint8), "RGB")
    for scene in scenes:
        canvas = empty.copy()
        for placement in scene.placements:
            _paste(canvas, placement)
        yield np.asarray(canvas)


def background_pixels(background: Background, width: int, height: int) -> Floats:
    """Background of a scene: float32 sRGB in [0, 1], shape [height, width, 3].

    The share of the darker tone is averaged over 2x2 sub-pixels, so edges are anti-aliased.
    """
    import numpy as np

    base = np.asarray(COLOURS[background.colour], np.float32) / 255
    share = _dark_share(
        background.pattern, background.angle, background.period, background.phase, width, height
    )
    mixed: Floats = base * (1 - background.contrast * share)
    return mixed


# Scenes draw their patterns from a few angles and phases, and training asks for each of them often.
@functools.lru_cache(maxsize=512)
def _dark_share(
    pattern: str, angle: float, period: float, phase: float, width: int, height: int
) -> Floats:
    """Share of the darker tone in each pixel, [height, width, 1]."""
    sharp = _sharp_share(pattern, angle, period, phase, 2 * width, 2 * height)
    share: Floats = sharp.reshape(height, 2, width, 2).mean(axis=(1, 3))[..., None]
    share.flags.writeable = False
    return share


def _sharp_share(
    pattern: str, angle: float, period: float, phase: float, width: int, height: int
) -> Floats:
    import numpy as np

    short = min(width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / short, (y + 0.5) / short
    radians = np.deg2rad(angle)
    along = x * np.cos(radians) + y * np.sin(radians)
    across = y * np.cos(radians) - x * np.sin(radians)
    bands = np.floor(2 * along / period + 2 * phase)
    crossing = np.floor(2 * across / period + phase)
    shares = {
        "plain": np.zeros_like(x),
        "graded": (along - along.min()) / (along.max() - along.min()) * 1.6,
        "striped": np.mod(bands, 2),
        "checked": np.mod(bands + crossing, 2),
    }
    chosen: Floats = shares[pattern].astype(np.float32)
    return chosen


def _paste(canvas: Image, placement: Placement) -> None:
    side, corner = _box(placement, canvas.width, canvas.height)
    colours, alpha = _sized_icon(placement.name, placement.flipped, side)
    if placement.tint is not None:
        colours = _tinted(colours, placement.tint)
    canvas.paste(colours, corner, alpha)


def coverage(placement: Placement, width: int, height: int) -> npt.NDArray[np.uint8]:
    """How much of each pixel an object covers: uint8 [height, width], 255 for all of it."""
    import numpy as np
    from PIL import Image

    side, corner = _box(placement, width, height)
    canvas = Image.new("L", (width, height))
    canvas.paste(_sized_icon(placement.name, placement.flipped, side)[1], corner)
    return np.asarray(canvas)


def _box(placement: Placement, width: int, height: int) -> tuple[int, tuple[int, int]]:
    """An object's side and its left upper corner, in pixels of a frame."""
    side = max(1, round(placement.side * min(width, height)))
    left = round(placement.x * width - side / 2)
    top = round(placement.y * height - side / 2)
    return side, (left, top)


def _tinted(colours: Image, tint: str) -> Image:
    """An icon's shades in one colour: dark where it is dark, the colour's own tone where it is
    white.
    """
    import numpy as np
    from PIL import Image

    shade = np.asarray(colours.convert("L"), np.float32)[..., None] / 255
    tone = np.asarray(COLOURS[tint], np.float32)
    return Image.fromarray((tone * (0.35 + 0.65 * shade) + 0.5).astype(np.uint8))


@functools.lru_cache(maxsize=1024)
def _sized_icon(name: str, flipped: bool, side: int) -> tuple[Image, Image]:
    """An object's icon of ``side`` pixels, as RGB and alpha."""
    from PIL import Image

    icon = _icon(name, flipped).resize(
        (side, side), Image.Resampling.BOX if side * 3 < ICON_PIXELS else Image.Resampling.LANCZOS
    )
    return icon.convert("RGB"), icon.getchannel("A")


@functools.cache
def _icon(name: str, flipped: bool) -> Image:
    """An object's icon as straight-alpha RGBA of ICON_PIXELS a side."""
    import resvg_py
    from PIL import Image, ImageOps

    body = icon_bodies()[OBJECTS[name]]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=ICON_PIXELS, height=ICON_PIXELS)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return ImageOps.mirror(image) if flipped else image


@functools.cache
def icon_bodies() -> dict[str, str]:
    """SVG bodies (128x128 user units) of the demo's icons, by Noto name."""
    text = (
        resources.files("fresco_trt.bench.scenes")
        .joinpath("icons.json")
        .read_text(encoding="utf-8")
    )
    bodies: dict[str, str] = json.loads(text)["icons"]
    return bodies
