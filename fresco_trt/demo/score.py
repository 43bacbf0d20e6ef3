"""Prompt score of the demo model: a small classifier says what a picture shows.

A picture is right when every object its caption names is seen, and the background's colour and
pattern are the named ones. The score of a set is the share of right pictures. The classifier's
pooled features give a Frechet distance to real renders (Heusel et al. 2017, with these features in
place of Inception's), so that a picture may differ from a reference and still count as good.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.demo.batches import pictures_of
from fresco_trt.demo.scenes import COLOURS, OBJECTS, PATTERNS, Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diffusers import AutoencoderKL

SIDE = 64
"""Pictures are area-averaged to this side before they are judged."""

WIDTHS, STRIDES = (32, 64, 96, 112), (2, 2, 2, 1)


class Judge(nn.Module):
    """Convolutional classifier: which objects, which background colour, which pattern."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *WIDTHS)
        stages = [
            layer
            for i in range(len(WIDTHS))
            for layer in (
                *_convolution(widths[i], widths[i + 1], stride=STRIDES[i]),
                *_convolution(widths[i + 1], widths[i + 1], stride=1),
            )
        ]
        self.trunk = nn.Sequential(*stages)
        self.features = 2 * WIDTHS[-1]
        self.head = nn.Linear(self.features, len(OBJECTS) + len(COLOURS) + len(PATTERNS))

    def pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [B,224] of pictures [B,3,H,W] in [-1,1]: spatial mean and maximum."""
        small = functional.adaptive_avg_pool2d(pictures, SIDE)
        maps = self.trunk(small)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits: objects [B,24] (independent), colours [B,8], patterns [B,4]."""
        logits = self.head(self.pooled(pictures))
        parts = (len(OBJECTS), len(COLOURS), len(PATTERNS))
        split: tuple[torch.Tensor, ...] = logits.split(parts, dim=1)
        return split


def _convolution(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge made of one picture, against its caption."""

    objects: bool
    colour: bool
    pattern: bool

    @property
    def right(self) -> bool:
        """Every claim of the caption holds."""
        return self.objects and self.colour and self.pattern


@torch.no_grad()
def verdicts(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> list[Verdict]:
    """Judge pictures [B,3,H,W] in [-1,1] against the captions of `scenes`; layout is free."""
    seen, colours, patterns = judge(pictures)
    names, tones = list(OBJECTS), list(COLOURS)
    return [
        Verdict(
            objects=all(seen[i, names.index(p.name)] > 0 for p in scene.placements),
            colour=colours[i].argmax().item() == tones.index(scene.background.colour),
            pattern=patterns[i].argmax().item() == PATTERNS.index(scene.background.pattern),
        )
        for i, scene in enumerate(scenes)
    ]


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927)."""
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - spread) / scale, (centre + spread) / scale


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Frechet distance between Gaussians fitted to feature sets [N,D] (Dowson & Landau 1982)."""
    a, b = first.double(), second.double()
    root = _square_root(torch.cov(a.T))
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    traces = torch.cov(a.T).trace() + torch.cov(b.T).trace()
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: torch.Tensor = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return root


def load_judge() -> Judge:
    """The bundled classifier, in evaluation mode."""
    from safetensors.torch import load_file

    path = resources.files("fresco_trt.demo").joinpath("weights/judge.safetensors")
    judge = Judge()
    weights = {
        k: v.float() if v.is_floating_point() else v for k, v in load_file(str(path)).items()
    }
    judge.load_state_dict(weights)
    return judge.eval()


FRESH, REPLAYED, POOL = 12, 52, 20_000
"""Pictures drawn anew for a step, pictures repeated from the pool, and the pool's bound."""


def train_judge(
    out: Path,
    vae: AutoencoderKL,
    *,
    minutes: float,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Train on renders, half of them passed through the codec, and store float16 weights."""
    from safetensors.torch import save_file

    rng, judge = random.Random(seed), Judge()
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    pool: list[tuple[torch.Tensor, Scene]] = _examples(256, vae, rng)
    begun, step = time.monotonic(), 0
    while (progress := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100) * (1 - progress)
        fresh = _examples(FRESH, vae, rng)
        drawn = fresh + rng.sample(pool, REPLAYED)
        loss = _judge_loss(judge, _augmented(drawn, rng), [scene for _, scene in drawn])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        pool = (pool + fresh)[-POOL:]
        step += 1
        if step % 100 == 0:
            report(f"judge {step} {progress:.3f} loss {loss.item():.4f}")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    save_file(weights, out)
    report(f"right on held-out renders: {held_out_accuracy(judge.eval(), 1000):.4f}")


@torch.no_grad()
def _examples(
    count: int, vae: AutoencoderKL, rng: random.Random
) -> list[tuple[torch.Tensor, Scene]]:
    """Pictures as the judge sees them, [3,64,64], and their scenes; half passed the codec."""
    scenes = [random_scene(rng, held_out=rng.random() < 0.125) for _ in range(count)]
    pictures = pictures_of(scenes, SIDE if rng.random() < 0.6 else 2 * SIDE)
    if rng.random() < 0.5:
        pictures = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    small = functional.adaptive_avg_pool2d(pictures, SIDE)
    return list(zip(small.unbind(0), scenes, strict=True))


def _augmented(examples: Sequence[tuple[torch.Tensor, Scene]], rng: random.Random) -> torch.Tensor:
    """The examples as one batch; each may be mirrored, all get a little noise."""
    mirrored = [p.flip(-1) if rng.random() < 0.5 else p for p, _ in examples]
    batch = torch.stack(mirrored)
    return batch + 0.05 * rng.random() * torch.randn_like(batch)


def _judge_loss(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
    seen, colours, patterns = judge(pictures)
    names, tones = list(OBJECTS), list(COLOURS)
    wanted = torch.zeros_like(seen)
    for i, scene in enumerate(scenes):
        wanted[i, [names.index(p.name) for p in scene.placements]] = 1
    colour = torch.tensor([tones.index(s.background.colour) for s in scenes])
    pattern = torch.tensor([PATTERNS.index(s.background.pattern) for s in scenes])
    return (
        8 * functional.binary_cross_entropy_with_logits(seen, wanted)
        + functional.cross_entropy(colours, colour)
        + functional.cross_entropy(patterns, pattern)
    )


def held_out_accuracy(judge: Judge, count: int, seed: int = 987) -> float:
    """Share of fresh 256 px renders that are judged right in every claim."""
    rng = random.Random(seed)
    right = 0
    for _ in range(0, count, 50):
        scenes = [random_scene(rng, held_out=rng.random() < 0.5) for _ in range(50)]
        right += sum(v.right for v in verdicts(judge, pictures_of(scenes, 256), scenes))
    return right / count
