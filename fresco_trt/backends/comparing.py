"""Two runners of one signature side by side: what an engine's outputs differ by, step for step.

Used by ``verify.py`` and by the quality gate of a quantised build.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import BorrowedRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fresco_trt.backends.base import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """Worst errors of one engine output over its steps.

    `max` is the largest absolute difference, `relative` that over the reference's largest value,
    `cosine` is one minus the cosine similarity. All are infinite for an output that is not finite.
    """

    engine: str
    output: str
    max: float
    relative: float
    cosine: float

    def worst(self, other: OutputError) -> OutputError:
        """The larger of both in every measure."""
        return OutputError(
            engine=self.engine,
            output=self.output,
            max=max(self.max, other.max),
            relative=max(self.relative, other.relative),
            cosine=max(self.cosine, other.cosine),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields, with null for an infinite error: JSON has no infinity."""
        fields = asdict(self)
        return {name: None if value == math.inf else value for name, value in fields.items()}


class ComparingRunner(BorrowedRunner):
    """Calls the reference and the engine with the same inputs; returns what the reference gave.

    The answer is on the engine's device, because that is where its caller keeps the latents.
    """

    def __init__(self, name: str, engine: Runner, reference: Runner) -> None:
        super().__init__(engine)
        self.errors: dict[str, OutputError] = {}
        self._name, self._reference = name, reference

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`~fresco_trt.backends.base.Runner`."""
        wanted = self._reference(inputs)
        got = self._runner(inputs)
        for output, tensor in wanted.items():
            found = output_error(self._name, output, got[output], tensor)
            self.errors[output] = self.errors.get(output, found).worst(found)
        return {output: tensor.to(got[output].device) for output, tensor in wanted.items()}


def output_error(engine: str, output: str, got: Tensor, wanted: Tensor) -> OutputError:
    """Errors of `got` against `wanted` (same shape); infinite if a value of `got` is not finite."""
    a, b = got.double().flatten().cpu(), wanted.double().flatten().cpu()
    if not a.isfinite().all():
        return OutputError(
            engine=engine, output=output, max=math.inf, relative=math.inf, cosine=math.inf
        )
    largest = (a - b).abs().max().item()
    return OutputError(
        engine=engine,
        output=output,
        max=largest,
        relative=largest / max(b.abs().max().item(), 1e-12),
        cosine=max(0.0, 1 - (a @ b / (a.norm() * b.norm()).clamp(min=1e-300)).item()),
    )
