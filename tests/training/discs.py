"""Drawings for tests: each object a disc in a colour of its own, without any package."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from PIL import Image, ImageDraw

from training.scenes.drawings import halvings


class Discs:
    """Drawings as scenes ask for them."""

    @lru_cache(None)  # noqa: B019
    def levels(self, name: str, style: str) -> tuple[Image.Image, ...]:
        red, green, blue = hashlib.sha256(f"{name} {style}".encode()).digest()[:3]
        drawing = Image.new("RGBA", (256, 256))
        ImageDraw.Draw(drawing).ellipse((0, 0, 255, 255), fill=(red, green, blue, 255))
        return halvings(drawing)
