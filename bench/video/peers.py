"""The points of others, drawn with this model's weights: diffusers' own pipeline, and the caches
that are put upon it.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from bench.video.points import Broadcast, FasterCache
from fresco_trt.bench.instrument import Drawn
from fresco_trt.bench.methods import CacheDit
from fresco_trt.bench.peers import FlopMeter, cache_of
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.quiet import no_bar
from fresco_trt.models.registry import family_of
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.signature import TEXT_BIAS
from fresco_trt.plan.sizes import frames_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from bench.video.engines import Engines, Inputs
    from bench.video.points import ClipPoint, Hook
    from fresco_trt.bench.instrument import Draw
    from fresco_trt.plan.facts import ModelFacts

BACKEND = "eager"
"""What peers run on, and so everything that they are compared with."""


def check_backend(name: str, points: Sequence[ClipPoint]) -> None:
    """Raise IncompatibleOptions for peers beside engines of another library than theirs: seconds
    would compare the libraries.
    """
    if name != BACKEND and any(point.peer is not None for point in points):
        raise IncompatibleOptions(
            f"--backend {name} with peers such as cache-dit",
            expected=f"{BACKEND}, on which they run",
            fix="leave --backend out, or name other points with --only",
        )


def peer_draws(engines: Engines, points: Sequence[ClipPoint]) -> dict[str, Draw]:
    """What draws the points of peers, by their names.

    They share a pipeline, but for cache-dit, which rewrites the modules that it is put on. What
    cannot be imported is raised by the first draw, as what fails there is.
    """
    pipes: dict[bool, Any] = {}

    def pipe_of(settings: Hook) -> Any:
        apart = isinstance(settings, CacheDit)
        if apart not in pipes:
            pipes[apart] = load_pipeline(engines.folder, engines.facts)
        return pipes[apart]

    return {
        point.name: _drawing(engines, point.peer, pipe_of)
        for point in points
        if point.peer is not None
    }


def load_pipeline(folder: Path, facts: ModelFacts) -> Any:
    """diffusers' HunyuanVideoPipeline over ``folder``, float32, silent, without prompt encoders:
    prompts are encoded already.
    """
    diffusers: Any = import_module("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    kinds = {
        "vae": diffusers.AutoencoderKLHunyuanVideo,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    }
    with no_bar():
        parts = {name: kind.from_pretrained(folder / name) for name, kind in kinds.items()}
    transformer = family_of(facts).weights.load(folder, facts)
    pipe = diffusers.HunyuanVideoPipeline(transformer=transformer, **parts, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _drawing(engines: Engines, settings: Hook, pipe_of: Callable[[Hook], Any]) -> Draw:
    facts = engines.facts
    (stage,) = make_plan(facts, stages=1, size=engines.size).stages
    length = stage.grid.tokens + facts.text_tokens

    def draw(inputs: Inputs, seed: int) -> Drawn:
        pipe = pipe_of(settings)
        shift = facts.fixed_shift if settings.mu is None else math.exp(settings.mu)
        pipe.scheduler.set_shift(shift)
        with _cached(pipe, settings), FlopMeter(pipe.transformer, length) as meter:
            began = perf_counter()
            latents = _denoised(pipe, engines, inputs, seed, settings.steps)
            seconds = perf_counter() - began
        return Drawn(latents=latents, seconds=seconds, engine_seconds=None, flops=meter.flops)

    return draw


def _denoised(pipe: Any, engines: Engines, inputs: Inputs, seed: int, steps: int) -> Tensor:
    """Normalised latents [1,C,f,h,w]: the prompt is encoded already, as everywhere here."""
    width, height = engines.size[:2]
    with torch.inference_mode():
        latents: Tensor = pipe(
            prompt_embeds=inputs["text"],
            pooled_prompt_embeds=inputs["pooled"],
            prompt_attention_mask=(inputs[TEXT_BIAS] == 0).int(),
            width=width,
            height=height,
            num_frames=frames_of(engines.size),
            num_inference_steps=steps,
            guidance_scale=engines.facts.guidance_default,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).frames
    return latents


def _cached(pipe: Any, settings: Hook) -> AbstractContextManager[None]:
    """What puts a cache on a pipeline for the length of a scope, and empties it after."""
    if isinstance(settings, FasterCache):
        return _hooked(
            pipe,
            "FasterCacheConfig",
            spatial_attention_block_skip_range=settings.skip,
            attention_weight_callback=lambda _: 0.5,  # its own, without the warning
            is_guidance_distilled=True,
        )
    if isinstance(settings, Broadcast):
        return _hooked(
            pipe,
            "PyramidAttentionBroadcastConfig",
            spatial_attention_block_skip_range=settings.skip,
        )
    return cache_of(settings)(pipe)


@contextmanager
def _hooked(pipe: Any, config: str, **options: Any) -> Iterator[None]:
    """A cache of diffusers that asks at which noise level the pipeline is."""
    hooks: Any = import_module("diffusers.hooks")
    made = getattr(hooks, config)(
        current_timestep_callback=lambda: pipe.current_timestep, **options
    )
    pipe.transformer.enable_cache(made)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()
