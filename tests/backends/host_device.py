"""A scripted stand-in for the GPU, as the runners of the torch backends need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fresco_trt.plan.signature import TensorSpec


class HostDevice:
    """Host memory in the place of a GPU; ``calls`` is what it was asked for and what ran on it.

    A capture keeps what it is given and runs nothing; the replay does, as CUDA does.
    """

    def __init__(self, *, gpu: bool = True, refuses: str | None = None) -> None:
        self.calls: list[str] = []
        self.refuses, self.breaks = refuses, False
        self._gpu, self._inside = gpu, False

    def capability(self) -> str | None:
        return "sm90" if self._gpu else None

    def empty(self, spec: TensorSpec) -> Tensor:
        self.calls.append(f"empty {spec.name}")
        return torch.full(spec.shape, float("nan"), dtype=getattr(torch, spec.dtype))

    @contextmanager
    def stream(self) -> Iterator[int]:
        before, self._inside = self._inside, True
        yield 77
        self._inside = before

    def is_capturing(self) -> bool:
        return False

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        assert self._inside
        self.calls.append("capture")
        if self.refuses is not None:
            raise RuntimeError(self.refuses)

        def replay() -> None:
            assert self._inside
            self.calls.append("replay")
            if self.breaks:
                raise RuntimeError("illegal memory access")
            launch()

        return replay
