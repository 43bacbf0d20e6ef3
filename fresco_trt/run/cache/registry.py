"""Which predictor a plan means: one line a cache, the checks of its settings in its own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from fresco_trt.plan.caching import CacheName, CachePlan
from fresco_trt.run.cache import freqca, hicache, reuse, svd, taylor
from fresco_trt.run.cache.base import Places, Predictor

Make: TypeAlias = Callable[[CachePlan, Places | None, Tensor | None], Predictor[Any]]

PREDICTORS: Mapping[CacheName, Make] = {
    "reuse": reuse.make,
    "taylor": taylor.make,
    "hicache": hicache.make,
    "svd": svd.make,
    "freqca": freqca.make,
}
"""Makes a predictor from a plan, a grid and a basis: by the plan's name for it."""


def predictor(cache: CachePlan, *, grid: Places | None, basis: Tensor | None) -> Predictor[Any]:
    """The predictor of a stage.

    ``grid`` is (frames, rows, columns) in tokens, or None where tokens of two sizes are mixed; only
    "freqca" reads it. ``basis`` is float32 [H,k] with orthonormal columns, on the features' device,
    or None where there is none; only "svd" reads it.

    Raises IncompatibleOptions for what the cache needs and was not given, and for settings that it
    would ignore or cannot take; ValueError for a Hermite basis over sigmas.
    """
    return PREDICTORS[cache.name](cache, grid, basis)
