"""The demo's picture codec: a small AutoencoderKL (factor 4, 4 latent channels) and its training.

Latents are made to behave under resizing: the decoder must turn a 2x2-averaged latent into the
half-size picture (a scale-equivariance term), because progressive resolution resizes latents.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.bench.scenes.pictures import pictures_of, scene_stream
from training.optim import Muon, warm_cosine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

KL_WEIGHT = 2e-3
SIZES = (64, 64, 64, 128)
"""Training picture sides, taken in turn; 128 px batches hold a quarter of the pictures."""


def new_vae() -> AutoencoderKL:
    """An untrained codec: 3 resolution levels, no attention, residual branches starting at zero."""
    from diffusers import AutoencoderKL

    levels = 3
    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
    )
    for name, module in vae.named_modules():
        if name.endswith("conv2") and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    return vae


def codec_loss(
    vae: AutoencoderKL | AutoencoderKLHunyuanVideo, pictures: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Training loss on pictures [B,3,H,W] or videos [B,3,F,H,W] in [-1,1], and readable parts."""
    posterior = vae.encode(pictures).latent_dist
    rebuilt = vae.decode(posterior.sample()).sample
    coarse = vae.decode(halved(posterior.mean)).sample
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    fine_loss = picture_loss(rebuilt, pictures)
    coarse_loss = picture_loss(coarse, halved(pictures))
    mse = functional.mse_loss(rebuilt, pictures).item()
    psnr = 10 * torch.log10(torch.tensor(4 / mse)).item()
    loss = fine_loss + 0.5 * coarse_loss + KL_WEIGHT * kl
    return loss, {"psnr": psnr, "kl": kl.item(), "coarse": coarse_loss.item()}


def halved(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures, videos or their latents [...,H,W] at half the height and width, area-averaged."""
    *outer, height, width = pictures.shape
    return pictures.reshape(*outer, height // 2, 2, width // 2, 2).mean((-1, -3))


def picture_loss(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far pictures [B,3,H,W] or videos [B,3,F,H,W] are from the wanted ones, and their edges in
    space and time.
    """
    axes = [axis for axis in range(2, wanted.ndim) if wanted.shape[axis] > 1]
    gradients = [(got.diff(dim=d) - wanted.diff(dim=d)).abs().mean() for d in axes]
    return (
        functional.l1_loss(got, wanted)
        + functional.mse_loss(got, wanted)
        + 0.5 * torch.stack(gradients).sum()
    )


def train_vae(
    out: Path, *, steps: int, batch: int = 16, seed: int = 0, report: Callable[[str], None] = print
) -> None:
    """Train the codec and store it, with measured scaling and shift, as a diffusers folder."""
    torch.manual_seed(seed)
    vae = new_vae()
    matrices = [p for p in vae.parameters() if p.ndim == 4]
    others = [p for p in vae.parameters() if p.ndim != 4]
    optimisers: list[tuple[Any, float]] = [
        (Muon(matrices, lr=0.01), 0.01),
        (torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0), 2e-3),
    ]
    stream = scene_stream(seed)
    for step in range(steps):
        side = SIZES[step % len(SIZES)]
        count = batch if side == 64 else max(2, batch // 4)
        pictures = pictures_of(list(itertools.islice(stream, count)), side)
        loss, parts = codec_loss(vae, pictures)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser, rate in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * warm_cosine(step, steps, 50)
            optimiser.step()
            optimiser.zero_grad()
        if step % 50 == 0:
            report(f"vae {step}/{steps} " + " ".join(f"{k}={v:.3f}" for k, v in parts.items()))
    scale_to(vae, pictures_of(list(itertools.islice(scene_stream(seed + 1), 64)), 128))
    vae.save_pretrained(out)


@torch.no_grad()
def scale_to(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Let latents of pictures [B,3,H,W] have mean 0 and deviation 1, by the codec's settings."""
    latents = vae.encode(pictures).latent_dist.mean
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B,4,H/4,W/4] of pictures in [-1,1], as the pipeline's decoder expects."""
    sample = vae.encode(pictures).latent_dist.mean
    normalised: torch.Tensor = (sample - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised
