"""Loss on scenes that are never trained on: new ones, and such with pairs that are kept apart."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.demo.data import noised
from training.distil import distilled_loss
from training.objective import flow_loss
from training.scenes.batches import Recipe, SceneBatches
from training.scenes.scene import APART
from training.vae import codec_loss, latents_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from training.curriculum import Batch
    from training.demo.model import SceneModel
    from training.scenes.captions import Captioned
    from training.scenes.render import Drawings

COUNTS = {64: 32, 128: 16, 256: 8}
"""Side of the pictures -> how many there are of it, half of them with pairs kept apart."""

CODEC_SIDE, STUDENT_SIDE = 128, 64
"""Sides of the pictures that the codec and the student are looked at with."""

LENGTH = 64
SEED = 4321


class HeldOut:
    """Scenes of their own seeds, drawn once for each side that is asked for."""

    def __init__(self, drawings: Drawings, device: torch.device | str) -> None:
        self._drawings, self._device = drawings, device
        self._drawn: dict[int, dict[str, tuple[list[Captioned], torch.Tensor]]] = {}

    def scenes(self, side: int) -> dict[str, tuple[list[Captioned], torch.Tensor]]:
        """Scenes of "new" and of "apart", with pictures [B,3,side,side]."""
        if side not in self._drawn:
            kinds: dict[str, tuple[str | None, ...]] = {"new": (None,), "apart": APART}
            self._drawn[side] = {
                name: self._of(kind, COUNTS[side] // 2, side) for name, kind in kinds.items()
            }
        return self._drawn[side]

    def pictures(self, side: int | None = None) -> torch.Tensor:
        """All pictures [B,3,side,side] of a side, the codec's if none is given."""
        side = side or CODEC_SIDE
        return torch.cat([seen for _, seen in self.scenes(side).values()])

    def _of(
        self, kinds: tuple[str | None, ...], count: int, side: int
    ) -> tuple[list[Captioned], torch.Tensor]:
        scenes, pictures = [], []
        for index, apart in enumerate(kinds):
            here = len(range(index, count, len(kinds)))
            if here:
                recipe = Recipe(seed=SEED + index, apart=apart)
                with SceneBatches(recipe, self._drawings) as batches:
                    drawn, seen = batches.take(here, side, side, self._device)
                scenes += drawn
                pictures.append(seen)
        return scenes, torch.cat(pictures)

    @torch.no_grad()
    def codec(self, vae: AutoencoderKL) -> dict[str, float]:
        """Signal to noise in decibels of rebuilt pictures, and the loss."""
        pictures = self.pictures()
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            loss, parts = codec_loss(vae, pictures)
        rebuilt = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        error = functional.mse_loss(rebuilt.clamp(-1, 1), pictures)
        decibels = (10 * torch.log10(4 / error)).item()
        return {
            "loss": round(loss.item(), 4),
            "kl": round(parts["kl"], 4),
            "psnr": round(decibels, 2),
        }

    @torch.no_grad()
    def flow(self, model: SceneModel, vae: AutoencoderKL, largest: int) -> dict[str, float]:
        """Loss at the sides up to the largest, under the same noise every time."""
        return {
            f"{side}px {kind}": round(flow_loss(model, batch).item(), 4)
            for side in COUNTS
            if side <= largest
            for kind, batch in self._batches(vae, side)
        }

    @torch.no_grad()
    def turbo(
        self, student: SceneModel, teacher: SceneModel, vae: AutoencoderKL
    ) -> dict[str, float]:
        """How far four steps are from their teacher's sixteen."""
        return {
            kind: round(distilled_loss(student, teacher, batch, random.Random(SEED)).item(), 5)
            for kind, batch in self._batches(vae, STUDENT_SIDE)
        }

    def _batches(self, vae: AutoencoderKL, side: int) -> list[tuple[str, Batch]]:
        found = []
        for kind, (scenes, pictures) in self.scenes(side).items():
            captions = [each.caption for each in scenes]
            drawn = list(zip(captions, latents_of(vae, pictures), strict=True))
            found.append((kind, noised(drawn, captions, LENGTH, SEED)))
        return found
