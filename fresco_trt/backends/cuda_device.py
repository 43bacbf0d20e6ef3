"""The GPU as runners need it: memory, one stream, and its capture into a CUDA graph.

Under ``cuda_graph.py`` and ``tensorrt_run.py``, which take it as a value: a scripted stand-in on
the host goes the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from fresco_trt.errors import OutOfDeviceMemory, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.signature import TensorSpec

# torch's allocator goes on asking a graph whose capture broke which streams are its own, so one is
# never freed.
_BROKEN: list[Any] = []


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

    def is_capturing(self) -> bool:
        """Whether what is queued now, inside ``stream()``, goes into a capture and does not run."""
        ...

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Inside ``stream()``: what queues again all that ``launch`` queues, in one launch.

        While it is captured, nothing runs. What ``launch`` allocates of torch is memory that other
        captures of this device use too: it leaves nothing there that is read after it.

        Raises RuntimeError where the stream cannot be captured or ``launch`` raised a RunError,
        with the stream as it was; so does the result where it cannot be queued. No host
        synchronisation.
        """
        ...


class CudaDevice:
    """The current CUDA device, through torch. All its captures allocate from one pool."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._graphs: WeakSet[Any] = WeakSet()

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
        """As :class:`Device`. TensorRT synchronises on the default stream, and torch captures any
        other, so it is one of its own.
        """
        import torch

        untyped: Any = torch.cuda
        self._stream = self._stream or untyped.Stream()
        caller = torch.cuda.current_stream()
        if caller == self._stream:  # inside itself: what is queued is in order already
            yield self._stream.cuda_stream
            return
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream
        caller.wait_stream(self._stream)

    def is_capturing(self) -> bool:
        """As :class:`Device`."""
        import torch

        return torch.cuda.is_current_stream_capturing()

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """As :class:`Device`. Not ``torch.cuda.graph``, which waits for the whole device first."""
        import torch

        graph: Any = torch.cuda.CUDAGraph()
        # Safe, because the graphs run on one stream, one after another, and none reads what it did
        # not write itself since it began. Of a live graph: torch refuses a pool that has none.
        pool = next((each.pool() for each in self._graphs), None)
        try:
            with warnings.catch_warnings():
                # What queued its work elsewhere would be replayed as nothing at all.
                warnings.filterwarnings("error", message="The CUDA Graph is empty")
                _capture_into(graph, pool, launch)
        except (RuntimeError, RunError, UserWarning) as error:
            _BROKEN.append(graph)
            self._graphs.clear()  # torch may take their pool for one in use, and refuse it
            raise RuntimeError(str(error)) from error
        self._graphs.add(graph)
        replay: Callable[[], None] = graph.replay
        return replay


def _capture_into(graph: Any, pool: Any, launch: Callable[[], None]) -> None:
    # Other threads may allocate meanwhile: only this one's calls are held to what can be captured.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        launch()
    finally:
        graph.capture_end()


def out_of_memory(given: str) -> OutOfDeviceMemory:
    """The error for a device that is too small."""
    return OutOfDeviceMemory(
        given,
        expected="enough GPU memory for the weights and activations of every stage",
        fix="use a smaller --size, or close other programs on the GPU",
    )
