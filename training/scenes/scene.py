"""Scenes: what a picture shows, before any pixel exists, and the pairs that are kept apart.

A scene holds everything; its caption names a part of it (captions.py). Lengths are fractions of the
frame's shorter side, places are fractions of a square of that side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.scene import COLOURS
from training.scenes.objects import OBJECTS, STYLES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

TEXTURES: tuple[str, ...] = (
    "grainy",
    "wooden",
    "marble",
    "wavy",
    "dotted",
    "striped",
    "checked",
    "graded",
)
LIGHTS: tuple[str, ...] = ("evenly", "from the left", "from the right", "from above", "from below")
RELATIONS: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
"""A relation of two objects -> the same one said of them in the other order."""

COUNTS, SHARES = (1, 2, 3, 4), (0.28, 0.34, 0.22, 0.16)
SIDES = {1: (0.3, 0.8), 2: (0.2, 0.6), 3: (0.2, 0.45), 4: (0.2, 0.38)}
"""Number of objects in a scene -> the smallest and the largest side of each."""

PAINTED, OVERLAPPING = 0.3, 0.4
"""Share of objects in one colour throughout, and of scenes of more objects where two overlap."""

OVERLAP = 0.6
"""Farthest that the centres of overlapping objects are, over half the sum of their sides."""

APART: tuple[str, ...] = ("style", "texture", "relation")
"""Kinds of pairs of which some never occur in training."""

_INDEX = {name: index for index, name in enumerate(OBJECTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One object: its centre, the side of its square, mirrored or not, painted or as it is."""

    name: str
    x: float
    y: float
    side: float
    flipped: bool = False
    paint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """Texture and colour as captions name them; the rest is free.

    ``angle`` is in radians, ``frequency`` in periods a frame. ``contrast`` is how much black (below
    0) or white the second tone has. ``seed`` places noise.
    """

    texture: str
    colour: str
    angle: float
    frequency: float
    phase: float
    contrast: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A complete description of a picture; ``items`` are in order from back to front."""

    items: tuple[Item, ...]
    style: str
    backdrop: Backdrop
    light: str


def holds(scene: Scene, first: str, relation: str, second: str) -> bool:
    """Whether a relation of two objects of a scene is there for everyone to see.

    Beside and above each other are objects whose squares pass each other, but for a quarter of the
    smaller one. In front is the one of two overlapping objects that hides a part of the other.
    """
    if relation in ("right of", "below", "behind"):
        return holds(scene, second, RELATIONS[relation], first)
    order = [item.name for item in scene.items]
    a, b = (scene.items[order.index(name)] for name in (first, second))
    if relation == "in front of":
        return order.index(first) > order.index(second) and overlapping(a, b)
    distance = b.x - a.x if relation == "left of" else b.y - a.y
    return distance >= (a.side + b.side) / 2 - min(a.side, b.side) / 4


def relations_of(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Every relation that holds between two of the scene's objects, in one order of the two."""
    names = [item.name for item in scene.items]
    for first in names:
        for second in names:
            for relation in ("left of", "above", "in front of"):
                if first != second and holds(scene, first, relation, second):
                    yield first, relation, second


def overlapping(front: Item, back: Item) -> bool:
    """Whether one object surely hides a part of another, and leaves the larger part to be seen.

    Drawings are round rather than square, and some are narrow, so the middles have to overlap.
    """
    across, down = abs(front.x - back.x), abs(front.y - back.y)
    reach, least = (front.side + back.side) / 2, min(front.side, back.side)
    hidden = math.prod(max(0.0, min(least, reach - apart)) for apart in (across, down))
    distance = math.hypot(across, down)
    # Centres keep a distance that a judge of coarse cells can tell.
    return 0.18 <= distance <= OVERLAP * reach and hidden <= 0.45 * back.side**2


def separate(a: Item, b: Item) -> bool:
    """Whether the squares of two objects pass each other, but for a tenth of the smaller one."""
    distance = max(abs(a.x - b.x), abs(a.y - b.y))
    return distance >= (a.side + b.side) / 2 - min(a.side, b.side) / 10


