"""What the demo transformer is shown: sizes in growing shares, replayed latents, noise levels."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fresco_trt.models.registry import model_facts
from fresco_trt.plan.schedule import dynamic_mu
from training.vae import latents_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from training.batches import Renders


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A picture size, the batch it is trained with and how often it is drawn."""

    width: int
    height: int
    batch: int
    weight: float


COARSE = (
    Shape(width=64, height=64, batch=32, weight=0.9),
    Shape(width=96, height=64, batch=20, weight=0.05),
    Shape(width=64, height=96, batch=20, weight=0.05),
)
MIDDLE = (
    Shape(width=128, height=128, batch=10, weight=0.8),
    Shape(width=192, height=128, batch=6, weight=0.1),
    Shape(width=128, height=192, batch=6, weight=0.1),
)
FINE = (
    Shape(width=256, height=256, batch=4, weight=0.8),
    Shape(width=256, height=192, batch=4, weight=0.1),
    Shape(width=192, height=256, batch=4, weight=0.1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPhase:
    """What a run draws: share of (coarse, middle, fine) steps at its beginning and at its end.

    ``guided`` is the share of steps, at the beginning and at the end, that learn the guided
    velocity; the others learn the plain one. ``rate`` is the optimisers' common learning rate.
    """

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    hold: float
    guided: tuple[float, float]
    rate: float = 8e-4

    def guided_share(self, progress: float) -> float:
        """Share of guided steps at `progress` in [0, 1]."""
        first, last = self.guided
        return first + (last - first) * progress

    def shares(self, progress: float) -> tuple[float, ...]:
        """Share of each size group at `progress` in [0, 1]; constant up to `hold`, then linear."""
        ramp = max(0.0, progress - self.hold) / max(1e-9, 1 - self.hold)
        return tuple(a + (b - a) * ramp for a, b in zip(self.start, self.end, strict=True))


BASE = TrainingPhase(start=(1, 0, 0), end=(0.6, 0.3, 0.1), hold=0.8, guided=(0, 0))
GUIDED = TrainingPhase(start=(0.8, 0.15, 0.05), end=(0.15, 0.25, 0.6), hold=0.3, guided=(0.15, 0.7))

LARGE = TrainingPhase(
    start=(0.3, 0.2, 0.5), end=(0.25, 0.2, 0.55), hold=0, guided=(0.3, 0.6), rate=5e-4
)
"""For a model that draws small sizes well: objects are learnt there, and then have to be learnt
again at the full size, which no phase from scratch has the time for on a CPU. Small sizes keep
their share: with a twentieth of the steps the model forgot them, and sketches are drawn there."""

TURBO = TrainingPhase(start=(0.3, 0.2, 0.5), end=(0.3, 0.2, 0.5), hold=0, guided=(0, 0), rate=3e-4)
"""For the distilled student, which starts as its teacher and has little to unlearn."""

CAPTION_DROPOUT = 0.1
"""Share of captions replaced by the empty one, which classifier-free guidance starts from."""

FRESH, POOL = 0.25, 6000
"""Share of a batch that is rendered anew, and how many encoded scenes of a size are replayed.

Rendering and encoding are a good part of a coarse step; a scene seen again comes with other noise.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Noisy latents [B,4,H,W], or [B,16,F,H,W] of clips, their noise level [B], the velocity to
    learn, and the captions.

    ``reference`` is the clean latents [B,4,H,W] of the pictures that edits begin with.
    """

    noisy: torch.Tensor
    sigma: torch.Tensor
    velocity: torch.Tensor
    captions: list[str]
    text_length: int
    reference: torch.Tensor | None = None


@dataclass(slots=True, kw_only=True)
class Curriculum:
    """Draws training batches from a stream of scenes; keeps encoded scenes to show them again.

    ``scale`` is how many times larger than a shape says its batches are.
    """

    phase: TrainingPhase
    renders: Renders
    vae: AutoencoderKL
    rng: random.Random
    scale: int = 1
    replayed: dict[Shape, deque[tuple[str, torch.Tensor]]] = field(default_factory=dict)

    @torch.no_grad()
    def draw(self, progress: float) -> Batch:
        """One batch; sizes, text padding and noise levels are drawn as they are used later."""
        group = self.rng.choices((COARSE, MIDDLE, FINE), self.phase.shares(progress))[0]
        shape = self.rng.choices(group, [s.weight for s in group])[0]
        drawn = self._latents(shape)
        clean = torch.stack([latents for _, latents in drawn])
        captions = ["" if self.rng.random() < CAPTION_DROPOUT else c for c, _ in drawn]
        return noised(clean, captions, text_length(group is FINE, self.rng))

    def _latents(self, shape: Shape) -> list[tuple[str, torch.Tensor]]:
        pool = self.replayed.setdefault(shape, deque(maxlen=POOL))
        count = self.scale * shape.batch
        fresh = count if len(pool) < min(8 * count, POOL) else math.ceil(FRESH * count)
        device = next(self.vae.parameters()).device
        scenes, pictures = self.renders.take(fresh, shape.width, shape.height, device)
        encoded = latents_of(self.vae, pictures)
        new = [(s.caption, latents) for s, latents in zip(scenes, encoded, strict=True)]
        old = self.rng.sample(pool, count - fresh)
        pool.extend(new)
        return new + old


def noised(clean: torch.Tensor, captions: list[str], length: int, shift: float = 1.0) -> Batch:
    """A batch on the straight paths from clean latents [B,4,H,W] to fresh noise.

    The noise is shifted by ``shift`` on top of what the resolution's rule says.
    """
    tokens = clean.shape[-1] * clean.shape[-2] // 4
    return noised_to(noise_levels(len(clean), tokens, shift), clean, captions, length)


def noised_to(
    sigma: torch.Tensor,
    clean: torch.Tensor,
    captions: list[str],
    length: int,
    generator: torch.Generator | None = None,
) -> Batch:
    """A batch at levels ``sigma`` [B] of the straight paths from clean latents to fresh noise, of
    the ``generator`` on their device or torch's own.
    """
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    sigma = sigma.to(clean.device)
    level = spread(sigma, clean)
    return Batch(
        noisy=(1 - level) * clean + level * noise,
        sigma=sigma,
        velocity=noise - clean,
        captions=captions,
        text_length=length,
    )


def spread(values: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """One value [B] for each of the arrays ``over`` [B,...], to multiply them with."""
    return values.view(-1, *[1] * (over.ndim - 1))


def noise_levels(count: int, tokens: int, more: float = 1.0) -> torch.Tensor:
    """Logit-normal levels under the resolution's time shift (Esser et al. 2024, section 3.1), and
    ``more`` of it.
    """
    return shifted_levels(count, more * resolution_shift(tokens))


def resolution_shift(tokens: int) -> float:
    """The demo's time shift for pictures of ``tokens`` image tokens."""
    rule = model_facts("flux-tiny").shift
    return math.exp(dynamic_mu(tokens, rule)) if rule else 1.0


def shifted_levels(
    count: int, shift: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Logit-normal noise levels under a time shift, on the generator's device."""
    where = generator.device if generator else None
    levels: torch.Tensor = torch.sigmoid(torch.randn(count, generator=generator, device=where))
    return shift * levels / (1 + (shift - 1) * levels)


def text_length(fine: bool, rng: random.Random) -> int:
    """A padded caption length: a text side trained at one length fails at every other one."""
    draw = rng.random()
    if draw < 0.004:
        return 512  # diffusers' default
    if draw < (0.6 if fine else 0.06):
        return 128
    return rng.choice((14, 16, 20, 28, 40))
