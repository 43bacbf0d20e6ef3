"""Edits of scenes: the target is what the instruction says, and nothing else of it is changed."""

from __future__ import annotations

import random
import re

import pytest

from fresco_trt.bench.scenes.edits import KINDS, WORDS, Edit, changed, random_edit
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS, Background, is_held_out

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

EDITS = [random_edit(random.Random(seed), kind) for kind in KINDS for seed in range(40)]

_NAME, _COLOUR, _PATTERN = (f"({'|'.join(words)})" for words in (OBJECTS, COLOURS, PATTERNS))
_BACKGROUND = "(?:make|change) the background (?:to )?"
FORMS = {
    "colour": _BACKGROUND + _COLOUR,
    "pattern": _BACKGROUND + _PATTERN,
    "background": f"{_BACKGROUND}{_PATTERN} {_COLOUR}",
    "replace": f"replace the {_NAME} with an? {_NAME}",
    "add": f"add an? {_NAME}",
    "remove": f"remove the {_NAME}",
    "paint": f"make the {_NAME} {_COLOUR}",
}


def said(edit: Edit) -> tuple[str, ...]:
    """What an instruction names, in its order."""
    found = re.fullmatch(FORMS[edit.kind], edit.instruction)
    assert found is not None, edit.instruction
    return found.groups()


def facts(edit: Edit) -> tuple[list[str], list[str], Background, Background]:
    """Objects and backgrounds before and after."""
    before, after = edit.source, edit.target
    names = ([p.name for p in scene.placements] for scene in (before, after))
    return *names, before.background, after.background


@pytest.mark.parametrize("edit", EDITS[::8], ids=lambda edit: edit.kind)
def test_only_what_may_change_has_other_pixels(edit: Edit) -> None:
    from fresco_trt.bench.scenes.render import render

    before, after = (render(scene, 48) for scene in (edit.source, edit.target))
    differs, mask = (before != after).any(-1), changed(edit, 48)
    assert not differs[~mask].any()
    assert differs[mask].mean() > 0.1
    assert 0 < mask.sum() < mask.size


def test_a_background_becomes_the_one_that_is_named_and_keeps_the_rest() -> None:
    for edit in EDITS:
        if edit.kind in ("colour", "pattern", "background"):
            *_, old, new = facts(edit)
            named = set(said(edit))
            assert edit.source.placements == edit.target.placements
            assert named == {new.colour, new.pattern} - (
                {old.colour} if edit.kind == "pattern" else set()
            ) - ({old.pattern} if edit.kind == "colour" else set())
            assert (old.colour != new.colour) == (edit.kind != "pattern")
            assert (old.pattern != new.pattern) == (edit.kind != "colour")


def test_an_object_is_replaced_added_removed_or_painted() -> None:
    for edit in EDITS:
        before, after, old, new = facts(edit)
        named = said(edit)
        if edit.kind in ("replace", "add", "remove", "paint"):
            assert old == new
        if edit.kind == "replace":
            assert [named[1] if name == named[0] else name for name in before] == after
        elif edit.kind == "add":
            assert [*before, *named] == after
        elif edit.kind == "remove":
            assert sorted([*after, *named]) == sorted(before)
        elif edit.kind == "paint":
            tints = {p.name: p.tint for p in edit.target.placements}
            assert tints == {**dict.fromkeys(before), named[0]: named[1]}
            assert named[1] != new.colour


def test_a_second_object_lies_across_from_the_first() -> None:
    for edit in EDITS:
        for scene in (edit.source, edit.target):
            if len(scene.placements) == 2:
                first, second = scene.placements
                assert (second.x, second.y) == (1 - first.x, 1 - first.y)
                assert max(abs(first.x - second.x), abs(first.y - second.y)) >= first.side


def test_no_object_stands_on_the_colour_that_it_is_kept_from() -> None:
    for edit in EDITS:
        for scene in (edit.source, edit.target):
            assert not any(is_held_out(p.name, scene.background.colour) for p in scene.placements)


def test_instructions_have_their_own_words_and_those_of_captions() -> None:
    captions = {word for edit in EDITS for word in edit.source.caption.split()}
    used = {word for edit in EDITS for word in edit.instruction.split()}
    assert used - captions == set(WORDS)
