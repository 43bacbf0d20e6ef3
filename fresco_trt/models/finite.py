"""Whether every number of a tensor is one, at the cost of reading it once.

Beside the data path: asked of weights, of what prompt encoders, engines and decoder give. Not a
number passes through every sum, and ends as a black picture. Importing this file imports no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fresco_trt.errors import NonFiniteValues

if TYPE_CHECKING:
    from torch import Tensor


def extremes(value: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number of a tensor, on its device: both are finite just where
    all are, because what is no number is smallest and largest.
    """
    smallest, largest = value.aminmax()
    return smallest, largest


def all_finite(value: Tensor) -> bool:
    """Whether every number of ``value`` is finite; waits for its device."""
    return not value.numel() or all(math.isfinite(float(each)) for each in extremes(value))


def require_finite(value: Tensor, part: str) -> None:
    """Raise NonFiniteValues unless every number that ``part`` of a pipeline folder gave is one."""
    if not all_finite(value):
        raise NonFiniteValues(
            f"{part} gave values that are not finite",
            expected="finite numbers: the picture would be black",
            fix="build the bundle again from a pipeline folder whose weights are finite",
        )
