"""What the demo is shown: a function of the seed, the stage and the step, never of timing.

A run that was killed therefore goes on with the batches that it would have had.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from training.curriculum import CAPTION_DROPOUT, Batch, noised_to, resolution_shift, shifted_levels
from training.scenes.batches import Recipe
from training.vae import latents_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from training.demo.stages import Shape, Stage
    from training.scenes.batches import SceneBatches
    from training.scenes.captions import Captioned

    Encoded = tuple[str, torch.Tensor]
    """A caption and the latents [4,H/4,W/4] of its scene."""

FRESH = 0.25
"""Share of a batch that is rendered anew; the others were shown before, with other noise."""

WARM, KEPT = 8, 128
"""Chunks of rendered scenes that there are to show again before the first step, and at most."""

CODEC_SIDES = (64, 128, 256)
CODEC_BATCHES = {64: 16, 128: 4, 256: 2}
"""Sides of the codec's pictures, in turns, and how many of each are in a batch."""


def training_recipe(seed: int, stage: str = "") -> Recipe:
    """Scenes that are trained on: none has a pair that is kept apart."""
    return Recipe(seed=random.Random(f"{seed} {stage}").randrange(2**31))


def codec_pictures(
    batches: SceneBatches, step: int, scale: int, device: torch.device | str
) -> torch.Tensor:
    """Pictures [B,3,side,side] in [-1,1] of one of the codec's steps."""
    turn, index = divmod(step, len(CODEC_SIDES))
    side = CODEC_SIDES[index]
    size = (scale * CODEC_BATCHES[side], side, side)
    if not batches.begun(size):
        batches.begin(size, turn)
    return batches.take(*size, device)[1]


@dataclass(slots=True, kw_only=True)
class Latents:
    """Encoded scenes of a size, a quarter of each batch new and the others shown again.

    The n-th batch of a size brings the chunk of scenes numbered n + WARM; the others are drawn from
    the KEPT chunks before that. Of these, a run that goes on draws what it needs again.
    """

    batches: SceneBatches
    vae: AutoencoderKL
    seed: int
    scale: int = 1
    _kept: dict[Shape, dict[int, list[Encoded]]] = field(default_factory=dict)

    @torch.no_grad()
    def take(self, shape: Shape, number: int) -> list[Encoded]:
        """The batch of a size so numbered; they are asked for in order."""
        count = self.scale * shape.batch
        fresh = math.ceil(FRESH * count)
        size, newest = (fresh, shape.width, shape.height), number + WARM
        rng = random.Random(f"{self.seed} {size} {number}")
        chunks = range(max(0, newest - KEPT), newest)
        again = [(rng.choice(chunks), rng.randrange(fresh)) for _ in range(count - fresh)]

        kept = self._kept.setdefault(shape, {})
        if not self.batches.begun(size):
            self.batches.begin(size, newest)
        device = self.vae.device
        missing = sorted({chunk for chunk, _ in again} - kept.keys())
        for chunk, drawn in zip(missing, self.batches.numbered(size, missing, device), strict=True):
            kept[chunk] = self._encoded(*drawn)
        if newest not in kept:  # a batch that was drawn ahead is asked for again by the next stage
            kept[newest] = self._encoded(*self.batches.take(*size, device))
        kept.pop(newest - KEPT, None)
        return kept[newest] + [kept[chunk][index] for chunk, index in again]

    def _encoded(self, scenes: list[Captioned], pictures: torch.Tensor) -> list[Encoded]:
        latents = latents_of(self.vae, pictures)
        return [(each.caption, own) for each, own in zip(scenes, latents, strict=True)]


def batch_of(drawn: list[Encoded], rng: random.Random, *, fine: bool = False) -> Batch:
    """Encoded scenes at noise levels, with captions or without, padded to some length."""
    captions = ["" if rng.random() < CAPTION_DROPOUT else caption for caption, _ in drawn]
    return noised(drawn, captions, text_length(rng, fine=fine), rng.randrange(2**31))


def noised(drawn: list[Encoded], captions: list[str], length: int, seed: int) -> Batch:
    """Encoded scenes with captions, at levels and under noise of a seed."""
    clean = torch.stack([latents for _, latents in drawn])
    generator = torch.Generator(clean.device).manual_seed(seed)
    tokens = clean.shape[-1] * clean.shape[-2] // 4
    sigma = shifted_levels(len(clean), resolution_shift(tokens), generator)
    return noised_to(sigma, clean, captions, length, generator)


def text_length(rng: random.Random, *, fine: bool = False) -> int:
    """A padded length: what is longer is cut, which leaves a caption that says less. A text side
    that is trained at one length fails at every other one.
    """
    draw = rng.random()
    if draw < 0.004:
        return 512  # diffusers' default
    if draw < (0.5 if fine else 0.1):
        return 128
    return rng.choice((24, 32, 48, 64, 64, 80))


def step_rng(seed: int, stage: Stage, step: int) -> random.Random:
    """Chance of one step."""
    return random.Random(f"{seed} {stage.name} {step}")
