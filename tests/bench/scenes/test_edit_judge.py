"""The judge of edits: a true target is right, an unedited source is wrong, and the rest counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fresco_trt.bench.quality import DECIBELS
from fresco_trt.bench.scenes.edit_judge import (
    EditVerdict,
    edit_score,
    edit_verdicts,
    judged_edits,
)
from fresco_trt.bench.scenes.edits import KINDS, changed
from fresco_trt.bench.scenes.judge import Judge, load_judge
from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.bench.scenes.scene import COLOURS, Scene

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

EDITS = judged_edits(28)
SOURCES = pictures_of([edit.source for edit in EDITS], 64)
TARGETS = pictures_of([edit.target for edit in EDITS], 64)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def repainted(scene: Scene) -> Scene:
    """A scene with its painted object in the colour after its own."""
    colours = [*COLOURS, next(iter(COLOURS))]
    places = (
        replace(p, tint=colours[colours.index(p.tint) + 1]) if p.tint else p
        for p in scene.placements
    )
    return replace(scene, placements=tuple(places))


def test_edits_to_judge_are_of_every_kind_and_the_same_every_time() -> None:
    assert set(Counter(edit.kind for edit in EDITS).values()) == {len(EDITS) / len(KINDS)}
    assert judged_edits(28) == EDITS != judged_edits(28, seed=1)


def test_true_targets_are_right_and_leave_the_rest_alone(judge: Judge) -> None:
    for edit, found in zip(EDITS, edit_verdicts(judge, TARGETS, EDITS), strict=True):
        assert found == EditVerdict(made=True, outside=DECIBELS), edit.instruction


def test_unedited_sources_are_wrong(judge: Judge) -> None:
    for edit, found in zip(EDITS, edit_verdicts(judge, SOURCES, EDITS), strict=True):
        assert found == EditVerdict(made=False, outside=DECIBELS), edit.instruction


def test_an_object_painted_in_another_colour_is_wrong(judge: Judge) -> None:
    painted = [edit for edit in EDITS if edit.kind == "paint"]
    others = [repainted(edit.target) for edit in painted]
    assert not any(each.made for each in edit_verdicts(judge, pictures_of(others, 64), painted))


def test_the_rest_is_measured_where_the_edit_may_change_nothing(judge: Judge) -> None:
    masks = torch.stack([torch.from_numpy(changed(edit, 64)) for edit in EDITS])[:, None]
    noise = 0.2 * torch.ones_like(TARGETS)
    inside = edit_verdicts(judge, TARGETS + noise * masks, EDITS)
    assert {found.outside for found in inside} == {DECIBELS}
    outside = edit_verdicts(judge, TARGETS + noise * ~masks, EDITS)
    assert all(found.outside == pytest.approx(20, abs=0.01) for found in outside)  # 2 / 0.2


def test_a_score_has_the_share_the_mean_and_their_intervals() -> None:
    found = [EditVerdict(made=made, outside=30.0) for made in (True, True, True, False)]
    score = edit_score(found)
    assert score.made[0] == 0.75
    assert score.made[1] < 0.75 < score.made[2]
    assert score.outside == (30.0, 30.0, 30.0)
    with pytest.raises(ValueError, match="no edits"):
        edit_score([])


def test_every_edit_has_its_picture(judge: Judge) -> None:
    with pytest.raises(ValueError, match="27 pictures of 28 edits"):
        edit_verdicts(judge, SOURCES[1:], EDITS)
