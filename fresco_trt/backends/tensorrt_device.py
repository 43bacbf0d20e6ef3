"""The GPU as TensorRT's runners need it: memory and one stream.

Under ``tensorrt_run.py``, which takes it as a value: a scripted stand-in on the host goes the same
way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fresco_trt.errors import OutOfDeviceMemory

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.signature import TensorSpec


class Device(Protocol):
    """The GPU, as far as runners need it."""

    def capability(self) -> str | None:
        """Like "sm89"; None where there is no usable GPU."""
        ...

    def empty(self, spec: TensorSpec) -> Tensor:
        """An uninitialised tensor on the device, aligned to 256 bytes. Raises OutOfDeviceMemory."""
        ...

    def stream(self) -> AbstractContextManager[int]:
        """A stream's handle; work queued inside starts after what the caller had queued, and what
        the caller queues afterwards starts after it. No host synchronisation.
        """
        ...


class CudaDevice:
    """The current CUDA device, through torch."""

    def __init__(self) -> None:
        self._stream: Any = None

    def capability(self) -> str | None:
        """As :class:`Device`."""
        import torch

        if not torch.cuda.is_available():
            return None
        return "sm{}{}".format(*torch.cuda.get_device_capability())

    def empty(self, spec: TensorSpec) -> Tensor:
        """As :class:`Device`; torch's allocator aligns to 512 bytes."""
        import torch

        try:
            return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="cuda")
        except torch.OutOfMemoryError as error:
            raise out_of_memory(f"{spec} does not fit: {error}") from error

    @contextmanager
    def stream(self) -> Iterator[int]:
        """As :class:`Device`. TensorRT synchronises on the default stream, so it gets its own."""
        import torch

        untyped: Any = torch.cuda
        self._stream = self._stream or untyped.Stream()
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream
        caller.wait_stream(self._stream)


def out_of_memory(given: str) -> OutOfDeviceMemory:
    """The error for a device that is too small."""
    return OutOfDeviceMemory(
        given,
        expected="enough GPU memory for the weights and activations of every stage",
        fix="use a smaller --size, or close other programs on the GPU",
    )
