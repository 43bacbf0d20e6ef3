"""A polynomial through the last full steps' features, continued.

After TaylorSeer (arXiv 2503.06923), in its lite form with one cached tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.differences import Differences, continued, divided, newton

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.run.cache.base import Places

TRAITS = CacheTraits(name="taylor", orders=(1, 2, 3), default_order=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaylorPredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` that keeps ``order + 1`` features.

    The polynomial of degree ``order`` through the last ``order + 1`` observations, at any spacing:
    a series that is such a polynomial is continued exactly. TaylorSeer's own sum, ``D_i k^i / i!``
    over recursive differences, is exact to degree 1 only.
    """

    order: int = 2

    def start(self) -> Differences:
        """As in the protocol."""
        return Differences()

    def observe(self, state: Differences, feature: Tensor, at: float) -> Differences:
        """As in the protocol. Raises ValueError where ``at`` does not go on in its direction."""
        return divided(state, feature.detach().clone(), at, self.order)

    def predict(self, state: Differences, at: float) -> Tensor:
        """As in the protocol; at the last observation's axis value, its feature."""
        return continued(state, newton, at)

    def nbytes(self, feature_bytes: int) -> int:
        """``order + 1`` features: the last one and its differences."""
        return (self.order + 1) * feature_bytes


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> TaylorPredictor:
    """Of a plan's settings."""
    return TaylorPredictor(order=cache.max_order)
