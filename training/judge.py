"""Training of the classifier that judges the demo's pictures."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fresco_trt.bench.scenes.judge import SIDE, Judge, held_out_accuracy
from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS, Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diffusers import AutoencoderKL

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
