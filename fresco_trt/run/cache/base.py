"""The seam between the sampler and a cache, and the checks that the caches' factories share.

A factory (``make`` in each predictor's file) reads a :class:`~fresco_trt.plan.caching.CachePlan`
and refuses what it would ignore: a setting without effect is a mistake that nobody would notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

from torch import Tensor

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.caching import DEFAULTS, ORDERS, CachePlan

State = TypeVar("State")

Places: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns of a grid of tokens."""


class Predictor(Protocol[State]):
    """Frozen settings; every state is an immutable value that is threaded through.

    Two requests with one predictor share nothing but the settings. Features are float32 [B,N,H]: B
    pictures, N image tokens of one grid in raster order, H channels. Axis values are either step
    indices or sigmas, whichever the plan says, in one direction within a stage.
    """

    def start(self) -> State:
        """The empty cache."""
        ...

    def observe(self, state: State, feature: Tensor, at: float) -> State:
        """The cache after a full step at axis value ``at``.

        Copies what it keeps: ``feature`` belongs to the engine, whose next call overwrites it.
        """
        ...

    def predict(self, state: State, at: float) -> Tensor:
        """The feature [B,N,H], in the observed dtype, at a later axis value.

        Read it only: it may be a tensor of the state's. Raises ValueError on an empty state.
        """
        ...

    def nbytes(self, feature_bytes: int) -> int:
        """Upper bound of the bytes that a state keeps, for features of ``feature_bytes`` each."""
        ...


def empty_cache() -> ValueError:
    """What predicting from an empty state raises."""
    return ValueError("a prediction from an empty cache; expected a full step before it")


# --- checks of a plan ---------------------------------------------------------------------------


def check_order(cache: CachePlan, accepted: Sequence[int] | None = None) -> None:
    """Raises IncompatibleOptions unless the plan's order is ``accepted``, None: one of ORDERS."""
    accepted = ORDERS[cache.name] if accepted is None else accepted
    if cache.order not in accepted:
        orders = " or ".join(map(str, accepted))
        raise IncompatibleOptions(
            f"order {cache.order} for {_named(cache)}",
            expected=f"{orders}: it reads no other",
            fix=f"use order {orders}",
        )


def check_no_scale(cache: CachePlan) -> None:
    """Raises IncompatibleOptions if a scale was set for a cache that has none."""
    unset = DEFAULTS[cache.name].scale
    if cache.scale != unset:
        raise IncompatibleOptions(
            f"scale {cache.scale:g} for {_named(cache)}",
            expected="no scale: only a Hermite basis has one",
            fix=f"leave the scale at {unset:g}",
        )


def _named(cache: CachePlan) -> str:
    variant = f", variant {cache.variant!r}" if cache.variant else ""
    return f"the cache {cache.name!r}{variant}"
