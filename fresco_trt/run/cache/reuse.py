"""The last full step's feature again: order zero, and what every other cache is measured against.

FORA (arXiv 2407.01425), with the one feature after the last block in place of every block's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.base import empty_cache

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.run.cache.base import Places

TRAITS = CacheTraits(name="reuse", orders=(0,), default_order=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReusePredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` that keeps one feature."""

    def start(self) -> Tensor | None:
        """As in the protocol."""
        return None

    def observe(self, state: Tensor | None, feature: Tensor, at: float) -> Tensor | None:
        """As in the protocol; ``state`` and ``at`` do not matter."""
        return feature.detach().clone()

    def predict(self, state: Tensor | None, at: float) -> Tensor:
        """The state's own tensor, wherever ``at`` is."""
        if state is None:
            raise empty_cache()
        return state

    def nbytes(self, feature_bytes: int) -> int:
        """One feature."""
        return feature_bytes


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> ReusePredictor:
    """Of any settings: it has none."""
    return ReusePredictor()
