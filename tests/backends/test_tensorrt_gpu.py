"""What needs a GPU: the device that runners are given, and engines against the eager module."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.tensorrt_device import CudaDevice
from fresco_trt.lower.export import export_stages
from fresco_trt.plan.signature import TensorSpec

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend, Runner
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


# --- engines ----------------------------------------------------------------------------------


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> Backend:
    found: Backend = backend(request.param)
    for missing in found.check():
        pytest.skip(missing.what)
    return found


def agrees(runner: Runner, stage: Stage, call: int) -> bool:
    """Whether one more call gives what the eager module gives for inputs of this call's own."""
    inputs = stage.inputs | {"latents": stage.inputs["latents"] * (1.0 + call)}
    with torch.no_grad():
        wanted = stage.graph.module(*inputs.values())
    found = runner(inputs)
    pairs = zip(stage.graph.signature.outputs, wanted, strict=True)
    return all(
        torch.allclose(found[spec.name].cpu(), each, rtol=1e-3, atol=1e-4) for spec, each in pairs
    )


def test_every_call_gives_what_the_eager_module_gives(
    library: Backend, stages: tuple[Stage, ...], folder: Path
) -> None:
    """Enqueued, captured and replayed, stages by turns, over scratch memory that they share."""
    options = BuildOptions(folder=folder)
    records = [stage.record(library.build(stage.graph, options)) for stage in stages]
    with ExitStack() as scope:
        runners = [scope.enter_context(library.load(folder, record)) for record in records]
        for call in range(4):
            for runner, stage in zip(runners, stages, strict=True):
                assert agrees(runner, stage, call)


def test_every_profile_gives_what_the_eager_module_gives(
    library: Backend, stages: tuple[Stage, ...], folder: Path, tmp_path: Path
) -> None:
    two = stages[:2]
    graph: StageGraph = replace(
        two[1].graph, name="full", profiles=tuple(stage.graph.signature for stage in two)
    )
    (exported,) = export_stages([graph], tmp_path / "graphs")
    files = library.build(exported, BuildOptions(folder=folder))
    with ExitStack() as scope:
        runners = [scope.enter_context(library.load(folder, stage.record(files))) for stage in two]
        for call in range(4):
            for runner, stage in zip(runners, two, strict=True):
                assert agrees(runner, stage, call)
