"""Laws of the student's objective: strides meet, and a straight field is learnt as it is."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.schedule import plain_sigmas
from training.curriculum import Batch
from training.distil import GUIDANCE, STEPS, distilled_loss, strides

TOKENS = 64


def batch(count: int = 3) -> Batch:
    clean, noise = torch.randn(count, 4, 16, 16), torch.randn(count, 4, 16, 16)
    sigma = torch.rand(count)
    level = sigma.view(-1, 1, 1, 1)
    return Batch(
        noisy=(1 - level) * clean + level * noise,
        sigma=sigma,
        velocity=noise - clean,
        captions=["a cat"] * count,
        text_length=8,
    )


class Field:
    """A model with a field of its own in place of a network."""

    def __init__(self, velocity: Any) -> None:
        self._velocity = velocity
        self.asked: list[torch.Tensor] = []

    def encode(self, captions: list[str], length: int) -> None:
        return None

    def __call__(
        self, latents: torch.Tensor, sigma: torch.Tensor, text: None, scale: torch.Tensor
    ) -> torch.Tensor:
        assert torch.equal(scale, torch.full_like(sigma, GUIDANCE))
        self.asked.append(sigma)
        result: torch.Tensor = self._velocity(latents, sigma.view(-1, 1, 1, 1))
        return result


def test_strides_are_the_plain_samplers_four_steps_and_what_lies_between() -> None:
    sigmas = strides(400, TOKENS, random.Random(0))
    assert sigmas.shape == (STEPS + 1, 400)
    assert bool((sigmas.diff(dim=0) < 0).all())
    assert bool((sigmas[-1] >= 0).all())
    steps = torch.tensor(plain_sigmas(STEPS, model_facts("flux-tiny").shift_factor(TOKENS)))
    near = (sigmas[0][:, None] - steps[None]).abs().amin(dim=1) < 1e-6
    assert 0.5 < near.float().mean() < 0.9
    ends = sigmas[-1][near]
    assert bool(((ends[:, None] - steps[None]).abs().amin(dim=1) < 1e-6).all())


def test_the_shipped_students_steps_are_the_strides_that_it_learnt() -> None:
    plan = make_plan(model_facts("flux-tiny-turbo"), stages=1, size=(64, 64))
    tokens = plan.stages[0].grid.tokens
    sigmas = strides(400, tokens, random.Random(0))
    for before, after in pairwise(plan.stages[0].sigmas):
        here = (sigmas[0] - before).abs() < 1e-6
        assert int(here.sum()) > 20
        assert bool(((sigmas[-1][here] - after).abs() < 1e-6).all())


def test_a_constant_field_is_its_own_student() -> None:
    constant = Field(lambda latents, sigma: torch.full_like(latents, 0.7))
    assert float(distilled_loss(constant, constant, batch(), random.Random(0))) < 1e-9  # type: ignore[arg-type]


def test_the_teacher_steps_down_each_stride() -> None:
    teacher = Field(lambda latents, sigma: latents * sigma)
    student = Field(lambda latents, sigma: latents * sigma)
    loss = distilled_loss(student, teacher, batch(), random.Random(0))  # type: ignore[arg-type]
    assert len(teacher.asked) == STEPS
    assert len(student.asked) == 1
    assert torch.equal(student.asked[0], teacher.asked[0])
    assert bool((torch.stack(teacher.asked).diff(dim=0) < 0).all())
    assert float(loss) > 0  # curved: one velocity is not that of the start


@pytest.mark.parametrize("rate", [-0.5, 0.5])
def test_what_is_learnt_gets_where_the_teacher_gets(rate: float) -> None:
    """The target, found as the student that makes the loss vanish: four Euler steps in one."""
    seen: dict[str, torch.Tensor] = {}

    def teach(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.setdefault("start", latents)
        seen["last"] = latents
        seen["velocity"] = rate * latents
        return rate * latents

    sigmas = strides(3, TOKENS, random.Random(5)).view(STEPS + 1, -1, 1, 1, 1)

    def learn(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        end = seen["last"] + (sigmas[-1] - sigmas[-2]) * seen["velocity"]
        return (end - seen["start"]) / (sigmas[-1] - sigmas[0])

    drawn = batch()
    loss = distilled_loss(Field(learn), Field(teach), drawn, random.Random(5))  # type: ignore[arg-type]
    assert float(loss) < 1e-9
