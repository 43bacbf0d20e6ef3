"""Captions that name a part of a scene, and what exactly they state of it.

A caption keeps its facts as data: a judge scores each of them by itself, and nothing has to read
the sentence again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.scene import COLOURS
from training.scenes.objects import OBJECTS, STYLES, counted
from training.scenes.scene import (
    LIGHTS,
    RELATIONS,
    TEXTURES,
    Scene,
    apart_relation,
    holds,
    relations_of,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a caption states: its kind (KINDS) and what it says.

    ``object``: (name,). ``paint``: (name, colour). ``relation``: (name, relation, name).
    ``texture``, ``colour`` (both of the background), ``light`` and ``style``: (value,).
    """

    kind: str
    says: tuple[str, ...]


KINDS: tuple[str, ...] = ("object", "paint", "relation", "texture", "colour", "light", "style")


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """A scene, a caption of it and the facts that the caption states."""

    scene: Scene
    caption: str
    facts: tuple[Fact, ...]


def is_true(fact: Fact, scene: Scene) -> bool:
    """Whether a fact is true of a scene."""
    paints = {item.name: item.paint for item in scene.items}
    says = fact.says
    match fact.kind:
        case "object":
            return says[0] in paints
        case "paint":
            return says[0] in paints and paints[says[0]] == says[1]
        case "relation":
            first, relation, second = says
            return first in paints and second in paints and holds(scene, first, relation, second)
    there = {
        "texture": scene.backdrop.texture,
        "colour": scene.backdrop.colour,
        "light": scene.light,
        "style": scene.style,
    }
    return there[fact.kind] == says[0]


def captioned(scene: Scene, rng: random.Random, *, detail: float | None = None) -> Captioned:
    """A caption that names a random part of a scene.

    Each thing is named with probability ``detail``: 0 is "a picture", 1 is everything, with one
    relation fewer than there are objects, and first those that training never shows. None draws
    it: 0 for a tenth of the captions, 1 for a quarter, from 0.2 to 1 for the others.
    """
    if detail is None:
        (detail,) = rng.choices((0.0, 1.0, rng.uniform(0.2, 1)), (0.1, 0.25, 0.65))
    facts = tuple(_stated(scene, rng, detail))
    return Captioned(scene=scene, caption=sentence(facts), facts=facts)


def _stated(scene: Scene, rng: random.Random, detail: float) -> Iterator[Fact]:
    items = [item for item in scene.items if rng.random() < detail]
    rng.shuffle(items)
    for item in items:
        yield Fact("object", (item.name,))
        if item.paint is not None and rng.random() < detail:
            yield Fact("paint", (item.name, item.paint))
    named = [item.name for item in items]
    held = [r for r in relations_of(scene) if r[0] in named and r[2] in named]
    rng.shuffle(held)
    held.sort(key=lambda relation: not apart_relation(*relation))
    pairs: set[frozenset[str]] = set()
    for first, relation, second in held:
        pair = frozenset((first, second))
        if pair not in pairs and len(pairs) < len(named) - 1 and rng.random() < detail:
            pairs.add(pair)
            yield Fact("relation", _either_way((first, relation, second), rng))
    for fact in (
        Fact("texture", (scene.backdrop.texture,)),
        Fact("colour", (scene.backdrop.colour,)),
        Fact("light", (scene.light,)),
        Fact("style", (scene.style,)),
    ):
        if rng.random() < detail:
            yield fact


def _either_way(relation: tuple[str, str, str], rng: random.Random) -> tuple[str, str, str]:
    first, how, second = relation
    return relation if rng.random() < 0.5 else (second, RELATIONS[how], first)


def sentence(facts: Sequence[Fact]) -> str:
    """Facts as one caption, which says nothing else.

    "a red cat left of an owl on a blue wooden background, lit from the left, in flat style"
    """
    objects = [fact.says[0] for fact in facts if fact.kind == "object"]
    paints = {fact.says[0]: fact.says[1] for fact in facts if fact.kind == "paint"}
    relations = [fact.says for fact in facts if fact.kind == "relation"]
    stated = {fact.kind: fact.says[0] for fact in facts}
    nouns = {name: counted(name, paints.get(name)) for name in objects}
    if len(objects) == 2 and len(relations) == 1:
        first, relation, second = relations[0]
        text, relations = f"{nouns[first]} {relation} {nouns[second]}", []
    else:
        text = _listed([nouns[name] for name in objects]) or "a picture"
    background = [stated[kind] for kind in ("colour", "texture") if kind in stated]
    if background:
        article = "an" if background[0][0] in "aeiou" else "a"
        text += f" {'on' if objects else 'with'} {article} {' '.join(background)} background"
    clauses = [text, *(f"the {a} {relation} the {b}" for a, relation, b in relations)]
    if "light" in stated:
        clauses.append(f"lit {stated['light']}")
    if "style" in stated:
        clauses.append(f"in {stated['style']} style")
    return ", ".join(clauses)


def _listed(nouns: Sequence[str]) -> str:
    *others, last = nouns or [""]
    return f"{', '.join(others)} and {last}" if others else last


def vocabulary() -> list[str]:
    """Every word that a caption may have, in a fixed order."""
    names = [*OBJECTS, *COLOURS, *TEXTURES, *LIGHTS, *RELATIONS, *STYLES]
    words = {word for name in names for word in name.split()}
    others = "a an and background in lit on picture some style the with"
    return sorted(words | set(others.split()))
