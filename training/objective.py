"""What the demo transformer learns: flow matching, plain or with the guidance as an input.

FLUX.1-dev takes its guidance scale as an input and needs one call a step. Here that is learned from
the data itself, without a teacher: guidance-free training (Chen et al. 2025, "Visual Generation
Without Guidance", equation 8) asks that the conditional velocity *implied* by the guided one be
right, so one run trains every size and every scale.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.curriculum import spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.curriculum import Batch
    from training.model import DemoModel
    from training.video_model import VideoModel

LARGEST_SCALE = 6.0
"""Guidance scales are drawn between 1 and this; pipelines use 3.5 by default."""


def flow_loss(model: DemoModel | VideoModel, batch: Batch) -> torch.Tensor:
    """Mean squared error of the velocity (Liu et al. 2023; Esser et al. 2024).

    A model with the guidance as an input is told scale 1, at which nothing is guided.
    """
    text = model.encode(batch.captions, batch.text_length)
    unguided = torch.ones_like(batch.sigma) if takes_guidance(model) else None
    source = {} if batch.reference is None else {"reference": batch.reference}
    predicted = model(batch.noisy, batch.sigma, text, unguided, **source).float()
    return functional.mse_loss(predicted, batch.velocity)


def takes_guidance(model: DemoModel | VideoModel) -> bool:
    """Whether the transformer has a guidance input."""
    return bool(model.transformer.config.guidance_embeds)


def guided_loss(model: DemoModel | VideoModel, batch: Batch, rng: random.Random) -> torch.Tensor:
    """Mean squared error of the conditional velocity that the guided one implies.

    A guided velocity is g = u + s (c - u), with the unguided u, the conditional c and the scale s,
    so c = u + (g - u) / s. Here u is the model's own answer to the empty caption at scale 1,
    without a gradient. Empty captions are trained at scale 1, as plain flow matching.
    """
    scale = guidance_scales(batch.captions, rng).to(batch.sigma.device)
    with torch.no_grad():
        told = model.encode([""], batch.text_length)
        empty = tuple(part.expand(len(scale), *part.shape[1:]) for part in told)
        unguided = model(batch.noisy, batch.sigma, empty, torch.ones_like(scale)).float()
    text = model.encode(batch.captions, batch.text_length)
    guided = model(batch.noisy, batch.sigma, text, scale).float()
    conditional = unguided + (guided - unguided) / spread(scale, guided)
    return functional.mse_loss(conditional, batch.velocity)


def guidance_scales(captions: list[str], rng: random.Random) -> torch.Tensor:
    """Scales [B] whose inverse is uniform, as the reference draws them; 1 for empty captions."""
    inverse = [rng.uniform(1 / LARGEST_SCALE, 1.0) if caption else 1.0 for caption in captions]
    return 1 / torch.tensor(inverse)


_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextlib.contextmanager
def fast_precision(device: str) -> Iterator[None]:
    """Matrix products in bfloat16 where the processor has instructions for it.

    On a CPU attention stays in float32: its bfloat16 backward pass is the slower one there. On a
    GPU it is any but cuDNN's, torch 2.11's choice on Hopper, whose backward pass failed there.
    """
    if device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        yield
        return
    with torch.autocast(device, torch.bfloat16), warnings.catch_warnings():
        # RMSNorm's float32 weight against a bfloat16 input: not its fused kernel, but right.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        if device != "cpu":
            with sdpa_kernel(_ATTENTION):
                yield
            return
        attention = functional.scaled_dot_product_attention
        functional.scaled_dot_product_attention = _in_float32(attention)
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = attention


def _in_float32(attention: Any) -> Any:
    def attend(*arrays: torch.Tensor, **options: Any) -> torch.Tensor:
        options = {k: _float(v) for k, v in options.items()}
        with torch.autocast("cpu", enabled=False):
            result: torch.Tensor = attention(*map(_float, arrays), **options)
        return result

    return attend


def _float(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_half else value
