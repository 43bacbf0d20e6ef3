"""What needs a GPU: the device that runners are given, and the torch backends replayed on it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from fresco_trt.backends.base import BuildOptions
from fresco_trt.backends.cuda_device import CudaDevice
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.backends.inductor.backend import InductorBackend
from fresco_trt.plan.signature import TensorSpec
from tests.backends.conftest import agrees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.backends.conftest import Stage

pytestmark = pytest.mark.gpu

SPEC = TensorSpec(name="x", dtype="float32", shape=(4,))


# --- the device -------------------------------------------------------------------------------


def test_a_captured_copy_is_replayed_with_what_is_there_then() -> None:
    device = CudaDevice()
    source, target = device.empty(SPEC), device.empty(SPEC)

    def copy() -> None:
        target.copy_(source)

    with device.stream():
        source.fill_(1.0)
        target.zero_()
        replay = device.capture(copy)
    assert target.tolist() == [0.0] * 4  # a capture runs nothing
    for value in (2.0, 3.0):
        with device.stream():
            source.fill_(value)
            replay()
        assert target.tolist() == [value] * 4


def test_a_broken_capture_leaves_a_stream_that_works() -> None:
    device = CudaDevice()
    source, target = device.empty(SPEC), device.empty(SPEC)

    def add() -> None:
        target.add_(source)

    with device.stream():
        source.fill_(5.0)
        with pytest.raises(RuntimeError):  # waiting for the device cannot be captured
            device.capture(torch.cuda.synchronize)
        target.copy_(source)
    assert target.tolist() == [5.0] * 4
    with device.stream():
        replay = device.capture(add)
        replay()
    assert target.tolist() == [10.0] * 4


def test_scratch_memory_is_aligned() -> None:
    for size in (1, 300, 4097):
        memory = CudaDevice().empty(TensorSpec(name="scratch", dtype="uint8", shape=(size,)))
        assert memory.data_ptr() % 256 == 0


def test_what_a_capture_allocates_is_shared_and_replays_in_any_order() -> None:
    """Results are copied out of the pool, so another graph's replay leaves them alone."""
    device = CudaDevice()
    source = device.empty(SPEC)
    targets = [device.empty(SPEC) for _ in range(2)]

    def double(index: int) -> None:
        targets[index].copy_((source + index) * 2)

    with device.stream():
        for index in range(2):
            double(index)
        replays = [device.capture(partial(double, index)) for index in range(2)]
    for order in ((0, 1), (1, 0), (1, 1), (0, 0)):
        with device.stream():
            source.fill_(float(len(order) + order[0]))
            for target in targets:
                target.zero_()
            for index in order:
                replays[index]()
        value = 2.0 + order[0]
        found = [target.tolist() for target in targets]
        assert found == [[2 * (value + i) if i in order else 0.0] * 4 for i in range(2)]


# --- engines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EagerBackend, InductorBackend])
def test_every_call_gives_what_the_eager_module_gives(
    kind: type[EagerBackend | InductorBackend], stages: tuple[Stage, ...], folder: Path
) -> None:
    """Plain, captured and replayed, stages by turns, over one pool; and kernel by kernel."""
    for missing in kind().check():
        pytest.skip(missing.what)
    options = BuildOptions(folder=folder)
    records = [stage.record(kind().build(stage.graph, options)) for stage in stages]
    for cuda_graphs in (True, False):
        library = kind(cuda_graphs=cuda_graphs)
        with ExitStack() as scope:
            runners = [scope.enter_context(library.load(folder, record)) for record in records]
            for call in range(4):
                for runner, stage in zip(runners, stages, strict=True):
                    assert agrees(runner, stage, call)
            assert [runner.replays() for runner in runners] == [cuda_graphs] * len(stages)
