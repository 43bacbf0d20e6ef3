"""The control: diffusers' own FluxPipeline on the demo model, at any step count and time shift."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.demo.scenes import Scene, random_scene
from fresco_trt.models.zoo import model_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

MODEL = "flux-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A plain operating point: steps at full resolution; `mu` replaces the default log-shift."""

    steps: int
    mu: float | None = None

    @property
    def name(self) -> str:
        """A short label for tables."""
        return f"{self.steps} steps" + ("" if self.mu is None else f", mu {self.mu:g}")


def judged_scenes(count: int, seed: int = 2026) -> list[Scene]:
    """Scenes that captions and judgements are taken from; every fourth has an unseen pair."""
    rng = random.Random(seed)
    return [random_scene(rng, held_out=i % 4 == 3) for i in range(count)]


def load_pipeline() -> Any:
    """diffusers' FluxPipeline over the bundled weights, float32, silent."""
    import diffusers

    from fresco_trt.models.weights import BUNDLED

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    untyped: Any = diffusers
    pipe = untyped.FluxPipeline.from_pretrained(BUNDLED / MODEL, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: Any, scenes: Sequence[Scene], seeds: Sequence[int], point: Plain
) -> tuple[torch.Tensor, float]:
    """Pictures [B,3,H,W] in [-1,1] of the scenes' captions, and the seconds spent denoising.

    Text encoding and decoding are left out of the seconds. The text length is the one engines are
    built for, so that both sides pay for the same tokens.
    """
    import torch

    facts = model_facts(MODEL)
    width, height = facts.default_size
    captions = [scene.caption for scene in scenes]
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(
            prompt=captions, prompt_2=None, max_sequence_length=facts.text_tokens
        )
        _set_shift(pipe, point.mu)
        began = perf_counter()
        tokens = pipe(
            prompt_embeds=text,
            pooled_prompt_embeds=pooled,
            width=width,
            height=height,
            num_inference_steps=point.steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
        seconds = perf_counter() - began
        latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
        config = pipe.vae.config
        pictures = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return pictures.clamp(-1, 1), seconds


def _set_shift(pipe: Any, mu: float | None) -> None:
    rule = model_facts(MODEL).shift
    if rule is None:
        raise ValueError(f"{MODEL} has no shift rule")
    low, high = (rule.base_shift, rule.max_shift) if mu is None else (mu, mu)
    pipe.scheduler.register_to_config(base_shift=low, max_shift=high)
