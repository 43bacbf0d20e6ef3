"""A scripted GPU on the host whose captures hold kernels, not calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fresco_trt.errors import RunError
from tests.backends.host_device import HostDevice


class RecordingDevice(HostDevice):
    """A capture keeps the kernels that were queued, with the memory that each reads and writes, and
    a replay runs these again and no line of Python, as a CUDA graph does.

    What a kernel of a graph allocates is spoiled after each replay: another graph may use it. A
    capture that reads a number back breaks.
    """

    def __init__(self, *, gpu: bool = True, refuses: str | None = None) -> None:
        super().__init__(gpu=gpu, refuses=refuses)
        self._recording = False

    def is_capturing(self) -> bool:
        return self._recording

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        super().capture(launch)
        recorder = _Recorder()
        self._recording = True
        try:
            with recorder:
                launch()
        except RunError as error:
            raise RuntimeError(str(error)) from error
        finally:
            self._recording = False
        recorder.spoil()

        def replay() -> None:
            assert self._inside
            self.calls.append("replay")
            if self.breaks:
                raise RuntimeError("illegal memory access")
            recorder.replay()

        return replay


class _Recorder(TorchDispatchMode):
    """The kernels that run inside it, and what they allocated."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor | None]]] = []
        self._allocated: list[Tensor] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = kwargs or {}
        out = func(*args, **given)
        known = {_place(each) for each in _tensors((args, given))}
        written = [None if _place(each) in known else each for each in _tensors(out)]
        self._kernels.append((func, args, given, written))
        self._allocated += [each for each in written if each is not None]
        return out

    def replay(self) -> None:
        for func, args, kwargs, written in self._kernels:
            found = func(*args, **kwargs)
            for new, old in zip(_tensors(found), written, strict=True):
                if old is not None:  # else it is, or is a view of, what the kernel was given
                    old.copy_(new)
        self.spoil()

    def spoil(self) -> None:
        for each in self._allocated:
            if each.is_floating_point():
                each.fill_(float("nan"))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
