"""Whether the velocities of a request are numbers, without waiting for the device that makes them.

Under the loop of :mod:`fresco_trt.run.sampler`. One that is not finite makes all that follows
black: what stops it says the stage, the step and the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fresco_trt.errors import NonFiniteValues, error_context
from fresco_trt.models.finite import extremes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FiniteCheck:
    """The extremes of what engines gave, for as long as nobody has looked at them."""

    _seen: list[tuple[str, str, Tensor, Tensor]] = field(default_factory=list)

    def watch(self, velocity: Tensor, *, engine: str, where: str) -> None:
        """Note a velocity of ``engine``. On the CPU it is looked at now; on another device that
        would hold up the steps to come.
        """
        self._seen.append((where, engine, *extremes(velocity)))
        if velocity.device.type == "cpu":
            self.require()

    def require(self) -> None:
        """Raise NonFiniteValues for the first velocity that was not finite; forget the others."""
        import torch

        if not self._seen:
            return
        seen = list(self._seen)
        self._seen.clear()
        # One transfer for all of them.
        numbers = torch.stack([each for *_, low, high in seen for each in (low, high)]).tolist()
        for index, (where, engine, *_) in enumerate(seen):
            if not all(map(math.isfinite, numbers[2 * index : 2 * index + 2])):
                with error_context(where):
                    raise NonFiniteValues(
                        f"the engine {engine} gave a velocity that is not finite",
                        expected="finite numbers: all that follows would be black",
                        fix="look for what is not finite in the weights and in what was passed; "
                        "fp16 has no numbers over 65504, bf16 and fp32 have",
                    )