def apart_style(name: str, style: str) -> bool:
    """Whether training never shows this object in this style: half of the objects lack one."""
    index = _INDEX[name]
    return index % 2 == 0 and STYLES.index(style) == index // 2 % len(STYLES)


def apart_texture(name: str, texture: str) -> bool:
    """Whether training never shows this object on this texture: each object lacks one."""
    return TEXTURES.index(texture) == (5 * _INDEX[name] + 3) % len(TEXTURES)


def apart_relation(first: str, relation: str, second: str) -> bool:
    """Whether training never shows these two objects so, in whichever order it is said."""
    if relation in ("right of", "below", "behind"):
        first, relation, second = second, RELATIONS[relation], first
    mixed = 7 * _INDEX[first] + 11 * _INDEX[second]
    return (mixed + list(RELATIONS).index(relation)) % 19 == 0


def kept_apart(scene: Scene) -> set[str]:
    """Kinds of pairs in a scene that training never shows."""
    found: dict[str, bool] = {
        "style": any(apart_style(item.name, scene.style) for item in scene.items),
        "texture": any(apart_texture(item.name, scene.backdrop.texture) for item in scene.items),
        "relation": any(apart_relation(*relation) for relation in relations_of(scene)),
    }
    return {kind for kind, there in found.items() if there}


def random_scene(
    rng: random.Random, *, apart: str | None = None, names: Sequence[str] = tuple(OBJECTS)
) -> Scene:
    """A scene of the training pairs, or one with a pair of the kind ``apart`` and no other kind.

    ``names`` are the objects to choose from, four at least. Raises ValueError for another kind.
    """
    if apart not in (None, *APART):
        raise ValueError(f"{apart!r} pairs kept apart; expected one of {', '.join(APART)} or None")
    while True:
        scene = _any_scene(rng, names)
        if kept_apart(scene) == ({apart} if apart else set()):
            return scene


def _any_scene(rng: random.Random, names: Sequence[str]) -> Scene:
    count = rng.choices(COUNTS, SHARES)[0]
    colour = rng.choice(list(COLOURS))
    # An object painted in the colour that it stands on could not be made out.
    paints = [name for name in COLOURS if name != colour]
    items = tuple(
        replace(item, paint=rng.choice(paints)) if rng.random() < PAINTED else item
        for item in _placed(rng.sample(names, count), rng)
    )
    backdrop = Backdrop(
        texture=rng.choice(TEXTURES),
        colour=colour,
        angle=rng.uniform(0, 2 * math.pi),
        frequency=rng.uniform(3, 7),
        phase=rng.random(),
        contrast=rng.choice((-1, 1)) * rng.uniform(0.3, 0.5),
        seed=rng.randrange(2**32),
    )
    return Scene(items=items, style=rng.choice(STYLES), backdrop=backdrop, light=rng.choice(LIGHTS))


def _placed(names: Sequence[str], rng: random.Random) -> list[Item]:
    """Objects at random places in the frame: two overlap or none does, the others stand apart."""
    overlap = len(names) > 1 and rng.random() < OVERLAPPING
    while True:
        items: list[Item] = []
        for name in names:
            fits = overlapping if overlap and len(items) == 1 else separate
            item = _fitting(name, items, SIDES[len(names)], fits, rng)
            if item is None:
                break
            items.append(item)
        else:
            return items


def _fitting(
    name: str,
    items: Sequence[Item],
    sides: tuple[float, float],
    fits: Callable[[Item, Item], bool],
    rng: random.Random,
) -> Item | None:
    """An object that ``fits`` to all that are there, or None where some tries found no place."""
    for _ in range(20):
        side = rng.uniform(*sides)
        x, y = (rng.uniform(side / 2, 1 - side / 2) for _ in range(2))
        item = Item(name=name, x=x, y=y, side=side, flipped=rng.random() < 0.5)
        if all(fits(item, other) for other in items):
            return item
    return None
