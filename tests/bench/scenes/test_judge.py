"""The prompt score: its judge is right about renders, and wrong pictures count as wrong."""

from __future__ import annotations

import dataclasses
import random

import pytest

from fresco_trt.bench.scenes.judge import confidences, held_out_accuracy, load_judge, verdicts
from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.bench.scenes.scene import COLOURS, random_scene

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")


def test_the_judge_is_right_about_held_out_renders() -> None:
    assert held_out_accuracy(load_judge(), 300) >= 0.98


def test_a_caption_of_another_picture_is_judged_wrong() -> None:
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(40)]
    pictures = pictures_of(scenes, 128)
    judge = load_judge()
    assert sum(v.right for v in verdicts(judge, pictures, scenes)) >= 38
    assert sum(v.right for v in verdicts(judge, pictures, scenes[1:] + scenes[:1])) <= 2
    assert sum(each > 0.5 for each in confidences(judge, pictures, scenes)) >= 38
    assert sum(each > 0.1 for each in confidences(judge, pictures, scenes[1:] + scenes[:1])) <= 4


def test_one_wrong_claim_makes_a_picture_wrong() -> None:
    scene = random_scene(random.Random(6))
    colour = next(c for c in COLOURS if c != scene.background.colour)
    other = dataclasses.replace(
        scene, background=dataclasses.replace(scene.background, colour=colour)
    )
    (verdict,) = verdicts(load_judge(), pictures_of([scene], 128), [other])
    assert (verdict.objects, verdict.colour, verdict.pattern) == (True, False, True)
    assert not verdict.right
