"""The seam between the sampler and a cache: what a predictor does, and how one is made.

A predictor's file has its traits and its factory, and imports torch where it uses it: planning
reads the traits without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan

State = TypeVar("State")

Places: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns of a grid of tokens."""


class Predictor(Protocol[State]):
    """Frozen settings; every state is an immutable value that is threaded through.

    Two requests with one predictor share nothing but the settings. Features are float32 [B,N,H]: B
    pictures, N image tokens of one grid in raster order, H channels. The axis counts the steps of a
    stage.
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


Make: TypeAlias = "Callable[[CachePlan, Places | None, Tensor | None], Predictor[Any]]"
"""Makes a predictor from a plan's settings, a grid (frames, rows, columns) in tokens, None where
tokens of two sizes are mixed, and an SVD basis [H,k], None unless the traits ask for one."""
