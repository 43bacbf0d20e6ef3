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
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FiniteCheck:
    """The extremes of what engines gave, for as long as nobody has looked at them.

    With ``waits`` nobody looks before :meth:`require`, on the CPU neither.
    """

    waits: bool = False
    _seen: list[tuple[str, str, Tensor, Tensor]] = field(default_factory=list)

    def watch(self, velocity: Tensor, *, engine: str, where: str) -> None:
        """Note a velocity of ``engine``. On the CPU it is looked at now; on another device that
        would hold up the steps to come.
        """
        self._seen.append((where, engine, *extremes(velocity)))
        if velocity.device.type == "cpu" and not self.waits:
            self.require()

    @property
    def calls(self) -> tuple[tuple[str, str], ...]:
        """Where and by which engine each velocity was given, in order."""
        return tuple((where, engine) for where, engine, *_ in self._seen)

    def extremes(self) -> Tensor:
        """The smallest and the largest number of each velocity in order, [2 * calls]."""
        import torch

        return torch.stack([each for *_, low, high in self._seen for each in (low, high)])

    def require(self) -> None:
        """Raise NonFiniteValues for the first velocity that was not finite; forget the others."""
        if not self._seen:
            return
        calls, extremes = self.calls, self.extremes()
        self._seen.clear()
        require_finite(calls, extremes)


def require_finite(calls: Sequence[tuple[str, str]], extremes: Tensor) -> None:
    """Raise NonFiniteValues for the first of a check's ``calls`` that was not finite; waits for the
    device of the ``extremes``.
    """
    numbers = extremes.tolist()  # one transfer for all of them
    for index, (where, engine) in enumerate(calls):
        if not all(map(math.isfinite, numbers[2 * index : 2 * index + 2])):
            with error_context(where):
                raise NonFiniteValues(
                    f"the engine {engine} gave a velocity that is not finite",
                    expected="finite numbers: all that follows would be black",
                    fix="look for what is not finite in the weights and in what was passed; "
                    "fp16 has no numbers over 65504, bf16 and fp32 have",
                )
