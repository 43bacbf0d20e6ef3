"""The last full step's feature again: order zero, and what every other cache is measured against.

FORA (arXiv 2407.01425), with the one feature after the last block in place of every block's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fresco_trt.plan.caching import CachePlan
from fresco_trt.run.cache.base import Places, check_no_scale, check_order, empty_cache


@dataclass(frozen=True, kw_only=True, slots=True)
class ReusePredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` that keeps one feature."""

    def start(self) -> Tensor | None:
        """As in the protocol."""
        return None

    def observe(self, state: Tensor | None, feature: Tensor, at: float) -> Tensor | None:
        """As in the protocol; ``state`` and ``at`` do not matter."""
        with torch.no_grad():
            return feature.clone()

    def predict(self, state: Tensor | None, at: float) -> Tensor:
        """The state's own tensor, wherever ``at`` is."""
        if state is None:
            raise empty_cache()
        return state

    def nbytes(self, feature_bytes: int) -> int:
        """One feature."""
        return feature_bytes


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> ReusePredictor:
    """Of a plan. Raises IncompatibleOptions for an order above 0 or a scale."""
    check_order(cache)
    check_no_scale(cache)
    return ReusePredictor()
