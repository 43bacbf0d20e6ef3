"""Instruction edits of scenes: what is asked for, the scene before and after, and what changes.

Every target follows from its source and the instruction, so that an edit can be scored exactly: an
object that comes in has the place of the one that it replaces, or the place across from the other
one, and is not mirrored; a new pattern lies as :data:`NEW` says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.render import coverage
from fresco_trt.bench.scenes.scene import (
    CELLS,
    COLOURS,
    OBJECTS,
    PAIR_SIDE,
    PATTERNS,
    Background,
    Placement,
    Scene,
    article,
    is_held_out,
    scene_of,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WORDS = ("add", "change", "make", "remove", "replace", "the", "to", "with")
"""Words of instructions that no caption has."""

KINDS = ("colour", "pattern", "background", "replace", "add", "remove", "paint")
"""What an edit may be: of the background its colour, its pattern or both; of an object, replaced by
another one, a second one added, one removed, one painted."""

NEW = {"angle": 0.0, "period": 0.25, "phase": 0.0, "contrast": 0.3}
"""How a pattern lies that an edit brings in."""

_BACKGROUND = KINDS[:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An instruction, the scene that it is about, and that scene once the instruction is done."""

    kind: str
    instruction: str
    source: Scene
    target: Scene


def random_edit(rng: random.Random, kind: str | None = None) -> Edit:
    """Draw an edit, of any kind or of one; no object stands on the colour it is held out from."""
    kind = kind or rng.choice(KINDS)
    while True:
        edit = _edit(kind, _source(kind, rng), rng)
        if not any(
            is_held_out(place.name, scene.background.colour)
            for scene in (edit.source, edit.target)
            for place in scene.placements
        ):
            return edit


def changed(edit: Edit, width: int, height: int | None = None) -> npt.NDArray[np.bool_]:
    """Where an edit may change a picture: bool [height, width].

    The background wherever no object covers all of it, and otherwise what either object covers any
    of. Everything else has the same pixels before and after.
    """
    import numpy as np

    height = height or width
    mask = np.zeros((height, width), bool)
    if edit.kind in _BACKGROUND:
        for place in edit.source.placements:
            mask |= coverage(place, width, height) == 255
        return ~mask
    for place in set(edit.source.placements) ^ set(edit.target.placements):
        mask |= coverage(place, width, height) > 0
    return mask


# --- how they are drawn -----------------------------------------------------------------------


def _source(kind: str, rng: random.Random) -> Scene:
    """A scene of one object or of two that lie across from each other."""
    pair = kind == "remove" or (kind != "add" and rng.random() < 0.4)
    names = rng.sample(list(OBJECTS), 2 if pair else 1)
    colour, pattern = rng.choice(list(COLOURS)), rng.choice(PATTERNS)
    scene = scene_of(names[:1], colour, pattern, rng)
    if not pair and kind != "add":
        return scene
    first = _in_a_half(scene.placements[0], rng)
    others = [_across(first, name) for name in names[1:]]
    return replace(scene, placements=(first, *others))


def _in_a_half(place: Placement, rng: random.Random) -> Placement:
    """The object small enough for a second one, in one half of the frame along a random axis."""
    cells = [PAIR_SIDE * rng.randint(0, 1), rng.randint(0, CELLS - PAIR_SIDE)]
    rng.shuffle(cells)
    x, y = ((cell + PAIR_SIDE / 2) / CELLS for cell in cells)
    return replace(place, x=x, y=y, side=PAIR_SIDE / CELLS)


def _across(place: Placement, name: str) -> Placement:
    """Another object, mirrored through the centre of the frame."""
    return replace(place, name=name, x=1 - place.x, y=1 - place.y, flipped=False)


def _edit(kind: str, source: Scene, rng: random.Random) -> Edit:
    places = source.placements
    if kind in _BACKGROUND:
        instruction, background = _new_background(kind, source.background, rng)
        target = replace(source, background=background)
        return Edit(kind=kind, instruction=instruction, source=source, target=target)
    place = rng.choice(places)
    rest = tuple(each for each in places if each is not place)
    if kind == "remove":
        instruction, after = f"remove the {place.name}", rest
    elif kind == "paint":
        tints = [each for each in COLOURS if _can_be(place.name, each, source.background)]
        tint = rng.choice(tints)
        instruction = f"make the {place.name} {tint}"
        after = tuple(replace(each, tint=tint) if each is place else each for each in places)
    else:
        name = rng.choice([each for each in OBJECTS if each not in {p.name for p in places}])
        if kind == "add":
            instruction, after = f"add {article(name)} {name}", (*places, _across(place, name))
        else:
            instruction = f"replace the {place.name} with {article(name)} {name}"
            new = replace(place, name=name, flipped=False)
            after = tuple(new if each is place else each for each in places)
    target = replace(source, placements=after)
    return Edit(kind=kind, instruction=instruction, source=source, target=target)


def _new_background(kind: str, old: Background, rng: random.Random) -> tuple[str, Background]:
    colour, pattern = old.colour, old.pattern
    if kind != "pattern":
        colour = rng.choice([each for each in COLOURS if each != colour])
    if kind != "colour":
        pattern = rng.choice([each for each in PATTERNS if each != pattern])
    said = {"colour": colour, "pattern": pattern, "background": f"{pattern} {colour}"}[kind]
    form = rng.choice(("make the background {}", "change the background to {}"))
    new = replace(old, colour=colour, pattern=pattern)
    if kind != "colour":
        new = Background(colour=colour, pattern=pattern, **NEW)
    return form.format(said), new


def _can_be(name: str, tint: str, background: Background) -> bool:
    """Whether a painted object is another one than before, and can be told from the background."""
    return tint != background.colour and not name.startswith(tint)
