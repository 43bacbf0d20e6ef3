"""The prompt score: its judge is right about renders, and wrong pictures count as wrong."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from fresco_trt.demo.batches import pictures_of
from fresco_trt.demo.scenes import COLOURS, random_scene
from fresco_trt.demo.score import (
    frechet_distance,
    held_out_accuracy,
    load_judge,
    verdicts,
    wilson_interval,
)

pytest.importorskip("resvg_py", reason="resvg-py, of the train extra, draws the icons")


def test_the_judge_is_right_about_held_out_renders() -> None:
    assert held_out_accuracy(load_judge(), 300) >= 0.98


def test_a_caption_of_another_picture_is_judged_wrong() -> None:
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(40)]
    pictures = pictures_of(scenes, 128)
    judge = load_judge()
    assert sum(v.right for v in verdicts(judge, pictures, scenes)) >= 38
    assert sum(v.right for v in verdicts(judge, pictures, scenes[1:] + scenes[:1])) <= 2


def test_one_wrong_claim_makes_a_picture_wrong() -> None:
    scene = random_scene(random.Random(6))
    colour = next(c for c in COLOURS if c != scene.background.colour)
    other = dataclasses.replace(
        scene, background=dataclasses.replace(scene.background, colour=colour)
    )
    (verdict,) = verdicts(load_judge(), pictures_of([scene], 128), [other])
    assert (verdict.objects, verdict.colour, verdict.pattern) == (True, False, True)
    assert not verdict.right


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    torch.manual_seed(0)
    base = torch.randn(4000, 5, dtype=torch.float64)
    whitened = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    shifted = 3 * whitened + torch.tensor([2.0, 0, 0, 0, 0])
    # Unit against 3x unit covariance, means 2 apart: 2^2 + 5 * (1 - 3)^2.
    assert frechet_distance(whitened, shifted) == pytest.approx(4 + 5 * 4, rel=1e-6)
    assert frechet_distance(whitened, whitened) == pytest.approx(0, abs=1e-6)


def test_the_interval_holds_the_share_and_narrows_with_evidence() -> None:
    few, many = wilson_interval(8, 10), wilson_interval(800, 1000)
    assert few[0] < many[0] < 0.8 < many[1] < few[1]
    # Wilson's published example: 10 of 10 leaves 0.722 possible.
    assert wilson_interval(10, 10)[0] == pytest.approx(0.722, abs=1e-3)
