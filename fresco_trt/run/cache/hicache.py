"""HiCache: the differences of TaylorSeer on a scaled Hermite basis (arXiv 2508.16984)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import TYPE_CHECKING

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.differences import Differences, Weights, continued, recursive

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.run.cache.base import Places

TRAITS = CacheTraits(name="hicache", orders=(1, 2, 3), default_order=2)

SCALE = 0.5
"""Contraction of the basis: the paper's for FLUX.1-dev."""


def hermite(order: int, x: float, scale: float) -> list[float]:
    """``Ht_n(x) = scale^n H_n(scale x)`` for n from 0 to ``order``; H_n are the physicists'.

    The dual scaling of the paper, in the recurrence ``Ht_{n+1} = 2 s^2 (x Ht_n - n Ht_{n-1})`` that
    follows from ``H_{n+1} = 2 x H_n - 2 n H_{n-1}``.
    """
    values = [1.0, 2 * scale**2 * x]
    for n in range(1, order):
        values.append(2 * scale**2 * (x * values[n] - n * values[n - 1]))
    return values[: order + 1]


def hermite_weights(scale: float) -> Weights:
    """``Ht_i(k) / i!`` with ``k`` from the newest observation.

    Forward in the axis: the paper's ``Ht_i(-k)`` belongs to its differences of older minus newer.
    """

    def weights(observed: Sequence[float], at: float) -> Sequence[float]:
        values = hermite(len(observed) - 1, at - observed[0], scale)
        return [value / factorial(i) for i, value in enumerate(values)][1:]

    return weights


@dataclass(frozen=True, kw_only=True, slots=True)
class HiCachePredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` that keeps ``order + 1`` features.

    ``F + sum_i D_i / i! Ht_i(k)`` with recursive differences. With s the scale, order 2 is
    ``F + 2 s^2 k D_1 + (2 s^4 k^2 - s^2) D_2``: both slope and curvature are damped, and even at
    k = 0 a constant ``-s^2 D_2`` is left. Order 1 continues a line exactly at s = sqrt(1/2).

    The axis is to count steps: that constant weighs a difference per unit squared, so the forecast
    depends on the unit. Which way the axis runs does not matter.
    """

    order: int = 2
    scale: float = SCALE

    def start(self) -> Differences:
        """As in the protocol."""
        return Differences()

    def observe(self, state: Differences, feature: Tensor, at: float) -> Differences:
        """As in the protocol. Raises ValueError where ``at`` does not go on in its direction."""
        return recursive(state, feature.detach().clone(), at, self.order)

    def predict(self, state: Differences, at: float) -> Tensor:
        """As in the protocol."""
        return continued(state, hermite_weights(self.scale), at)

    def nbytes(self, feature_bytes: int) -> int:
        """``order + 1`` features: the last one and its differences."""
        return (self.order + 1) * feature_bytes


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> HiCachePredictor:
    """Of a plan's settings."""
    return HiCachePredictor(order=cache.max_order)
