"""Which predictor a plan means: one line a predictor, all else in its own file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.caching import register_traits
from fresco_trt.run.cache import coarse_velocity, freqca, hicache, reuse, svd, taylor

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan, CacheTraits
    from fresco_trt.run.cache.base import Make, Places, Predictor

_MAKERS: dict[str, Make | None] = {}


def register(traits: CacheTraits, make: Make | None) -> None:
    """Make a predictor known by its traits' name, one of your own too: to plans, builds and runs.

    ``make(cache, grid, basis)`` gives the predictor of a stage; None is for coarse velocities,
    which the sampler asks for itself. Once a process, before the first plan with it; a bundle whose
    plan names it is opened only where it is registered. Raises ValueError for a name that another
    predictor has, and for a feature that nothing predicts.
    """
    if (make is None) != (traits.predicts == "velocity"):
        raise ValueError(f"{traits.name} predicts a {traits.predicts}; expected make for a feature")
    register_traits(traits)
    _MAKERS[traits.name] = make


def predictor(cache: CachePlan, *, grid: Places | None, basis: Tensor | None) -> Predictor[Any]:
    """The predictor of a stage.

    ``grid`` is (frames, rows, columns) in tokens, or None where tokens of two sizes are mixed.
    ``basis`` is float32 [H,k] with orthonormal columns, on the features' device, or None where
    there is none.

    Raises IncompatibleOptions for what the traits of the cache need and was not given, and for a
    cache that predicts no feature.
    """
    traits, make = cache.traits, _MAKERS[cache.name]
    if make is None:
        raise IncompatibleOptions(
            f"the cache {cache.name!r}, which predicts no feature",
            expected="one that does",
            fix="use the cache 'hicache'",
        )
    if traits.needs_basis and basis is None:
        raise IncompatibleOptions(
            f"the cache {cache.name!r} without a basis",
            expected="the SVD basis of this model's features",
            fix="calibrate one, or use the cache 'taylor', which needs none",
        )
    if traits.needs_whole_grid and grid is None:
        raise IncompatibleOptions(
            f"the cache {cache.name!r} on a mixed grid",
            expected="tokens of one size: it needs a whole grid",
            fix="use the cache 'taylor' or 'hicache', or a preset without mixed stages",
        )
    return make(cache, grid, basis)


register(reuse.TRAITS, reuse.make)
register(taylor.TRAITS, taylor.make)
register(hicache.TRAITS, hicache.make)
register(svd.TRAITS, svd.make)
register(freqca.TRAITS, freqca.make)
register(coarse_velocity.TRAITS, None)
