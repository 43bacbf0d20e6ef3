"""FreqCa: low spatial frequencies of a feature are reused, high ones continued.

arXiv 2510.08669, in its form for FLUX: a two-dimensional DCT over the token grid. Reused and
continued are the other way round than by energy (:mod:`fresco_trt.run.cache.svd`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.run.cache.base import empty_cache
from fresco_trt.run.cache.differences import Differences, Parts, continued, recursive
from fresco_trt.run.cache.hicache import hermite_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.run.cache.base import Places

TRAITS = CacheTraits(
    name="freqca", orders=(1, 2, 3), default_order=2, needs_whole_grid=True, kept=2
)

SCALE = 0.71
"""Contraction of the high band's basis, as published."""

REACH = 10
"""The low band's radius is the largest radius divided by this."""


# --- the bands --------------------------------------------------------------------------------


@lru_cache
def low_counts(rows: int, columns: int) -> tuple[int, ...]:
    """For each vertical frequency u, how many horizontal ones v, from 0 on, are in the low band.

    Those with ``hypot(u / rows, v / columns)`` at most a tenth of the grid's largest: what varies
    equally fast per token is equally low on both axes, and on a square grid this is the published
    radius of indices. In integers, so that the rim is in on every machine.
    """
    rim = ((rows - 1) * columns) ** 2 + ((columns - 1) * rows) ** 2
    return tuple(
        sum(REACH**2 * ((u * columns) ** 2 + (v * rows) ** 2) <= rim for v in range(columns))
        for u in range(rows)
    )


@lru_cache(maxsize=16)
def low_band(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The low band's basis [L,N] over N = ``rows`` x ``columns`` tokens: orthonormal rows.

    Made where the features are, once a grid, from slices: nothing is copied to the device.
    """
    import torch

    from fresco_trt.run.resample import dct

    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the basis of a grid would be kept in memory that other graphs write to")
    down, across = dct(rows, device), dct(columns, device)
    counts = enumerate(low_counts(rows, columns))
    bands = [torch.kron(down[u : u + 1], across[:count]) for u, count in counts if count]
    return torch.cat(bands).to(dtype)


def split(feature: Tensor, band: Tensor) -> tuple[Tensor, Tensor]:
    """Low coefficients [B,L,H] and the high band [B,N,H] of ``feature`` [B,N,H].

    ``band`` is :func:`low_band`'s [L,N]; what it does not span is the high band.
    """
    feature = feature.detach()
    low = band @ feature
    return low, feature - band.T @ low


# --- the predictor ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FreqCaPredictor:
    """A :class:`~fresco_trt.run.cache.base.Predictor` for ``frames`` of ``rows`` x ``columns``
    tokens.

    The high band goes as in :class:`~fresco_trt.run.cache.hicache.HiCachePredictor`, and for the
    same reason the axis is to count steps; at the default scale, the published code's 0.71, a slope
    is continued nearly as it is. A state keeps ``order + 1`` features of the high band, and L / N
    of one for the low band's L coefficients.
    """

    rows: int
    columns: int
    frames: int = 1
    order: int = 2
    scale: float = SCALE

    def start(self) -> Parts | None:
        """As in the protocol."""
        return None

    def observe(self, state: Parts | None, feature: Tensor, at: float) -> Parts | None:
        """As in the protocol. Raises ValueError for another number of tokens than the grid's."""
        each = self.rows * self.columns
        if feature.ndim != 3 or feature.shape[1] != self.frames * each:
            given, grid = tuple(feature.shape), f"{self.frames}x{self.rows}x{self.columns}"
            raise ValueError(f"a feature of shape {given}; expected [B,N,H] with N of {grid}")
        past = state.continued if state is not None else Differences()
        frames = feature.reshape(-1, each, feature.shape[-1])
        low, high = split(frames, self._band(frames))
        return Parts(reused=low, continued=recursive(past, high, at, self.order))

    def predict(self, state: Parts | None, at: float) -> Tensor:
        """As in the protocol; always a new tensor."""
        if state is None:
            raise empty_cache()
        high = continued(state.continued, hermite_weights(self.scale), at)
        frames = (self._band(high).T @ state.reused).add_(high)
        return frames.reshape(-1, self.frames * high.shape[1], high.shape[2])

    def nbytes(self, feature_bytes: int) -> int:
        """The high band with its differences, and the low band's coefficients."""
        tokens, low = self.rows * self.columns, sum(low_counts(self.rows, self.columns))
        return (self.order + 1) * feature_bytes - (-feature_bytes * low // tokens)

    def _band(self, like: Tensor) -> Tensor:
        return low_band(self.rows, self.columns, like.dtype, like.device)


def make(cache: CachePlan, grid: Places | None, basis: Tensor | None) -> FreqCaPredictor:
    """Of a plan's settings and a grid (frames, rows, columns). Raises ValueError without one."""
    if grid is None:
        raise ValueError("no grid; expected (frames, rows, columns) in tokens")
    frames, rows, columns = grid
    return FreqCaPredictor(frames=frames, rows=rows, columns=columns, order=cache.max_order)
