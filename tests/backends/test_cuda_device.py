"""Laws of the device that runners are given, against a scripted ``torch.cuda.CUDAGraph``."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch

from fresco_trt.backends.cuda_device import CudaDevice
from fresco_trt.errors import EngineFailed, OutOfDeviceMemory
from fresco_trt.plan.signature import TensorSpec


class TorchGraph:
    """torch.cuda.CUDAGraph, scripted: told what to raise, tells what was asked."""

    raises: tuple[Exception | None, Exception | None] = (None, None)
    asked: ClassVar[list[str]] = []
    pools: ClassVar[list[object]] = []  # that captures were told to allocate from

    def capture_begin(self, *, pool: object, capture_error_mode: str) -> None:
        self.asked.append(f"begin {capture_error_mode}")
        self.pools.append(pool)
        self._pool = pool or object()
        self._do(0)

    def capture_end(self) -> None:
        self.asked.append("end")
        self._do(1)

    def pool(self) -> object:
        return self._pool

    def replay(self) -> None:
        self.asked.append("replay")

    def _do(self, index: int) -> None:
        error = self.raises[index]
        if isinstance(error, Warning):
            warnings.warn(error, stacklevel=1)
        elif error is not None:
            raise error


@pytest.fixture
def torch_graph(monkeypatch: pytest.MonkeyPatch) -> type[TorchGraph]:
    kind = type("Scripted", (TorchGraph,), {"asked": [], "pools": []})
    monkeypatch.setattr("torch.cuda.CUDAGraph", kind)
    return kind


def test_a_capture_is_begun_and_ended_around_the_launch(torch_graph: type[TorchGraph]) -> None:
    replay = CudaDevice().capture(lambda: torch_graph.asked.append("launch"))
    replay()
    assert torch_graph.asked == ["begin thread_local", "launch", "end", "replay"]


def refuse() -> None:
    raise EngineFailed("the engine did not start", expected="a start", fix="none")


@pytest.mark.parametrize(
    ("raises", "launch", "asked"),
    [
        ((RuntimeError("on the default stream"), None), int, 1),
        ((None, RuntimeError("capture was invalidated")), int, 2),
        ((None, UserWarning("The CUDA Graph is empty. On another stream?")), int, 2),
        ((None, None), refuse, 2),
    ],
)
def test_whatever_breaks_a_capture_is_one_error_and_ends_it(
    torch_graph: type[TorchGraph],
    raises: tuple[Exception | None, Exception | None],
    launch: Callable[[], None],
    asked: int,
) -> None:
    torch_graph.raises = raises
    with pytest.raises(RuntimeError):
        CudaDevice().capture(launch)
    assert len(torch_graph.asked) == asked


def test_captures_allocate_from_one_pool_as_long_as_a_graph_of_it_lives(
    torch_graph: type[TorchGraph],
) -> None:
    device = CudaDevice()
    first = device.capture(int)
    second = device.capture(int)
    del first
    third = device.capture(int)
    alone, *shared = torch_graph.pools
    assert alone is None
    assert shared[0] is shared[1] is not None
    del second, third
    gc.collect()
    last = device.capture(int)
    assert torch_graph.pools[-1] is None
    last()


def test_the_pool_of_a_capture_that_broke_is_left_alone(torch_graph: type[TorchGraph]) -> None:
    device = CudaDevice()
    first = device.capture(int)
    torch_graph.raises = (None, RuntimeError("capture was invalidated"))
    with pytest.raises(RuntimeError):
        device.capture(int)
    torch_graph.raises = (None, None)
    second, third = device.capture(int), device.capture(int)
    assert torch_graph.pools[1] is not None
    assert torch_graph.pools[2] is None
    assert torch_graph.pools[3] not in (None, torch_graph.pools[1])
    for replay in (first, second, third):
        replay()


def test_a_device_that_is_full_is_told_in_the_packages_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr("torch.empty", full)
    with pytest.raises(OutOfDeviceMemory, match=r"latents float32\[2,3\].*tried to allocate 9 GiB"):
        CudaDevice().empty(TensorSpec(name="latents", dtype="float32", shape=(2, 3)))
