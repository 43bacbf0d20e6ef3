"""Clips: every frame is a scene's render, motion is even and as the caption says."""

from __future__ import annotations

import random
import re
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from fresco_trt.bench.scenes.clips import (
    DIRECTIONS,
    FRAMES,
    SPEEDS,
    WORDS,
    clip_stream,
    random_clip,
    render_clip,
    videos_of,
)
from fresco_trt.bench.scenes.render import coverage, render
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, is_held_out

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

CLIPS = [random_clip(random.Random(seed)) for seed in range(60)]


def test_a_caption_names_the_object_what_it_does_and_the_colour() -> None:
    said = [
        re.fullmatch(f"an? ({'|'.join(OBJECTS)}) ({'|'.join(DIRECTIONS)}) on (.*)", clip.caption)
        for clip in CLIPS
    ]
    for clip, found in zip(CLIPS, said, strict=True):
        assert found is not None
        (place,) = clip.first.placements
        assert found.groups() == (place.name, clip.direction, clip.first.background.colour)
    words = {word for clip in CLIPS for word in clip.caption.split()}
    known = {word for name in (*OBJECTS, *COLOURS) for word in name.split()}
    assert words - known == {*WORDS, "a", "an", "on"}


def test_clips_are_of_every_direction_and_speed_and_the_same_every_time() -> None:
    assert {clip.direction for clip in CLIPS} == set(DIRECTIONS)
    assert {clip.speed for clip in CLIPS} == set(SPEEDS)
    streams = [list(islice(clip_stream(seed), 5)) for seed in (0, 0, 1)]
    assert streams[0] == streams[1] != streams[2]


def test_pairs_that_are_held_out_are_kept_apart() -> None:
    for held_out in (False, True):
        for clip in islice(clip_stream(0, held_out=held_out), 40):
            (place,) = clip.first.placements
            assert is_held_out(place.name, clip.first.background.colour) == held_out


def test_the_object_is_whole_in_every_frame() -> None:
    for clip in CLIPS:
        for index in range(FRAMES):
            (place,) = clip.frame(index).placements
            for centre in (place.x, place.y):
                assert place.side / 2 <= centre <= 1 - place.side / 2, clip.caption


@pytest.mark.parametrize("side", [64, 128])
def test_an_object_moves_by_the_same_whole_pixels_from_frame_to_frame(side: int) -> None:
    for clip in CLIPS[:20]:
        right, down = (round(step * clip.speed * side) for step in DIRECTIONS[clip.direction])
        covered = [coverage(clip.frame(i).placements[0], side, side) for i in range(FRAMES)]
        for before, after in pairwise(covered):
            np.testing.assert_array_equal(np.roll(before, (down, right), (0, 1)), after)


def test_every_frame_is_the_render_of_its_scene() -> None:
    for clip in CLIPS[:5]:
        pixels = render_clip(clip, 64)
        assert pixels.shape == (FRAMES, 64, 64, 3)
        assert pixels.dtype == np.uint8
        for index in (0, 6, 12):
            np.testing.assert_array_equal(pixels[index], render(clip.frame(index), 64))


def test_videos_are_channels_first_between_minus_one_and_one() -> None:
    videos = videos_of(CLIPS[:2], 32, frames=5)
    assert videos.shape == (2, 3, 5, 32, 32)
    pixels = torch.from_numpy(render_clip(CLIPS[1], 32, frames=5))
    torch.testing.assert_close(videos[1].permute(1, 2, 3, 0), pixels.float() / 127.5 - 1)
