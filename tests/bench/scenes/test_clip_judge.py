"""The judge of clips: a true clip is right; a wrong object, way or colour, or shaking, is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fresco_trt.bench.scenes.clip_judge import (
    ClipVerdict,
    clip_score,
    clip_verdicts,
    direction_of,
    judged_clips,
    track,
)
from fresco_trt.bench.scenes.clips import DIRECTIONS, FRAMES, Clip, videos_of
from fresco_trt.bench.scenes.judge import Judge, load_judge
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, is_held_out

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

CLIPS = judged_clips(20)
VIDEOS = videos_of(CLIPS, 64)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def with_another(clip: Clip, *, name: bool = False, colour: bool = False) -> Clip:
    """A clip with the next object or the next colour of the lists."""

    def after(known: str, names: list[str]) -> str:
        return [*names, names[0]][names.index(known) + 1]

    (place,) = clip.first.placements
    background = clip.first.background
    if name:
        place = replace(place, name=after(place.name, list(OBJECTS)))
    if colour:
        background = replace(background, colour=after(background.colour, list(COLOURS)))
    return replace(clip, first=replace(clip.first, placements=(place,), background=background))


def test_clips_to_judge_are_half_of_pairs_never_trained_and_the_same_every_time() -> None:
    assert judged_clips(20) == CLIPS != judged_clips(40, seed=1)
    apart = [is_held_out(c.first.placements[0].name, c.first.background.colour) for c in CLIPS]
    assert apart == [False, True] * 10
    assert {clip.direction for clip in CLIPS} == set(DIRECTIONS)


def test_true_clips_are_right_and_do_not_flicker(judge: Judge) -> None:
    for clip, found in zip(CLIPS, clip_verdicts(judge, VIDEOS, CLIPS), strict=True):
        assert found == ClipVerdict(object=True, colour=True, direction=True, flicker=0.0), clip
        assert found.right


def test_a_wrong_object_is_wrong_in_that_alone(judge: Judge) -> None:
    named = [with_another(clip, name=True) for clip in CLIPS]
    found = clip_verdicts(judge, VIDEOS, named)
    assert not any(each.object or each.right for each in found)
    assert all(each.colour and each.direction for each in found)


def test_a_wrong_colour_is_wrong_in_that_alone(judge: Judge) -> None:
    found = clip_verdicts(judge, VIDEOS, [with_another(clip, colour=True) for clip in CLIPS])
    assert not any(each.colour or each.right for each in found)
    assert all(each.object and each.direction for each in found)


def test_a_clip_played_backwards_goes_the_other_way(judge: Judge) -> None:
    found = clip_verdicts(judge, VIDEOS.flip(2), CLIPS)
    for clip, each in zip(CLIPS, found, strict=True):
        assert each.direction == (clip.direction == "standing still")
        assert each.object


def test_a_frozen_clip_stands_still(judge: Judge) -> None:
    frozen = VIDEOS[:, :, 6:7].expand_as(VIDEOS)
    assert {direction_of(video) for video in frozen} == {"standing still"}
    found = clip_verdicts(judge, frozen, CLIPS)
    right = [clip.direction == "standing still" for clip in CLIPS]
    assert [each.direction for each in found] == right


def test_a_slanting_motion_and_an_empty_clip_go_nowhere() -> None:
    moving = next(v for v, c in zip(VIDEOS, CLIPS, strict=True) if "to right" in c.caption)
    assert direction_of(moving) == "moving left to right"
    slanting = torch.stack([moving[:, i].roll(2 * i - 12, 1) for i in range(FRAMES)], dim=1)
    assert direction_of(slanting) is None
    assert direction_of(torch.zeros_like(moving)) is None


def test_the_track_is_where_the_object_is() -> None:
    video = torch.full((3, 3, 16, 32), 0.5)
    for frame, (row, column) in enumerate([(4, 10), (4, 11), (5, 12)]):
        video[:, frame, row : row + 2, column : column + 4] = -0.5
    wanted = torch.tensor([[12, 5], [13, 5], [14, 6]]) / torch.tensor([32, 16])
    torch.testing.assert_close(track(video), wanted.double())


def test_a_shaken_clip_flickers_and_says_what_it_is_compared_with(judge: Judge) -> None:
    shaken = torch.stack([VIDEOS[:, :, i].roll(4 * (i % 2), -1) for i in range(FRAMES)], dim=2)
    truth, none = (clip_verdicts(judge, shaken, CLIPS, each) for each in (None, shaken))
    assert all(each.flicker > 1 for each in truth)
    assert all(each.flicker == 0 for each in none)
    lighter = VIDEOS + 0.1 * torch.tensor([0.0, 1.0]).repeat(7)[:FRAMES].view(1, 1, -1, 1, 1)
    for clip, each in zip(CLIPS, clip_verdicts(judge, lighter, CLIPS), strict=True):
        if clip.direction == "standing still":  # every second frame is 12.75 grey levels lighter
            assert each.flicker == pytest.approx(25.5, abs=0.01)


def test_a_score_has_shares_the_mean_and_their_intervals() -> None:
    one = ClipVerdict(object=True, colour=True, direction=True, flicker=1.0)
    score = clip_score([one, one, replace(one, direction=False), replace(one, object=False)])
    assert (score.clips, score.right[0], score.object[0], score.direction[0]) == (
        4,
        0.5,
        0.75,
        0.75,
    )
    assert score.right[1] < 0.5 < score.right[2]
    assert score.colour[0] == score.flicker[0] == 1
    with pytest.raises(ValueError, match="no clips"):
        clip_score([])


def test_every_clip_has_its_video_and_a_reference_of_its_shape(judge: Judge) -> None:
    with pytest.raises(ValueError, match="of 20 clips"):
        clip_verdicts(judge, VIDEOS[1:], CLIPS)
    with pytest.raises(ValueError, match=r"references of shape \(20, 3, 12, 64, 64\)"):
        clip_verdicts(judge, VIDEOS, CLIPS, VIDEOS[:, :, 1:])
