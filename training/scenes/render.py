"""Scenes to pixels: drawings of one style over a textured background, with a light and shadows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from fresco_trt.bench.scenes.scene import COLOURS
from training.scenes.textures import share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from training.scenes.scene import Backdrop, Item, Scene

    Pixels = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float32]

BRIGHT, DIM = 1.25, 0.6
"""What a light from one side makes of colours there, and at the other side."""

TOWARDS = {
    "evenly": (0, 0),
    "from the left": (-1, 0),
    "from the right": (1, 0),
    "from above": (0, -1),
    "from below": (0, 1),
}
"""A light -> the direction in which it stands, across and down."""

SHADOW, SHADOW_OFFSET = 0.4, 0.07
"""How dark a shadow is, and how far from its object, in sides of the object."""


class Drawings(Protocol):
    """Where drawings come from."""

    def levels(self, name: str, style: str) -> Sequence[Image.Image]:
        """An object in a style as square RGBA pictures, each half as large as the one before.

        The drawing is as large as the square allows, and transparent around.
        """


def render(scene: Scene, drawings: Drawings, width: int, height: int | None = None) -> Pixels:
    """Draw a scene: uint8 sRGB [height, width, 3], square without a height.

    In a frame that is not square, the scene's square stands in the middle.
    """
    height = height or width
    tones = background_of(scene.backdrop, width, height)
    canvas = Image.fromarray((255 * tones + 0.5).astype(np.uint8))
    for item in scene.items:
        (drawn, alpha), corner = _sized(item, scene.style, drawings, canvas.size)
        _shade(canvas, alpha, corner, scene.light)
        canvas.paste(drawn, corner, alpha)
    return _lit(np.asarray(canvas), scene.light)


def background_of(backdrop: Backdrop, width: int, height: int) -> Floats:
    """A background without light: float32 sRGB [height, width, 3] in [0, 1]."""
    base = np.asarray(COLOURS[backdrop.colour], np.float32) / 255
    other = base * (1 - abs(backdrop.contrast)) + max(0.0, backdrop.contrast)
    share = share_of(backdrop, width, height)[..., None]
    return (base + (other - base) * share).astype(np.float32)


def coverage(
    scene: Scene, item: Item, drawings: Drawings, width: int, height: int | None = None
) -> Pixels:
    """How much of each pixel an object covers, behind others or not: uint8 [height, width]."""
    canvas = Image.new("L", (width, height or width))
    (_, alpha), corner = _sized(item, scene.style, drawings, canvas.size)
    canvas.paste(alpha, corner)
    return np.asarray(canvas)


def _sized(
    item: Item, style: str, drawings: Drawings, size: tuple[int, int]
) -> tuple[tuple[Image.Image, Image.Image], tuple[int, int]]:
    """An object's colours and coverage, and where its left upper corner lies in a frame."""
    short = min(size)
    side = max(1, round(item.side * short))
    levels = drawings.levels(item.name, style)
    drawn = next((level for level in reversed(levels) if level.width >= side), levels[0])
    drawn = drawn.resize((side, side), Image.Resampling.LANCZOS)
    if item.flipped:
        drawn = ImageOps.mirror(drawn)
    left, top = (
        round(place * short - side / 2) + (length - short) // 2
        for place, length in zip((item.x, item.y), size, strict=True)
    )
    alpha = drawn.getchannel("A")
    colours = drawn.convert("RGB") if item.paint is None else _painted(drawn, item.paint)
    return (colours, alpha), (left, top)


def _painted(drawn: Image.Image, paint: str) -> Image.Image:
    """A drawing's shades in one colour.

    Its brightest parts get the colour's own tone, however dark they were, and darker ones stay so.
    """
    shade, seen = (
        np.asarray(drawn.convert("L"), np.float32),
        np.asarray(drawn.getchannel("A")) > 127,
    )
    low, high = np.percentile(shade[seen] if seen.any() else shade, (2, 90))
    shade = (1 - (high - shade) / max(high - low, 60.0)).clip(0, 1.1)[..., None]
    tone = np.asarray(COLOURS[paint], np.float32)
    return Image.fromarray((tone * (0.4 + 0.6 * shade) + 0.5).clip(0, 255).astype(np.uint8))


def _shade(canvas: Image.Image, alpha: Image.Image, corner: tuple[int, int], light: str) -> None:
    """Darken a canvas where an object's shadow falls: away from the light, or all around it."""
    blur = max(1, round(alpha.width * SHADOW_OFFSET))
    shadow = Image.new("L", (alpha.width + 4 * blur, alpha.height + 4 * blur))
    shadow.paste(alpha.point(lambda value: int(SHADOW * value)), (2 * blur, 2 * blur))
    shadow = shadow.filter(ImageFilter.BoxBlur(blur))
    left, top = (
        at - 2 * blur - round(towards * alpha.width * SHADOW_OFFSET)
        for at, towards in zip(corner, TOWARDS[light], strict=True)
    )
    canvas.paste((0, 0, 0), (left, top), shadow)


def _lit(pixels: Pixels, light: str) -> Pixels:
    """Colours under a light, which is as bright in the middle as an even one is everywhere."""
    across, down = TOWARDS[light]
    if not across and not down:
        return pixels
    length = pixels.shape[1] if across else pixels.shape[0]
    gain = np.linspace(DIM, BRIGHT, length, dtype=np.float32)
    gain = gain if across + down > 0 else gain[::-1]
    field = gain[None, :, None] if across else gain[:, None, None]
    return (pixels * field + 0.5).clip(0, 255).astype(np.uint8)


def pixels_of(
    scenes: Sequence[Scene], drawings: Drawings, width: int, height: int | None = None
) -> Pixels:
    """Scenes as uint8 pictures [len(scenes), height, width, 3]; square without a height."""
    return np.stack([render(scene, drawings, width, height) for scene in scenes])
