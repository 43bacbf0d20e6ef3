"""A runner without an engine, for tests of whatever sits above the runners, users' tests included.

Takes the place of a loaded engine in the data path. Checks scope and signature as strictly as the
real ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fresco_trt.backends.base import Call, EngineRunner

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.signature import GraphSignature


class FakeRunner:
    """A :class:`~fresco_trt.backends.base.Runner` that computes ``function(inputs)``.

    ``function`` maps the named inputs to the named outputs; without one, outputs are zeros.
    ``calls`` holds a clone of the inputs of every call, in order, and ``entered`` how often the
    scope was entered. As with an engine, outputs are valid only until the next call: they are
    copied into buffers that every call reuses.
    """

    def __init__(
        self,
        signature: GraphSignature,
        function: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.signature = signature
        self.calls: list[dict[str, Tensor]] = []
        self.entered = 0
        self._function = function or self._zeros
        self._runner = EngineRunner(signature, self._session)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self.entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`~fresco_trt.backends.base.Runner`."""
        return self._runner(inputs)

    @contextmanager
    def _session(self) -> Iterator[Call]:
        buffers = self._zeros({})

        def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            self.calls.append({name: value.clone() for name, value in inputs.items()})
            outputs = dict(self._function(inputs))
            for name, buffer in buffers.items():
                value = outputs.get(name)
                if value is not None and (value.shape, value.dtype) == (buffer.shape, buffer.dtype):
                    outputs[name] = buffer.copy_(value)
            return outputs

        yield call

    def _zeros(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        return {
            spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
            for spec in self.signature.outputs
        }
