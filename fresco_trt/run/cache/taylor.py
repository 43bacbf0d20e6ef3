"""A polynomial through the last full steps' features, continued.

After TaylorSeer (arXiv 2503.06923), in its lite form with one cached tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fresco_trt.plan.caching import CachePlan
from fresco_trt.run.cache.base import Places, check_no_scale, check_order
from fresco_trt.run.cache.differences import (
    Differences,
    Weights,
    continued,
    divided,
    monomials,
    newton,
    recursive,
)

Advance: TypeAlias = Callable[[Differences, Tensor, float, int], Differences]

VARIANTS: Mapping[str, tuple[Advance, Weights]] = {
    "": (divided, newton),
    "published": (recursive, monomials),
}
"""How differences are taken and weighed, by the plan's name for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaylorPredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` that keeps ``order + 1`` features.

    By default the polynomial of degree ``order`` through the last ``order + 1`` observations, at
    any spacing: a series that is such a polynomial is continued exactly.

    ``variant`` "published" is TaylorSeer's ``sum D_i k^i / i!`` over recursive differences. Its
    first difference is the slope half a spacing back, which nothing corrects, so it is exact to
    degree 1 only: with the last spacings h (newest) and g, the series ``c x^2`` is missed by
    ``c (-h k + k^2 (g - h) / (2 h))``, which is ``-c h k`` on even spacing. Order 1 is the same in
    both. Raises ValueError for another variant.
    """

    order: int = 2
    variant: str = ""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r}; expected one of {tuple(VARIANTS)}")

    def start(self) -> Differences:
        """As in the protocol."""
        return Differences()

    def observe(self, state: Differences, feature: Tensor, at: float) -> Differences:
        """As in the protocol. Raises ValueError where ``at`` does not go on in its direction."""
        advance, _ = VARIANTS[self.variant]
        with torch.no_grad():
            return advance(state, feature.clone(), at, self.order)

    def predict(self, state: Differences, at: float) -> Tensor:
        """As in the protocol; at the last observation's axis value, its feature."""
        _, weights = VARIANTS[self.variant]
        return continued(state, weights, at)

    def nbytes(self, feature_bytes: int) -> int:
        """``order + 1`` features: the last one and its differences."""
        return (self.order + 1) * feature_bytes


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> TaylorPredictor:
    """Of a plan. Raises IncompatibleOptions for an order outside 1..3 or a scale."""
    check_order(cache)
    check_no_scale(cache)
    return TaylorPredictor(order=cache.order, variant=cache.variant)
