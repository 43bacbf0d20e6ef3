"""Scenes and their captions: what a demo picture shows, before any pixel exists.

A caption names objects, a background colour and a background pattern. Everything else (place, size,
flip, stripe direction, tone) is left open, so that early denoising steps have a layout to decide.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

OBJECTS: dict[str, str] = {
    "red apple": "red-apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "pineapple": "pineapple",
    "carrot": "carrot",
    "mushroom": "mushroom",
    "cactus": "cactus",
    "sunflower": "sunflower",
    "star": "star",
    "red heart": "red-heart",
    "moon": "crescent-moon",
    "rocket": "rocket",
    "red car": "automobile",
    "house": "house",
    "umbrella": "umbrella",
    "bell": "bell",
    "crown": "crown",
    "guitar": "guitar",
    "soccer ball": "soccer-ball",
    "butterfly": "butterfly",
    "frog": "frog",
    "penguin": "penguin",
    "cat": "cat-face",
    "pig": "pig-face",
}
"""Object name in a caption -> icon name in the Noto emoji set."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 62, 62),
    "orange": (245, 150, 60),
    "yellow": (246, 218, 90),
    "green": (96, 180, 96),
    "blue": (80, 130, 225),
    "purple": (150, 100, 200),
    "pink": (246, 160, 190),
    "gray": (165, 165, 170),
}
"""Background colour name -> sRGB of its base tone."""

PATTERNS: tuple[str, ...] = ("plain", "graded", "striped", "checked")

TWO_OBJECT_SHARE = 0.25
"""Fraction of scenes that show two objects."""


CELLS = 8
"""Objects lie on this many cells per side: the token grid of the coarsest stage at full size.

Free places would cost several times the training for the same openness: about fifty layouts of a
single object, with flips and backgrounds, already leave early steps much to decide.
"""

SIDES, PAIR_SIDE = (4, 5, 6), 4
"""Sides in cells of a single object, and of each of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One object in the frame: centre and side as fractions of the frame, mirrored or not.

    ``tint`` is a colour that the whole object has instead of its own: edits paint objects.
    """

    name: str
    x: float
    y: float
    side: float
    flipped: bool
    tint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """Colour and pattern as the caption names them; angle (degrees), period and phase are free."""

    colour: str
    pattern: str
    angle: float
    period: float
    phase: float
    contrast: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A complete picture description, independent of the size it is rendered at."""

    placements: tuple[Placement, ...]
    background: Background

    @property
    def caption(self) -> str:
        names = " and ".join(f"{article(p.name)} {p.name}" for p in self.placements)
        return f"{names} on a {self.background.pattern} {self.background.colour} background"


def article(noun: str) -> str:
    """The indefinite article of an English noun ("an umbrella")."""
    return "an" if noun[0] in "aeiou" else "a"


def is_held_out(name: str, colour: str) -> bool:
    """Whether an object never stands on this background colour in the training data.

    One colour of each object is kept apart, so that composition can be tested on unseen pairs.
    """
    objects, colours = list(OBJECTS), list(COLOURS)
    return colours.index(colour) == (5 * objects.index(name) + 3) % len(colours)


def random_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw a scene of the training pairs, or (`held_out`) one whose first pair was kept apart."""
    count = 2 if rng.random() < TWO_OBJECT_SHARE else 1
    while True:
        names = rng.sample(list(OBJECTS), count)
        colour = rng.choice(list(COLOURS))
        apart = [is_held_out(name, colour) for name in names]
        if apart[0] if held_out else not any(apart):
            return scene_of(names, colour, rng.choice(PATTERNS), rng)


def scene_of(names: list[str], colour: str, pattern: str, rng: random.Random) -> Scene:
    """A scene with the given content and a random layout."""
    place = _one_placement if len(names) == 1 else _two_placements
    background = Background(
        colour=colour,
        pattern=pattern,
        angle=rng.choice((0.0, 45.0, 90.0, 135.0)),
        period=0.25,
        phase=rng.choice((0.0, 0.25, 0.5, 0.75)),
        contrast=rng.uniform(0.22, 0.38),
    )
    return Scene(placements=place(names, rng), background=background)


def _one_placement(names: list[str], rng: random.Random) -> tuple[Placement, ...]:
    side = rng.choice(SIDES)
    return (_placement(names[0], side, _cell(side, rng), _cell(side, rng), rng),)


def _two_placements(names: list[str], rng: random.Random) -> tuple[Placement, ...]:
    # Each object owns one half of the frame along a random axis and moves freely along the other.
    across, swapped = rng.random() < 0.5, rng.random() < 0.5
    placed = []
    for index, name in enumerate(names):
        half, other = PAIR_SIDE * (index ^ swapped), _cell(PAIR_SIDE, rng)
        x, y = (half, other) if across else (other, half)
        placed.append(_placement(name, PAIR_SIDE, x, y, rng))
    return tuple(placed)


def _cell(side: int, rng: random.Random) -> int:
    return rng.randint(0, CELLS - side)


def _placement(name: str, side: int, left: int, top: int, rng: random.Random) -> Placement:
    return Placement(
        name=name,
        x=(left + side / 2) / CELLS,
        y=(top + side / 2) / CELLS,
        side=side / CELLS,
        flipped=rng.random() < 0.5,
    )
