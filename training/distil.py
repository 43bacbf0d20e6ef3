"""What the distilled sibling of the demo transformer learns: four of the teacher's steps at once.

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512) in one round. The unshifted time
``u`` runs from 1 to 0 in strides of a quarter, which are the plain sampler's four steps; from where
a stride starts, the teacher takes four guided steps to its end, and the student learns the one
velocity that gets there. Starts between the four are drawn too: a stage may end anywhere.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fresco_trt.plan.schedule import shift_sigma
from training.curriculum import resolution_shift

if TYPE_CHECKING:
    from training.curriculum import Batch
    from training.model import DemoModel

STEPS = 4
"""Steps of the student, and of the teacher within each."""

GUIDANCE = 3.5
"""The scale that the teacher is asked for: the model's default, and the student's only one."""

BETWEEN = 0.3
"""Share of the strides that start anywhere."""


def strides(count: int, tokens: int, rng: random.Random) -> torch.Tensor:
    """Noise levels along a stride for each picture of a batch, [STEPS+1, B], falling.

    Under the time shift of pictures of ``tokens`` image tokens.
    """
    shift = resolution_shift(tokens)
    return torch.tensor([_levels(_start(rng), shift) for _ in range(count)]).T


def _start(rng: random.Random) -> float:
    """Where a stride starts on the unshifted axis."""
    if rng.random() < BETWEEN:
        return rng.uniform(0.02, 1.0)
    return rng.randint(1, STEPS) / STEPS


def _levels(start: float, shift: float) -> list[float]:
    end = max(start - 1 / STEPS, 0.0)
    inner = (start + (end - start) * step / STEPS for step in range(STEPS + 1))
    return [shift_sigma(min(max(u, 0.0), 1.0), shift) for u in inner]


def distilled_loss(
    student: DemoModel, teacher: DemoModel, batch: Batch, rng: random.Random
) -> torch.Tensor:
    """Mean squared error of the student's velocity to that of the teacher's steps together.

    The batch gives clean latents and noise, ``noisy`` and ``velocity`` being lines between the two;
    its noise levels are not used. The encoders are the teacher's.
    """
    clean = batch.noisy - batch.sigma.view(-1, 1, 1, 1) * batch.velocity
    noise = clean + batch.velocity
    tokens = clean.shape[-1] * clean.shape[-2] // 4
    sigmas = strides(len(clean), tokens, rng).to(clean.device).view(STEPS + 1, -1, 1, 1, 1)
    start = (1 - sigmas[0]) * clean + sigmas[0] * noise
    scale = torch.full_like(batch.sigma, GUIDANCE)
    with torch.no_grad():
        text = teacher.encode(batch.captions, batch.text_length)
        end = start
        for before, after in pairwise(sigmas):
            velocity = teacher(end, before.flatten(), text, scale).float()
            end = end + (after - before) * velocity
        wanted = (end - start) / (sigmas[-1] - sigmas[0])
    predicted = student(start, sigmas[0].flatten(), text, scale).float()
    return functional.mse_loss(predicted, wanted)
