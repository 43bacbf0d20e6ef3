"""Laws of a call of torch replayed as a graph, against a scripted device on the host."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import BuildOptions, Call, EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.errors import EngineFailed, OutOfDeviceMemory
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from tests.backends.host_device import HostDevice

if TYPE_CHECKING:
    from pathlib import Path

    from tests.backends.conftest import Record, Stage

SIGNATURE = GraphSignature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
)


class Doubling:
    """Writes twice x to memory that all engines share, as the graphs of one pool do."""

    def __init__(self, device: HostDevice) -> None:
        self._device, self._pool = device, torch.empty(2)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._device.calls.append("run")
        return {"y": torch.mul(inputs["x"], 2, out=self._pool)}


def runner_of(
    device: HostDevice, run: Call | None = None, *, captures: bool = True
) -> EngineRunner:
    graph = Graph("stage1.full", device, captures=captures)
    call = run or Doubling(device)
    return EngineRunner(SIGNATURE, lambda: replayed(call, SIGNATURE, graph), graph=graph)


def doubles(runner: EngineRunner, value: float) -> bool:
    return runner({"x": torch.full((2,), value)})["y"].tolist() == [2 * value] * 2


# --- when what happens ------------------------------------------------------------------------


def test_the_first_call_is_plain_the_second_captured_and_later_ones_replayed() -> None:
    device = HostDevice()
    with runner_of(device) as runner:
        states = [(doubles(runner, value), runner.replays()) for value in (1.0, -3.0, 0.5)]
    assert states == [(True, False), (True, True), (True, True)]
    launches = ["run", "capture", "replay", "run", "replay", "run"]
    assert device.calls == ["empty x", "empty y", *launches]


def test_a_runner_entered_again_begins_again() -> None:
    device = HostDevice()
    runner = runner_of(device)
    for _ in range(2):
        device.calls.clear()
        with runner:
            assert doubles(runner, 1.0)
            assert doubles(runner, 2.0)
        assert not runner.replays()
        assert device.calls[2:] == ["run", "capture", "replay", "run"]


@pytest.mark.parametrize(("gpu", "captures"), [(False, True), (True, False), (False, False)])
def test_without_a_gpu_or_a_wish_for_graphs_the_call_is_made_as_it_is(
    gpu: bool, captures: bool
) -> None:
    device = HostDevice(gpu=gpu)
    with runner_of(device, captures=captures) as runner:
        assert all(doubles(runner, value) for value in (1.0, 2.0, 3.0))
        assert not runner.replays()
    assert device.calls == ["run"] * 3


def test_an_engine_that_cannot_be_captured_goes_on_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = HostDevice(refuses="operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING), runner_of(device) as runner:
        assert all(doubles(runner, value) for value in (1.0, 2.0, 3.0, 4.0))
        assert not runner.replays()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"stage1.full runs without a CUDA graph: {device.refuses}"
    assert device.calls.count("capture") == 1
    assert device.calls.count("run") == 4


# --- what is whose ----------------------------------------------------------------------------


def test_outputs_last_until_the_next_call_of_their_own_runner() -> None:
    """Whatever the graphs of other runners leave in the pool; and that next call overwrites."""
    device = HostDevice()
    run = Doubling(device)
    with runner_of(device, run) as one, runner_of(device, run) as other:
        for value in (1.0, 2.0, 3.0):
            mine = one({"x": torch.full((2,), value)})["y"]
            assert doubles(other, -7.0)
            assert mine.tolist() == [2 * value] * 2
        assert doubles(one, 5.0)
        assert mine.tolist() == [10.0] * 2


def test_inputs_are_read_when_the_call_is_made_and_not_tracked() -> None:
    device = HostDevice()
    with runner_of(device) as runner:
        for value in (1.0, 2.0, 3.0):
            given = torch.full((2,), value, requires_grad=True)
            outputs = runner({"x": given})
            assert outputs["y"].tolist() == [2 * value] * 2
            assert not outputs["y"].requires_grad


# --- errors -----------------------------------------------------------------------------------


def test_a_graph_that_cannot_be_launched_is_an_engine_that_failed() -> None:
    device = HostDevice()
    with runner_of(device) as runner:
        assert all(doubles(runner, value) for value in (1.0, 2.0))
        device.breaks = True
        with pytest.raises(EngineFailed, match="running the engine: illegal memory access"):
            runner({"x": torch.ones(2)})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("no kernel"), EngineFailed),
        (torch.OutOfMemoryError("9 GiB"), OutOfDeviceMemory),
    ],
)
def test_a_first_call_that_fails_is_told_and_the_next_is_plain_again(
    error: Exception, kind: type[Exception]
) -> None:
    device, errors = HostDevice(), [error]
    double = Doubling(device)

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if errors:
            raise errors.pop()
        return double(inputs)

    with runner_of(device, run) as runner:
        with pytest.raises(kind, match=str(error)):
            runner({"x": torch.ones(2)})
        assert doubles(runner, 1.0)
    assert "capture" not in device.calls


@pytest.mark.parametrize("given", [torch.ones(1), torch.ones(2).double()])
def test_an_output_of_another_kind_is_not_made_to_fit(given: Tensor) -> None:
    with (
        runner_of(HostDevice(), lambda inputs: {"y": given}) as runner,
        pytest.raises(EngineFailed, match=r"expected y float32\[2\]"),
    ):
        runner({"x": torch.ones(2)})


# --- the eager backend ------------------------------------------------------------------------


@pytest.fixture
def record(stages: tuple[Stage, ...], folder: Path) -> Record:
    stage = stages[0]
    return stage.record(EagerBackend().build(stage.graph, BuildOptions(folder=folder)))


def test_a_replayed_stage_is_bit_equal_to_its_module(
    stages: tuple[Stage, ...], folder: Path, record: Record
) -> None:
    stage, device = stages[0], HostDevice()
    others = {name: value * 0.5 for name, value in stage.inputs.items()}
    with EagerBackend(device=device).load(folder, record) as runner:
        runner(others)
        for inputs in (others, stage.inputs):
            outputs = {name: value.clone() for name, value in runner(inputs).items()}
        assert runner.replays()
    expected = stage.expected()
    assert list(outputs) == list(expected)
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)
    assert device.calls.count("replay") == 2


def test_the_eager_backend_launches_kernel_by_kernel_if_told_to(
    stages: tuple[Stage, ...], folder: Path, record: Record
) -> None:
    device = HostDevice()
    with EagerBackend(cuda_graphs=False, device=device).load(folder, record) as runner:
        kept = [runner(stages[0].inputs)["velocity"] for _ in range(3)]
        assert not runner.replays()
    assert device.calls == []
    assert len({value.data_ptr() for value in kept}) == 3
