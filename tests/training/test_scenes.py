"""The next demo's scenes: what captions state is true, and what is kept apart stays apart."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache

import pytest

from fresco_trt.bench.scenes.scene import COLOURS
from training.scenes.captions import (
    KINDS,
    Captioned,
    Fact,
    captioned,
    is_true,
    sentence,
    vocabulary,
)
from training.scenes.objects import OBJECTS, STYLES, counted
from training.scenes.scene import (
    APART,
    LIGHTS,
    RELATIONS,
    TEXTURES,
    Item,
    Scene,
    apart_relation,
    apart_style,
    apart_texture,
    holds,
    kept_apart,
    overlapping,
    random_scene,
    relations_of,
    separate,
)


@cache
def drawn(count: int = 250, seed: int = 3) -> tuple[Captioned, ...]:
    rng = random.Random(seed)
    return tuple(captioned(random_scene(rng), rng) for _ in range(count))


def test_a_seed_gives_the_same_scenes_and_captions_every_time() -> None:
    rng = random.Random(3)
    assert [captioned(random_scene(rng), rng) for _ in range(20)] == list(drawn()[:20])
    assert drawn()[0].scene != drawn()[1].scene


def test_every_stated_fact_is_true_of_its_scene() -> None:
    for each in drawn():
        assert all(is_true(fact, each.scene) for fact in each.facts), each
    assert {fact.kind for each in drawn() for fact in each.facts} == set(KINDS)


def test_a_fact_of_something_else_is_not_true() -> None:
    scene = next(each.scene for each in drawn() if len(each.scene.items) == 4)
    names = [item.name for item in scene.items]
    other = next(name for name in OBJECTS if name not in names)
    assert not is_true(Fact("object", (other,)), scene)
    assert not is_true(Fact("paint", (other, "red")), scene)
    assert not is_true(Fact("relation", (other, "above", names[0])), scene)
    for kind, values, there in (
        ("texture", TEXTURES, scene.backdrop.texture),
        ("colour", COLOURS, scene.backdrop.colour),
        ("light", LIGHTS, scene.light),
        ("style", STYLES, scene.style),
    ):
        assert [v for v in values if is_true(Fact(kind, (v,)), scene)] == [there]
    for item in scene.items:
        true = [colour for colour in COLOURS if is_true(Fact("paint", (item.name, colour)), scene)]
        assert true == ([] if item.paint is None else [item.paint])


def test_relations_contradict_their_opposites_and_agree_with_their_inverse() -> None:
    told = {relation for each in drawn() for _, relation, _ in relations_of(each.scene)}
    assert told == {"left of", "above", "in front of"}
    for each in drawn():
        for first, relation, second in relations_of(each.scene):
            assert not holds(each.scene, second, relation, first)
            assert not holds(each.scene, first, RELATIONS[relation], second)
            assert holds(each.scene, second, RELATIONS[relation], first)


def test_objects_are_whole_in_the_frame_and_at_most_two_overlap() -> None:
    sides = []
    for each in drawn():
        items = each.scene.items
        assert len({item.name for item in items}) == len(items) <= 4
        assert all(item.paint != each.scene.backdrop.colour for item in items)
        for item in items:
            sides.append(item.side)
            for place in (item.x, item.y):
                assert item.side / 2 <= place <= 1 - item.side / 2
        pairs = [(a, b) for i, a in enumerate(items) for b in items[:i] if not separate(a, b)]
        assert len(pairs) <= 1
        assert all(overlapping(*pair) for pair in pairs)
    assert min(sides) >= 0.2
    assert max(sides) <= 0.8
    assert min(sides) < 0.22
    assert max(sides) > 0.75


def test_what_is_in_front_leaves_most_of_the_other_to_be_seen() -> None:
    back = Item(name="cat", x=0.5, y=0.5, side=0.4)
    assert overlapping(Item(name="dog", x=0.72, y=0.55, side=0.4), back)
    assert not overlapping(Item(name="dog", x=0.55, y=0.5, side=0.4), back)
    assert not overlapping(Item(name="dog", x=0.95, y=0.5, side=0.4), back)


def _pairs_kept_apart(scene: Scene) -> dict[str, bool]:
    """The rule of each kind, over every pair of a scene in either order."""
    names = [item.name for item in scene.items]
    return {
        "style": any(apart_style(name, scene.style) for name in names),
        "texture": any(apart_texture(name, scene.backdrop.texture) for name in names),
        "relation": any(
            apart_relation(a, relation, b)
            for a in names
            for b in names
            for relation in RELATIONS
            if a != b and holds(scene, a, relation, b)
        ),
    }


def test_training_never_shows_a_pair_that_is_kept_apart() -> None:
    assert not any(any(_pairs_kept_apart(each.scene).values()) for each in drawn())


@pytest.mark.parametrize("kind", APART)
def test_scenes_kept_apart_have_one_kind_of_such_pairs_and_say_so(kind: str) -> None:
    rng = random.Random(5)
    for _ in range(6):
        each = captioned(random_scene(rng, apart=kind), rng, detail=1.0)
        assert kept_apart(each.scene) == {kind}
        assert [k for k, there in _pairs_kept_apart(each.scene).items() if there] == [kind]
        relations = [fact.says for fact in each.facts if fact.kind == "relation"]
        assert kind != "relation" or any(apart_relation(*said) for said in relations)  # type: ignore[arg-type]


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'size' .* style, texture, relation"):
        random_scene(random.Random(0), apart="size")


def test_every_object_keeps_most_of_its_styles_and_textures() -> None:
    styles = [sum(apart_style(name, style) for style in STYLES) for name in OBJECTS]
    assert set(styles) == {0, 1}
    assert {sum(apart_texture(name, t) for t in TEXTURES) for name in OBJECTS} == {1}
    told = [apart_relation("cat", r, name) for r in RELATIONS for name in OBJECTS if name != "cat"]
    assert 0.03 < sum(told) / len(told) < 0.08


def test_a_picture_states_nothing() -> None:
    for each in drawn():
        assert (each.caption == "a picture") == (not each.facts)
        nothing = captioned(each.scene, random.Random(0), detail=0)
        assert (nothing.caption, nothing.facts) == ("a picture", ())
    assert 0.08 < sum(not each.facts for each in drawn()) / len(drawn()) < 0.2


def test_everything_is_named_where_all_is_asked_for() -> None:
    for each in drawn()[:50]:
        facts = captioned(each.scene, random.Random(1), detail=1).facts
        kinds = [fact.kind for fact in facts]
        assert kinds.count("object") == len(each.scene.items)
        assert kinds.count("paint") == sum(item.paint is not None for item in each.scene.items)
        assert {"texture", "colour", "light", "style"} <= set(kinds)
        assert len(set(facts)) == len(facts)


def _said(text: str, values: object) -> list[str]:
    """Which of some names a text has, longer ones first, so that no name is found in another."""
    longest = sorted(values, key=len, reverse=True)  # type: ignore[call-overload]
    return re.findall(rf"\b(?:{'|'.join(longest)})\b", text)


def test_a_caption_says_what_its_facts_state_and_nothing_else() -> None:
    for each in drawn():
        said = {kind: [f.says for f in each.facts if f.kind == kind] for kind in KINDS}
        # "the cat left of the dog" names a cat and a dog again.
        text, *clauses = each.caption.split(", the ")
        if clauses:
            assert len(clauses) == len(said["relation"])
        assert sorted(_said(text, OBJECTS)) == sorted(name for (name,) in said["object"])
        colours = [colour for _, colour in said["paint"]] + [c for (c,) in said["colour"]]
        assert sorted(_said(each.caption, COLOURS)) == sorted(colours)
        assert _said(each.caption, TEXTURES) == [v for (v,) in said["texture"]]
        assert _said(each.caption, LIGHTS) == [v for (v,) in said["light"]]
        assert _said(each.caption, STYLES) == [v for (v,) in said["style"]]
        told = [
            relation
            for first, relation, second in said["relation"]
            if re.search(rf"{first} {relation} (?:the|an?|some) (?:\w+ )?{second}", each.caption)
        ]
        assert told == [relation for _, relation, _ in said["relation"]]
        beside_light = each.caption.partition(", lit ")[0]
        assert _said(beside_light, RELATIONS) == told


def test_every_word_of_a_caption_is_in_the_vocabulary() -> None:
    known = set(vocabulary())
    said = {word for each in drawn() for word in re.findall(r"\w+", each.caption)}
    assert said <= known
    assert known - said <= {word for name in OBJECTS for word in name.split()}


def test_sentences_read_as_english() -> None:
    facts = (
        Fact("object", ("owl",)),
        Fact("object", ("grapes",)),
        Fact("paint", ("owl", "red")),
        Fact("relation", ("grapes", "left of", "owl")),
        Fact("texture", ("wooden",)),
        Fact("colour", ("orange",)),
        Fact("light", ("evenly",)),
        Fact("style", ("3d",)),
    )
    assert sentence(facts) == (
        "some grapes left of a red owl on an orange wooden background, lit evenly, in 3d style"
    )
    three = (*facts[:4], Fact("object", ("hourglass",)))
    assert sentence(three) == (
        "a red owl, some grapes and an hourglass, the grapes left of the owl"
    )
    assert sentence(facts[4:5]) == "a picture with a wooden background"
    assert [counted(n) for n in ("unicorn", "umbrella")] == ["a unicorn", "an umbrella"]
    assert counted("unicorn", "orange") == "an orange unicorn"


def test_painting_one_object_changes_no_other_fact() -> None:
    each = drawn()[0]
    first, *others = each.scene.items
    painted = replace(each.scene, items=(replace(first, paint="gray"), *others))
    assert is_true(Fact("paint", (first.name, "gray")), painted)
    for fact in each.facts:
        assert fact.kind == "paint" or is_true(fact, painted)
