"""Difference tables over unevenly spaced full steps, and their continuation by weights.

Shared by every cache that extrapolates. Full steps need not be evenly spaced, so spacings are the
actual ones. A table holds at most ``order + 1`` tensors however many steps were seen; while fewer
than that were, its order is what they allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, TypeAlias

from fresco_trt.run.cache.base import empty_cache

if TYPE_CHECKING:
    from torch import Tensor

Weights: TypeAlias = Callable[[Sequence[float], float], Sequence[float]]
"""Of the differences from the first on, at an axis value; observed values are newest first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Differences:
    """``table`` is the newest value, its first difference, its second; all of one shape.

    ``at`` holds as many axis values, newest first. Empty until something is observed.
    """

    table: tuple[Tensor, ...] = ()
    at: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """The state of a cache that splits features: one part is reused, the other is continued."""

    reused: Tensor
    continued: Differences


# --- observing --------------------------------------------------------------------------------


def divided(past: Differences, value: Tensor, at: float, order: int) -> Differences:
    """Newton's divided differences: each over the whole span of the values that it is made of.

    Takes ``value`` over without a copy. Raises ValueError unless ``at`` goes on in the direction of
    the observations before.
    """
    return _advance(past, value, at, [at - each for each in past.at[:order]])


def recursive(past: Differences, value: Tensor, at: float, order: int) -> Differences:
    """TaylorSeer's differences (arXiv 2503.06923): each over the last spacing alone.

    ``D_{i+1} = (D_i - D_i_prev) / (at - at_prev)``, the i-th derivative on even spacing. Takes
    ``value`` over and raises as :func:`divided`.
    """
    return _advance(past, value, at, [at - past.at[0] for _ in past.at[:order]])


def _advance(past: Differences, value: Tensor, at: float, spans: Sequence[float]) -> Differences:
    _check_direction(past.at, at)
    table = [value]
    for before, span in zip(past.table, spans, strict=False):
        table.append((table[-1] - before).div_(span))
    return Differences(table=tuple(table), at=(at, *past.at)[: len(table)])


def _check_direction(before: Sequence[float], at: float) -> None:
    """Equal axis values would divide by zero; a turn would be a step back."""
    spans = [each - other for each, other in zip((at, *before), before, strict=False)]
    if not (all(span > 0 for span in spans) or all(span < 0 for span in spans)):
        raise ValueError(
            f"a full step at {at:g} after {', '.join(f'{each:g}' for each in before)} (newest "
            "first); expected axis values that all rise or all fall"
        )


# --- predicting -------------------------------------------------------------------------------


def continued(past: Differences, weights: Weights, at: float) -> Tensor:
    """The newest value plus the weighted differences, at ``at``.

    A tensor of the table's itself where there are no differences. Raises ValueError on no
    observation.
    """
    if not past.table:
        raise empty_cache()
    total = past.table[0]
    for difference, weight in zip(past.table[1:], weights(past.at, at), strict=True):
        total = total.add(difference, alpha=weight)
    return total


def newton(observed: Sequence[float], at: float) -> Sequence[float]:
    """``(x - x_0), (x - x_0)(x - x_1), ...``: the interpolating polynomial's, for divided ones."""
    return list(accumulate((at - each for each in observed[:-1]), mul))
