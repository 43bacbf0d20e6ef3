"""SVD-Cache: the principal part of a feature is continued, the residual is reused.

"Forecast the Principal, Stabilize the Residual" (arXiv 2601.07396). The channels' principal
directions are measured once (:func:`directions_of`) and hold for other prompts; only the tokens'
coefficients in them move along the path, and those are all that is continued.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.base import empty_cache
from fresco_trt.run.cache.differences import Differences, Parts, continued, divided, newton

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.run.cache.base import Places

# The basis is measured after the last block, and holds for no other site.
TRAITS = CacheTraits(
    name="svd", orders=(1, 2, 3), default_order=2, needs_basis=True, sites=("final",), kept=2
)

# --- the basis --------------------------------------------------------------------------------


def directions_of(gram: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """The SVD basis of features [M,H], one token a row, and all singular values.

    ``gram`` is their Gram matrix ``F^T F``, float64 [H,H]: those of features that come a few at a
    time add up. The directions are float64 [H,k], orthonormal columns, k the smallest with
    ``sum_{i<=k} s_i^2 >= energy * sum s_i^2``; the entry of largest magnitude of each is positive.
    The singular values are float64 [H], falling. Raises ValueError for an energy outside (0, 1],
    and for features that are all zero or not finite.
    """
    from torch.linalg import eigh

    power = float(gram.trace())
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy {energy:g}; expected a share within (0, 1]")
    if not 0.0 < power < math.inf:
        raise ValueError(f"features of energy {power:g}; expected finite ones, not all zero")
    powers, vectors = eigh(gram)
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
    feature = feature.detach()
    coefficients = feature @ basis
    return coefficients, feature - coefficients @ basis.T


# --- the predictor -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SvdPredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` on a basis [H,k] of orthonormal columns.

    The basis has the features' dtype and lies on their device. The principal part's coefficients
    are continued by the polynomial of degree ``order`` through the last ``order + 1``, a predictor
    on the principal part as in the paper's Figure 5(b). A state keeps one feature, the residual,
    and ``order + 1`` coefficients of k / H of one each. Raises ValueError for another shape.
    """

    basis: Tensor = field(repr=False)
    order: int = 2

    def __post_init__(self) -> None:
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
        advanced = divided(past, coefficients, at, self.order)
        return Parts(reused=residual, continued=advanced)

    def predict(self, state: Parts | None, at: float) -> Tensor:
        """As in the protocol; always a new tensor."""
        if state is None:
            raise empty_cache()
        principal = continued(state.continued, newton, at) @ self.basis.T
        return principal.add_(state.reused)

    def nbytes(self, feature_bytes: int) -> int:
        """The residual and the coefficients."""
        width, rank = self.basis.shape
        return feature_bytes + (self.order + 1) * -(-feature_bytes * rank // width)


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> SvdPredictor:
    """Of a plan's settings and a basis. Raises ValueError without one."""
    if basis is None:
        raise ValueError("no basis; expected one of orthonormal columns [H,k]")
    return SvdPredictor(basis=basis, order=cache.max_order)
