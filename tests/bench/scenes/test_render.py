"""Rendering: one layout at every size, the named colour behind it, icons at hand."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from fresco_trt.bench.scenes.render import background_pixels, icon_bodies, render
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS, random_scene, scene_of

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

SCENES = [random_scene(random.Random(seed)) for seed in range(12)]


def test_every_icon_is_stored() -> None:
    assert set(icon_bodies()) == set(OBJECTS.values())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_a_scene_is_the_same_picture_at_every_size(scene: object) -> None:
    large = render(scene, 256).astype(float)  # type: ignore[arg-type]
    small = render(scene, 64).astype(float)  # type: ignore[arg-type]
    shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 8
    assert np.abs(shrunk[::-1] - small).mean() > np.abs(shrunk - small).mean()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_background_is_the_named_colour_and_a_darker_tone(pattern: str, colour: str) -> None:
    background = scene_of(["star"], colour, pattern, random.Random(1)).background
    pixels = background_pixels(background, 48, 48)
    base = np.asarray(COLOURS[colour]) / 255
    assert (pixels <= base + 1e-6).all()
    assert (pixels >= 0).all()
    assert np.abs(pixels - base).max(axis=-1).min() < 0.02
    assert (pattern == "plain") == (np.ptp(pixels, axis=(0, 1)).max() < 1e-6)


def test_a_frame_need_not_be_square() -> None:
    assert render(SCENES[0], 96, 64).shape == (64, 96, 3)


def test_a_flip_mirrors_the_icon() -> None:
    scene = scene_of(["guitar"], "gray", "plain", random.Random(3))
    centred = dataclasses.replace(scene.placements[0], x=0.5, y=0.5, side=0.5, flipped=False)
    mirrored = dataclasses.replace(centred, flipped=True)
    one = render(dataclasses.replace(scene, placements=(centred,)), 64).astype(int)
    two = render(dataclasses.replace(scene, placements=(mirrored,)), 64).astype(int)
    assert np.abs(one[:, ::-1] - two).mean() < 1
    assert np.abs(one - two).mean() > 3
