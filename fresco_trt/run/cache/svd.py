"""SVD-Cache: the principal part of a feature is continued, the residual is reused.

"Forecast the Principal, Stabilize the Residual" (arXiv 2601.07396). The channels' principal
directions are measured once (:func:`directions_of`) and hold for other prompts; only the tokens'
coefficients in them move along the path, and those are all that is continued.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.caching import DEFAULTS, CachePlan
from fresco_trt.run.cache.base import Places, check_no_scale, check_order, empty_cache
from fresco_trt.run.cache.differences import Differences, Parts, continued, divided, newton

BETA = 0.9
"""Share of the past in each moving average; the paper's, fixed."""

# --- the basis --------------------------------------------------------------------------------


def directions_of(gram: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """The SVD basis of features [M,H], one token a row, and all singular values.

    ``gram`` is their Gram matrix ``F^T F``, float64 [H,H]: those of features that come a few at a
    time add up. The directions are float64 [H,k], orthonormal columns, k the smallest with
    ``sum_{i<=k} s_i^2 >= energy * sum s_i^2``; the entry of largest magnitude of each is positive.
    The singular values are float64 [H], falling. Raises ValueError for an energy outside (0, 1],
    and for features that are all zero or not finite.
    """
    power = float(gram.trace())
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy {energy:g}; expected a share within (0, 1]")
    if not 0.0 < power < math.inf:
        raise ValueError(f"features of energy {power:g}; expected finite ones, not all zero")
    powers, vectors = torch.linalg.eigh(gram)
    powers, vectors = powers.flip(0).clamp(min=0.0), vectors.flip(1)
    held = powers.cumsum(0)
    rank = int((held < energy * held[-1]).sum()) + 1
    return _signed(vectors[:, :rank]), powers.sqrt()


def _signed(vectors: Tensor) -> Tensor:
    """Columns turned so that the entry of largest magnitude is positive."""
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors * vectors.gather(0, largest).sign()


def split(feature: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Principal coefficients [B,N,k] and residual [B,N,H] of ``feature`` [B,N,H].

    ``basis`` is [H,k] with orthonormal columns: the principal part is ``F V V^T``, from which the
    paper's singular values cancel, and what remains is the residual.
    """
    with torch.no_grad():
        coefficients = feature @ basis
        return coefficients, feature - coefficients @ basis.T


# --- what becomes of the coefficients -----------------------------------------------------------


def _averaged(past: Differences, value: Tensor, at: float, order: int) -> Differences:
    """``beta * past + (1 - beta) * value``, the first as it is."""
    return Differences(table=(_mix(past.table[0], value) if past.table else value,), at=(at,))


def _sloped(past: Differences, value: Tensor, at: float, order: int) -> Differences:
    """The value, and a moving average of the slopes up to it, the first as it is."""
    now = divided(past, value, at, 1)
    if len(past.table) < 2:
        return now
    return Differences(table=(value, _mix(past.table[1], now.table[1])), at=now.at)


def _mix(past: Tensor, new: Tensor) -> Tensor:
    with torch.no_grad():
        return past.lerp(new, 1.0 - BETA)


Advance: TypeAlias = Callable[[Differences, Tensor, float, int], Differences]

VARIANTS: Mapping[str, Advance] = {
    "": divided,
    "literal": _averaged,
    "slope": _sloped,
}
"""The coefficients after an observation, by the plan's name for it; the first is the default."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SvdPredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` on a basis [H,k] of orthonormal columns.

    The basis has the features' dtype and lies on their device. The principal part's coefficients
    are continued by ``variant``:

    - "", the default: the polynomial of degree ``order`` through the last ``order + 1``, a
      predictor on the principal part as in the paper's Figure 5(b);
    - "slope": the last value plus a moving average of its slopes (Holt's method): exact on a line;
    - "literal": a moving average of the values, as the paper's equation reads. It is constant until
      the next full step, and lags about ten full steps behind.

    A state keeps one feature, the residual, and coefficients of k / H of one each: ``order + 1`` of
    them by default, 2 for "slope", 1 for "literal". Raises ValueError for another variant or shape.
    """

    basis: Tensor = field(repr=False)
    variant: str = ""
    order: int = 2

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r}; expected one of {tuple(VARIANTS)}")
        shape = tuple(self.basis.shape)
        if len(shape) != 2 or not 0 < shape[1] <= shape[0]:
            raise ValueError(f"a basis of shape {shape}; expected [H,k] with k from 1 to H")

    def start(self) -> Parts | None:
        """As in the protocol."""
        return None

    def observe(self, state: Parts | None, feature: Tensor, at: float) -> Parts | None:
        """As in the protocol. Raises ValueError for features of another width than the basis'."""
        if feature.shape[-1] != len(self.basis):
            given, expected = tuple(feature.shape), len(self.basis)
            raise ValueError(f"a feature of shape {given}; expected {expected} channels")
        past = state.continued if state is not None else Differences()
        coefficients, residual = split(feature, self.basis)
        advanced = VARIANTS[self.variant](past, coefficients, at, self.order)
        return Parts(reused=residual, continued=advanced)

    def predict(self, state: Parts | None, at: float) -> Tensor:
        """As in the protocol; always a new tensor."""
        if state is None:
            raise empty_cache()
        with torch.no_grad():
            principal = continued(state.continued, newton, at) @ self.basis.T
            return principal.add_(state.reused)

    def nbytes(self, feature_bytes: int) -> int:
        """The residual and the coefficients."""
        width, rank = self.basis.shape
        kept = {"literal": 1, "slope": 2}.get(self.variant, self.order + 1)
        return feature_bytes + kept * -(-feature_bytes * rank // width)


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> SvdPredictor:
    """Of a plan and a basis.

    Raises IncompatibleOptions without a basis, for a scale, for an order outside 1..3, and for any
    but the default order with the two variants that have none.
    """
    if basis is None:
        raise IncompatibleOptions(
            "the cache 'svd' without a basis",
            expected="the SVD basis of this model's features",
            fix="calibrate one, or use the cache 'taylor', which needs none",
        )
    has_order = VARIANTS[cache.variant] is divided
    check_order(cache, None if has_order else (DEFAULTS["svd"].order,))
    check_no_scale(cache)
    return SvdPredictor(basis=basis, variant=cache.variant, order=cache.order)
