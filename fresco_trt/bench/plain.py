"""The control: diffusers' own FluxPipeline on the demo model, at any step count and time shift."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.scenes.scene import Scene, random_scene
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_components

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

MODEL = "flux-tiny"

SCENES_SEED = 2026
"""Where the scenes of every stored figure come from."""


def is_judged(model: str) -> bool:
    """Whether a model draws the scenes that the classifier knows: the demo, or one over its parts.

    Raises what :func:`~fresco_trt.models.weights.bundled_components` does.
    """
    return bundled_components(model).name == MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A plain operating point: steps at full resolution; `mu` replaces the default log-shift."""

    steps: int
    mu: float | None = None

    @property
    def name(self) -> str:
        """A short label for tables."""
        return f"{self.steps} steps" + ("" if self.mu is None else f", mu {self.mu:g}")


def judged_scenes(count: int, seed: int = SCENES_SEED) -> list[Scene]:
    """Scenes that captions and judgements are taken from; every fourth has an unseen pair."""
    rng = random.Random(seed)
    return [random_scene(rng, held_out=i % 4 == 3) for i in range(count)]


def load_pipeline(folder: Path | None = None, device: str = "cpu") -> Any:
    """diffusers' FluxPipeline over `folder` (default: the bundled weights), float32, silent."""
    import diffusers

    from fresco_trt.models.quiet import no_bar
    from fresco_trt.models.weights import bundled_folder

    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    untyped: Any = diffusers
    untyped.utils.logging.disable_progress_bar()
    with no_bar():
        pipe = untyped.FluxPipeline.from_pretrained(
            folder or bundled_folder(MODEL), low_cpu_mem_usage=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def draw(
    pipe: Any, scenes: Sequence[Scene], seeds: Sequence[int], point: Plain
) -> tuple[torch.Tensor, float]:
    """Pictures [B,3,H,W] in [-1,1] of the scenes' captions, on the CPU, and the seconds spent
    denoising.

    Text encoding and decoding are left out of the seconds. The text length is the one engines are
    built for, so that both sides pay for the same tokens.
    """
    import torch

    facts = model_facts(MODEL)
    captions = [scene.caption for scene in scenes]
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(
            prompt=captions, prompt_2=None, max_sequence_length=facts.text_tokens
        )
        inputs = {"text": text, "pooled": pooled}
        latents, seconds = denoise(pipe, facts, facts.default_size, inputs, seeds, point)
        config = pipe.vae.config
        scaled = latents.to(pipe.vae.device) / config.scaling_factor + config.shift_factor
        pictures = pipe.vae.decode(scaled).sample
    return pictures.clamp(-1, 1).cpu(), seconds


def denoise(
    pipe: Any,
    facts: ModelFacts,
    size: Size,
    inputs: Mapping[str, torch.Tensor],
    seeds: Sequence[int],
    point: Plain,
) -> tuple[torch.Tensor, float]:
    """Normalised latents [B,C,h,w] on the CPU for encoded prompts, and the seconds that took.

    `inputs` are `text` [B,T,D] and `pooled` [B,P], on the pipeline's device; `size` is (width,
    height) in pixels. Raises ValueError for a log-shift on a model that has no shift.
    """
    import torch

    width, height = size[:2]
    _set_shift(pipe, facts, point.mu)
    guidance = {} if facts.guidance_default is None else {"guidance_scale": facts.guidance_default}
    with torch.no_grad():
        began = perf_counter()
        tokens = pipe(
            prompt_embeds=inputs["text"],
            pooled_prompt_embeds=inputs["pooled"],
            width=width,
            height=height,
            num_inference_steps=point.steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
            **guidance,
        ).images.cpu()  # which waits for a device that runs behind
        seconds = perf_counter() - began
        latents = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
    return latents, seconds


def _set_shift(pipe: Any, facts: ModelFacts, mu: float | None) -> None:
    rule = facts.shift
    if rule is None:
        if mu is not None:
            raise ValueError(f"a log-shift of {mu:g}, but the sigmas of {facts.name} have none")
        return
    low, high = (rule.base_shift, rule.max_shift) if mu is None else (mu, mu)
    pipe.scheduler.register_to_config(base_shift=low, max_shift=high)
