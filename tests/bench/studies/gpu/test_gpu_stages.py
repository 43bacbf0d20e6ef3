"""Our plans measured with one launch a stage: an engine's seconds come from inside the graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import torch

from bench.gpu.engines import subject_of
from bench.gpu.methods import Method, conditioning, staged_method
from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.bench.engines import signatures_of
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.plan.making import make_plan
from tests.run.recording_device import RecordingDevice

SUBJECT = subject_of("cpu", tiny=True, layers=None)
PLAN = make_plan(SUBJECT.facts, stages=2, preset="turbo", size=(64, 64))


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture
def method(device: RecordingDevice) -> Iterator[Method]:
    transformer = random_transformer(SUBJECT.facts, layers=(1, 1))
    signatures = signatures_of(SUBJECT.facts, [PLAN]).values()
    with ExitStack() as scope:
        runners = {}
        for index, signature in enumerate(signatures, 1):
            inner = module_runner(graph_from_signature(transformer, signature), signature)
            graph = Graph(f"stage{index}.full", device, captures=True)
            call = scope.enter_context(inner)
            runner = EngineRunner(signature, partial(replayed, call, signature, graph), graph=graph)
            runners[f"stage{index}.full"] = scope.enter_context(runner)
        yield staged_method(PLAN, SUBJECT, runners, conditioning(SUBJECT))


def test_every_call_of_a_replayed_picture_has_its_seconds(
    method: Method, device: RecordingDevice
) -> None:
    device_off = [method(seed) for seed in (0, 1)]
    device.calls.clear()
    timed = method(2)
    assert device.calls == ["replay"] * 2
    assert [each.by_stages for each in (*device_off, timed)] == [False, True, True]
    wanted = {f"stage{n}.full": stage.steps for n, stage in enumerate(PLAN.stages, 1)}
    assert {name: len(each) for name, each in timed.inside.items()} == wanted
    assert not torch.equal(timed.latents, device_off[1].latents)


def test_a_picture_that_cannot_be_replayed_is_measured_step_by_step(
    method: Method, device: RecordingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    first = [method(seed).latents for seed in (0, 1)][1]
    device.breaks = True
    with caplog.at_level(logging.WARNING):
        with pytest.raises(Exception, match="illegal memory access"):
            method(1)
        device.breaks = False
        timed = method(1)
    assert not timed.by_stages
    assert torch.equal(timed.latents, first)
    assert sum(map(len, timed.inside.values())) == PLAN.nfe
    assert "measured step by step from here on" in caplog.text
