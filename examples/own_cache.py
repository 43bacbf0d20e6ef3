"""A cache predictor of one's own: a line whose slope fades, beside two that ship.

    python examples/own_cache.py

Prints how close each cache stays to the picture of all full steps, in dB: more is closer. One
picture is an example and no measurement; `fresco-trt bench` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch

import fresco_trt
from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.base import empty_cache
from fresco_trt.run.cache.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan

TRAITS = CacheTraits(name="fading", orders=(1,), default_order=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What is kept between steps: the last full step's feature, the slope to it, and its place."""

    feature: Tensor
    slope: Tensor | None
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FadingPredictor:
    """The last feature and its slope, of which each further step counts ``fade`` times as much."""

    fade: float = 0.2

    def start(self) -> Seen | None:
        """Nothing is kept yet."""
        return None

    def observe(self, state: Seen | None, feature: Tensor, at: float) -> Seen:
        """Keep a copy: the engine's next call overwrites ``feature``."""
        kept = feature.detach().clone()
        slope = None if state is None else (kept - state.feature) / (at - state.at)
        return Seen(feature=kept, slope=slope, at=at)

    def predict(self, state: Seen | None, at: float) -> Tensor:
        """``F + D (1 + fade + fade^2 + ...)``, a term a step."""
        if state is None:
            raise empty_cache()
        if state.slope is None:
            return state.feature
        reach = (1.0 - self.fade ** (at - state.at)) / (1.0 - self.fade)
        return state.feature + reach * state.slope

    def nbytes(self, feature_bytes: int) -> int:
        """A feature and a slope."""
        return 2 * feature_bytes


def make(cache: CachePlan, grid: object, basis: Tensor | None) -> FadingPredictor:
    """Called for each stage, with the plan's settings, the stage's grid and a basis, if any."""
    return FadingPredictor()


def draw(pipe: Any, cache: str) -> np.ndarray:
    """One picture of 16 steps; the same noise in every call."""
    fresco_trt.enable(pipe, stages=1, shift=9, cache=cache)
    result = pipe(
        "a bell on a plain blue background",
        width=64,
        height=64,
        num_inference_steps=16,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    )
    picture: np.ndarray = result.images[0]
    return picture


def main() -> None:
    """Register, and compare."""
    register(TRAITS, make)
    pipe = diffusers.FluxPipeline.from_pretrained(fresco_trt.pretrained("flux-tiny"))
    pipe.set_progress_bar_config(disable=True)
    full = draw(pipe, "none")
    for name in ("reuse", "taylor,max_order=1", "fading"):
        picture = draw(pipe, f"{name},interval=3,warmup_steps=3")
        error = float(np.square(picture - full).mean())
        print(f"{name}: {-10 * np.log10(error):.1f} dB")


if __name__ == "__main__":
    main()
