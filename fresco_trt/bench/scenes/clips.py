"""Clips of scenes: one object that crosses the frame or stands still, exact in every frame.

A caption names the object, where it moves and the background's colour: "a red apple moving left to
right on blue". Place, size, flip and speed are left open. Every frame is the render of a scene, and
an object moves by the same whole number of pixels from frame to frame at sides that 64 divides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.render import renders
from fresco_trt.bench.scenes.scene import (
    CELLS,
    COLOURS,
    OBJECTS,
    Background,
    Placement,
    Scene,
    article,
    is_held_out,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    Pixels = npt.NDArray[np.uint8]

FRAMES = 13
"""Frames of a clip: four latent frames of a codec that keeps the first one and every fourth."""

DIRECTIONS: dict[str, tuple[int, int]] = {
    "standing still": (0, 0),
    "moving left to right": (1, 0),
    "moving right to left": (-1, 0),
    "moving top to bottom": (0, 1),
    "moving bottom to top": (0, -1),
}
"""What an object does, as captions say it -> its steps right and down."""

SPEEDS = (1 / 64, 1 / 32)
"""Steps from frame to frame, as fractions of the frame's side."""

SIDES = (4, 5)
"""Sides of the object in cells; at the higher speed it crosses three of the other cells."""

WORDS = ("moving", "standing", "still", "left", "right", "top", "bottom", "to")
"""Words of clips that no caption of a scene has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A scene, and how its object moves through it from there."""

    first: Scene
    direction: str
    speed: float

    @property
    def caption(self) -> str:
        (place,) = self.first.placements
        colour = self.first.background.colour
        return f"{article(place.name)} {place.name} {self.direction} on {colour}"

    def frame(self, index: int) -> Scene:
        """The scene of a frame, from 0."""
        (place,) = self.first.placements
        right, down = (step * self.speed * index for step in DIRECTIONS[self.direction])
        moved = replace(place, x=place.x + right, y=place.y + down)
        return replace(self.first, placements=(moved,))


def random_clip(rng: random.Random, *, held_out: bool = False) -> Clip:
    """Draw a clip of the training pairs, or (``held_out``) of a pair that was kept apart.

    The object is whole in every one of :data:`FRAMES` frames.
    """
    while True:
        name, colour = rng.choice(list(OBJECTS)), rng.choice(list(COLOURS))
        if is_held_out(name, colour) == held_out:
            break
    direction, speed = rng.choice(list(DIRECTIONS)), rng.choice(SPEEDS)
    side = rng.choice(SIDES)
    x, y = (_start(step, speed, side, rng) for step in DIRECTIONS[direction])
    place = Placement(name=name, x=x, y=y, side=side / CELLS, flipped=rng.random() < 0.5)
    background = Background(
        colour=colour, pattern="plain", angle=0.0, period=0.25, phase=0.0, contrast=0.0
    )
    return Clip(
        first=Scene(placements=(place,), background=background), direction=direction, speed=speed
    )


def clip_stream(seed: int, *, held_out: bool = False) -> Iterator[Clip]:
    """Random clips of one seed, without end."""
    rng = random.Random(f"clips {seed}")
    while True:
        yield random_clip(rng, held_out=held_out)


def render_clip(clip: Clip, side: int, frames: int = FRAMES) -> Pixels:
    """A clip's first frames as uint8 sRGB [frames, side, side, 3]."""
    import numpy as np

    return np.stack(list(renders([clip.frame(index) for index in range(frames)], side, side)))


def videos_of(clips: Sequence[Clip], side: int, frames: int = FRAMES) -> torch.Tensor:
    """Clips as float32 videos in [-1, 1], shape [len(clips), 3, frames, side, side]."""
    import numpy as np
    import torch

    pixels = np.stack([render_clip(clip, side, frames) for clip in clips])
    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _start(step: int, speed: float, side: int, rng: random.Random) -> float:
    """An object's first centre along an axis that it takes this step on: from the grid of cells, or
    mirrored where it moves back.
    """
    travel = abs(step) * speed * (FRAMES - 1)
    cell = rng.randint(0, int(CELLS - side - CELLS * travel))
    centre = (cell + side / 2) / CELLS
    return 1 - centre if step < 0 else centre
