"""Procedural textures: how much of the second tone is in each pixel of a background.

A texture looks the same at every size: its edges are a pixel wide, and its noise is drawn on a grid
of its own before it is enlarged.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from training.scenes.scene import Backdrop

    Floats = npt.NDArray[np.float32]

TURN = 2 * math.pi


def share_of(backdrop: Backdrop, width: int, height: int) -> Floats:
    """Share of the second tone, float32 [height, width] in [0, 1].

    Lengths are in units of the shorter side.
    """
    x, y = _grid(width, height)
    share: Floats = _SHARES[backdrop.texture](backdrop, x, y)
    return share.clip(0, 1)


@cache
def _grid(width: int, height: int) -> tuple[Floats, Floats]:
    """Places of pixel centres, [1, width] and [height, 1]."""
    short = np.float32(min(width, height))
    x = (np.arange(width, dtype=np.float32) + 0.5) / short
    y = (np.arange(height, dtype=np.float32) + 0.5) / short
    return x[None, :], y[:, None]


def _along(angle: float, x: Floats, y: Floats) -> Floats:
    """Distance along a direction from the frame's left upper corner."""
    along: Floats = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    return along


def _hard(periods: Floats, frequency: float, x: Floats) -> Floats:
    """A square wave of so many periods, its edges a pixel wide; ``frequency`` a shorter side."""
    pixel = float(x[0, 1] - x[0, 0])
    wave: Floats = 0.5 + np.sin(TURN * periods) / (TURN * frequency * pixel)
    return wave.clip(0, 1)


def _noise(seed: int, cells: tuple[int, int], x: Floats, y: Floats) -> Floats:
    """Smooth noise, about uniform in [0, 1], of so many cells across and down."""
    from PIL import Image

    values = np.random.default_rng([seed, *cells]).random((cells[1] + 3, cells[0] + 3), np.float32)
    width, height = x.shape[1], y.shape[0]
    # The outer cells have neighbours on one side only; they are enlarged and not shown.
    box = (1.5, 1.5, cells[0] + 1.5, cells[1] + 1.5)
    grown = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(grown)


def _cloud(seed: int, cells: int, x: Floats, y: Floats, octaves: int = 3) -> Floats:
    """Noise of several octaves, the finer the weaker, of mean 0 and in about [-1, 1]."""
    total = sum(
        0.6**i * (_noise(seed + i, (cells << i, cells << i), x, y) - 0.5) for i in range(octaves)
    )
    return np.asarray(total, np.float32)


def _grainy(b: Backdrop, x: Floats, y: Floats) -> Floats:
    return 0.5 + 1.3 * _cloud(b.seed, 7 + round(b.frequency), x, y, octaves=2)


def _wooden(b: Backdrop, x: Floats, y: Floats) -> Floats:
    # Planks lie or stand; their rings and grain are noise drawn out along them.
    lying = math.cos(2 * b.angle) > 0
    across, cells = (y, (2, 7)) if lying else (x, (7, 2))
    grain = _noise(b.seed + 1, (3, 48) if lying else (48, 3), x, y)
    rings = 2 * _noise(b.seed, cells, x, y) + 0.6 * b.frequency * across + b.phase
    wood: Floats = 0.65 * (rings % 1) + 0.35 * grain
    return wood


def _marble(b: Backdrop, x: Floats, y: Floats) -> Floats:
    bent = _along(b.angle, x, y) * b.frequency / 3 + 0.9 * _cloud(b.seed, 3, x, y, octaves=4)
    away = np.abs(np.sin(math.pi * (bent + b.phase))) ** 0.7
    return np.asarray(1 - 1.8 * away, np.float32)


def _wavy(b: Backdrop, x: Floats, y: Floats) -> Floats:
    bend = np.sin(TURN * (2.2 * _along(b.angle + math.pi / 2, x, y) + b.phase))
    return _hard(b.frequency * (_along(b.angle, x, y) + 0.06 * bend), b.frequency, x)


def _striped(b: Backdrop, x: Floats, y: Floats) -> Floats:
    return _hard(b.frequency * _along(b.angle, x, y) + b.phase, b.frequency, x)


def _checked(b: Backdrop, x: Floats, y: Floats) -> Floats:
    frequency = 0.7 * b.frequency
    first, second = (
        _hard(frequency * _along(b.angle + turn, x, y) + b.phase, frequency, x)
        for turn in (0, math.pi / 2)
    )
    return first + second - 2 * first * second


def _dotted(b: Backdrop, x: Floats, y: Floats) -> Floats:
    u, v = (b.frequency * _along(b.angle + t, x, y) + b.phase for t in (0, math.pi / 2))
    radius = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    pixel = b.frequency * float(x[0, 1] - x[0, 0])
    dots: Floats = 0.5 + (0.3 - radius) / pixel
    return dots


def _graded(b: Backdrop, x: Floats, y: Floats) -> Floats:
    # Around a point, or there and back: from one side to the other only the light goes.
    if b.phase < 0.5:
        across, down = x - 0.5 - 0.3 * math.cos(b.angle), y - 0.5 - 0.3 * math.sin(b.angle)
        distance: Floats = np.hypot(across, down)
        return 1.2 * distance
    wave = np.sin(TURN * (0.25 * b.frequency * _along(b.angle, x, y) + b.phase))
    return 0.5 + 0.5 * np.asarray(wave, np.float32)


_SHARES: dict[str, Callable[[Backdrop, Floats, Floats], Floats]] = {
    "grainy": _grainy,
    "wooden": _wooden,
    "marble": _marble,
    "wavy": _wavy,
    "dotted": _dotted,
    "striped": _striped,
    "checked": _checked,
    "graded": _graded,
}
