"""The video demo's codec: a small AutoencoderKLHunyuanVideo (space 8x, time 4x) and its training.

It learns single pictures first, which cost a third when the causal convolutions over time are taken
as what they are there: convolutions over space alone. Then it learns motion, on short clips and on
whole ones.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.bench.scenes.clips import FRAMES, clip_stream, videos_of
from training.curriculum import TrainingPhase
from training.train import Run
from training.vae import codec_loss
from training.video_model import CHANNELS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from diffusers import AutoencoderKLHunyuanVideo

    from fresco_trt.bench.scenes.clips import Clip

WIDTHS = (16, 16, 32, 48)

LEARNING = TrainingPhase(
    start=(1, 0, 0), end=(0.15, 0.4, 0.45), hold=0.35, guided=(0, 0), rate=2e-3
)
"""Shares of single pictures, of clips of five frames and of whole clips."""

SHORT = 5

CROP = 64
"""Side of the pictures that it is shown: whole scenes of that side, or parts of larger ones."""

BATCHES = {1: 16, SHORT: 4, FRAMES: 2}
"""Pictures or clips of a step, by frames. Never one: convolutions over a single small clip take
torch's slow path on a CPU.
"""

SCALED = (32, 128)
"""How many clips of which side the mean and the deviation of the latents are measured on."""


def new_vae(seed: int = 0) -> AutoencoderKLHunyuanVideo:
    """An untrained codec without attention; residual branches start at zero."""
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(seed)
    vae: AutoencoderKLHunyuanVideo = AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    for name, module in vae.named_modules():
        if name.endswith("conv2.conv") and isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)
    return vae


class CodecRun(Run):
    """A resumable run of the codec."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, work: Path, minutes: float) -> None:
        super().__init__("codec", cast("Any", vae), LEARNING, work, minutes)
        self.vae = vae
        flatten_pictures(vae)

    @property
    def averaged(self) -> AutoencoderKLHunyuanVideo:
        """The codec with the averaged weights; the run is over."""
        self.vae.load_state_dict(self.average.weights)
        return self.vae.eval().requires_grad_(False)

    def loss(self, batch: Any, rng: random.Random) -> torch.Tensor:
        """How well videos [B,3,F,H,W] are rebuilt."""
        loss, parts = codec_loss(self.vae, batch)
        if self.step % 25 == 0:
            said = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            print(f"codec {self.step}: {tuple(batch.shape)} {said}", flush=True)
        return loss


def videos(
    clips: Iterator[Clip], rng: random.Random, shares: Sequence[float], device: str = "cpu"
) -> torch.Tensor:
    """Videos [B,3,F,64,64] of one of the three kinds: parts of clips in space and time."""
    (frames,) = rng.choices((1, SHORT, FRAMES), shares)
    side = CROP * rng.choice((1, 2, 2))
    parts = []
    for clip in itertools.islice(clips, BATCHES[frames]):
        first = rng.randint(0, FRAMES - frames)
        left, top = (rng.randint(0, side - CROP) for _ in range(2))
        part = videos_of([clip], side)[:, :, first : first + frames]
        parts.append(part[..., top : top + CROP, left : left + CROP])
    return torch.cat(parts).to(device)


def flatten_pictures(vae: nn.Module) -> None:
    """Let a codec's convolutions over time work on the single frame alone where there is one: all
    frames that they are padded with equal it, so their kernels over time add up.
    """
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d

    for module in vae.modules():
        if isinstance(module, HunyuanVideoCausalConv3d):
            module.forward = partial(_convolved, module, module.forward)


def _convolved(module: Any, over_time: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if hidden_states.shape[2] > 1:
        result: torch.Tensor = over_time(hidden_states)
        return result
    conv, around = module.conv, module.time_causal_padding[:4]
    frame = hidden_states.squeeze(2)
    if any(around):
        frame = functional.pad(frame, around, mode=module.pad_mode)
    flat = functional.conv2d(frame, conv.weight.sum(2), conv.bias, conv.stride[1:])
    return flat.unsqueeze(2)


@torch.no_grad()
def store_scaled(vae: AutoencoderKLHunyuanVideo, out: Path) -> None:
    """Store a codec whose latents have mean 0 and deviation 1 in every channel.

    HunyuanVideo's scaling factor is one number and has no shift beside it, so what makes them even
    goes into the pointwise convolutions between the encoder, the latents and the decoder.
    """
    count, side = SCALED
    latents = encoded(vae, list(itertools.islice(clip_stream(1), count)), side)
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    even(vae, mean, deviation)
    vae.save_pretrained(out)


def even(vae: AutoencoderKLHunyuanVideo, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Take a mean [16] and a deviation [16] out of a codec's latents."""
    before, after = vae.quant_conv, vae.post_quant_conv
    width = len(mean)
    before.bias[:width] = (before.bias[:width] - mean) / deviation
    before.weight[:width] /= deviation.view(-1, 1, 1, 1, 1)
    before.bias[width:] -= 2 * deviation.log()  # the other half is the logarithm of the variance
    kernel = after.weight[..., 0, 0, 0]
    after.bias += kernel @ mean
    after.weight *= deviation.view(1, -1, 1, 1, 1)


@torch.no_grad()
def encoded(vae: AutoencoderKLHunyuanVideo, clips: Sequence[Clip], side: int) -> torch.Tensor:
    """Latents [B,16,4,side/8,side/8] of clips, as the pipeline's decoder expects them."""
    several = range(0, len(clips), 4)
    parts = [videos_of(clips[index : index + 4], side).to(vae.device) for index in several]
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
    scale: float = vae.config.scaling_factor
    return latents * scale


def load_vae(folder: Path) -> AutoencoderKLHunyuanVideo:
    """The stored codec of a work or pipeline folder, in float32, frozen."""
    from diffusers import AutoencoderKLHunyuanVideo

    vae: AutoencoderKLHunyuanVideo = AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae")
    vae = vae.float().eval().requires_grad_(False)
    flatten_pictures(vae)
    return vae
