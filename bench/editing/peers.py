"""The points of others, drawn with this model's weights: by :mod:`bench.editing_peers`, and by the
caches that are put upon diffusers' own pipeline.
"""

from __future__ import annotations

from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from bench.editing.engines import Made
from bench.editing.points import PeerSettings
from bench.editing_peers import EditingPeers, RegionE, SpotEdit
from fresco_trt.bench.peers import FlopMeter, cache_of
from fresco_trt.bench.plain import load_pipeline
from fresco_trt.bench.scenes.edit_judge import judged_edits
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bench.editing.engines import Draw, Engines, Prepared
    from bench.editing.points import EditPoint, Hook

FITTED_EDITS, FITTED_SEED = 7, 9
"""How many edits RegionE's gamma is fitted to, and which: none that is measured."""

BACKEND = "eager"
"""What peers run on, and so everything that they are compared with."""


def check_backend(name: str, points: Sequence[EditPoint]) -> None:
    """Raise IncompatibleOptions for peers beside engines of another library than theirs: seconds
    would compare the libraries.
    """
    if name != BACKEND and any(point.peer is not None for point in points):
        raise IncompatibleOptions(
            f"--backend {name} with peers such as SpotEdit",
            expected=f"{BACKEND}, on which they run",
            fix="leave --backend out, or name other points with --only",
        )


def peer_draws(engines: Engines, points: Sequence[EditPoint]) -> dict[str, Draw]:
    """What draws the points of peers, by their names."""
    given = {point.name: point.peer for point in points if point.peer is not None}
    settings = {name: each for name, each in given.items() if isinstance(each, PeerSettings)}
    hooks = {name: each for name, each in given.items() if not isinstance(each, PeerSettings)}
    return _by_rule(engines, settings) | {
        name: _hooked(engines, each) for name, each in hooks.items()
    }


def _by_rule(engines: Engines, settings: Mapping[str, PeerSettings]) -> dict[str, Draw]:
    if not settings:
        return {}
    peers = EditingPeers(engines.facts, engines.transformer(), engines.decode, engines.size)

    @cache
    def gamma() -> tuple[float, ...]:
        edits = judged_edits(FITTED_EDITS, FITTED_SEED)
        return peers.fitted_gamma([engines.prepared(edit).conditioning for edit in edits])

    return {name: _draw(peers, _rule(each, gamma)) for name, each in settings.items()}


def _rule(settings: PeerSettings, gamma: Callable[[], tuple[float, ...]]) -> SpotEdit | RegionE:
    if settings.rule == "spotedit":
        return SpotEdit.at(settings.steps)
    if settings.is_fitted:
        return RegionE.at(settings.steps, gamma())
    return RegionE.at(settings.steps)


def _draw(peers: EditingPeers, rule: SpotEdit | RegionE) -> Draw:
    def draw(prepared: Prepared, seed: int) -> Made:
        found = peers.draw(rule, prepared.conditioning, seed)
        return Made(
            pixels=found.pixels,
            seconds=found.seconds,
            engine_seconds=found.engine_seconds,
            flops=found.flops,
            mask=found.mask,
        )

    return draw


# --- diffusers' pipeline ----------------------------------------------------------------------


def _hooked(engines: Engines, settings: Hook) -> Draw:
    """diffusers' pipeline with a cache on it; a new pipeline, since cache-dit rewrites modules.

    What cannot be imported is raised by the first draw, as what fails there is.
    """
    pipe: Any = None
    width, height = engines.size[:2]
    cell = engines.facts.vae_scale * engines.facts.patch
    length = 2 * (width // cell) * (height // cell) + engines.facts.text_tokens

    def draw(prepared: Prepared, seed: int) -> Made:
        nonlocal pipe
        pipe = pipe or _pipeline(engines.folder)
        with cache_of(settings)(pipe), FlopMeter(pipe.transformer, length) as meter:
            began = perf_counter()
            latents = _denoised(pipe, engines, prepared, seed, settings.steps)
            seconds = perf_counter() - began
        pixels = engines.decode(latents)[0]
        return Made(pixels=pixels, seconds=seconds, engine_seconds=None, flops=meter.flops)

    return draw


def _pipeline(folder: Path) -> Any:
    import diffusers

    untyped: Any = diffusers
    pipe = untyped.FluxKontextPipeline.from_pipe(load_pipeline(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _denoised(pipe: Any, engines: Engines, prepared: Prepared, seed: int, steps: int) -> Tensor:
    """Normalised latents [1,C,h,w]: prompt and source are encoded already, as everywhere here."""
    width, height = engines.size[:2]
    inputs, (source,) = prepared.conditioning.inputs, prepared.conditioning.references
    # FluxPipeline names this context to the hooks for each step, FluxKontextPipeline does not.
    with torch.inference_mode(), pipe.transformer.cache_context("cond"):
        tokens = pipe(
            image=source,
            prompt_embeds=inputs["text"],
            pooled_prompt_embeds=inputs["pooled"],
            width=width,
            height=height,
            max_area=width * height,
            num_inference_steps=steps,
            guidance_scale=engines.facts.guidance_default,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    latents: Tensor = pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)
    return latents
