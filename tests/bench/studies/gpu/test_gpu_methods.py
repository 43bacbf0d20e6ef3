"""Laws of what a GPU run measures: the points and their order, and that plain is plain."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import torch

from bench.gpu.device import Matmul, Stopwatch, clock_of, device_facts, memory_in_use
from bench.gpu.engines import (
    CALLS,
    Workshop,
    check_fits,
    engines_of,
    examine,
    place_weights,
    subject_of,
    twin,
)
from bench.gpu.methods import (
    TRANSFORMER,
    PlainPipeline,
    Point,
    conditioning,
    expected_seconds,
    points_of,
    staged_method,
)
from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.bench.engines import Kind, kinds_of
from fresco_trt.errors import DiskFull, IncompatibleOptions, OutOfDeviceMemory
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature
from fresco_trt.plan.making import make_plan
from tests.backends.host_device import HostDevice

SUBJECT = subject_of("cpu", tiny=True, layers=None)
STEPS = 3


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Random weights, and no engine yet."""
    folder = tmp_path_factory.mktemp("workshop")
    place_weights(SUBJECT, folder)
    return Workshop(SUBJECT, "eager", folder)


# --- one engine -------------------------------------------------------------------------------


@pytest.mark.parametrize("captures", [True, False])
def test_an_engine_is_timed_and_compared_once_it_is_captured(captures: bool) -> None:
    device = HostDevice()
    signature = bypass_signature(FLUX_TINY, 4, FLUX_TINY.text_tokens)
    transformer = random_transformer(FLUX_TINY, layers=(1, 1))
    with module_runner(graph_from_signature(transformer, signature), signature) as inner:
        graph = Graph("4-bypass", device, captures=captures)
        open_session = partial(replayed, inner, signature, graph)
        with EngineRunner(signature, open_session, replays=graph.is_captured) as runner:
            found = examine(runner, transformer, "cpu")
    assert found["relative"] == 0.0
    assert found["seconds"] > 0.0
    assert found["cuda_graph"] is captures
    assert device.calls.count("replay") == (1 + 1 + CALLS if captures else 0)


# --- points -----------------------------------------------------------------------------------


def test_points_of_a_group_stand_together_and_the_reference_first() -> None:
    points = points_of(FLUX_DEV, (1024, 1024))
    groups = [group for group, _ in groupby(point.group for point in points)]
    assert len(groups) == len(set(groups))
    assert [(point.steps, point.compiled) for point in points[:2]] == [(50, False), (50, True)]
    assert len({point.name for point in points}) == len(points)


def test_every_preset_is_measured_in_two_and_three_stages_with_and_without_the_cache() -> None:
    plans = [point.plan for point in points_of(FLUX_DEV, (1024, 1024)) if point.plan is not None]
    staged = {(plan.preset, len(plan.stages), plan.cache is not None) for plan in plans}
    for preset in ("quality", "balanced", "fast", "turbo"):
        assert {(preset, n, cached) for n in (2, 3) for cached in (False, True)} <= staged
    assert {plan.nfe for plan in plans if len(plan.stages) == 1} == {28, 50}


def test_engines_of_the_full_grid_come_first_and_the_plain_ones_foremost() -> None:
    points = points_of(FLUX_DEV, (1024, 1024))
    engines = engines_of(FLUX_DEV, [point.plan for point in points if point.plan])
    assert [kind.key for kind in engines] == [
        f"{tokens}{graph}" for tokens in (4096, 1024, 256) for graph in ("", "-feature", "-bypass")
    ]


def test_a_picture_costs_its_calls() -> None:
    plan = make_plan(FLUX_TINY, stages=3, preset="turbo", size=(64, 64))
    point = Point(name="ours", group="3 stages", steps=plan.nfe, plan=plan)
    engines = {kind: float(kind.tokens) for kind in kinds_of(plan).values()}
    expected = sum(n * stage.steps for n, stage in zip(plan.tokens, plan.stages, strict=True))
    assert expected_seconds(point, engines, {}) == expected
    assert expected_seconds(point, {Kind(plan.tokens[0]): 1.0}, {}) is None
    plain = Point(name="plain", group="plain", steps=7, compiled=True)
    assert expected_seconds(plain, {}, {True: 0.5}) == 3.5
    assert expected_seconds(plain, {}, {False: 0.5}) is None


# --- drawing ----------------------------------------------------------------------------------


def test_the_plain_pipeline_and_one_static_engine_draw_the_same(workshop: Workshop) -> None:
    """The pipeline is put together without encoders and decoder; its schedule is the model's."""
    transformer, inputs = workshop.transformer(), conditioning(SUBJECT)
    plan = make_plan(SUBJECT.facts, stages=1, steps=STEPS, size=SUBJECT.size)
    ((kind, signature),) = engines_of(SUBJECT.facts, [plan]).items()
    workshop.build(kind, signature, transformer)
    with ExitStack() as scope:
        scope.callback(workshop.close)
        runners = {"stage1.full": workshop.runner(kind, signature)}
        ours = staged_method(plan, SUBJECT, runners, inputs)(7)
        plain = PlainPipeline(twin(transformer), SUBJECT, inputs).method(STEPS)(7)
    assert torch.allclose(ours.latents, plain.latents, atol=1e-4)
    assert ours.latents.std() > 0.1
    assert {name: len(each) for name, each in ours.inside.items()} == {"stage1.full": STEPS}
    assert {name: len(each) for name, each in plain.inside.items()} == {TRANSFORMER: STEPS}
    for timed in (ours, plain):
        assert 0.0 < timed.engine_seconds < timed.seconds


def test_a_twin_has_the_same_weights_in_the_same_memory(workshop: Workshop) -> None:
    transformer = workshop.transformer()
    other = twin(transformer)
    assert other is not transformer
    places = {name: value.data_ptr() for name, value in transformer.state_dict().items()}
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == places


def test_an_engine_that_is_there_is_not_built_again(workshop: Workshop) -> None:
    transformer = workshop.transformer()
    plan = make_plan(SUBJECT.facts, stages=2, preset="turbo", size=SUBJECT.size)
    kind, signature = next(iter(engines_of(SUBJECT.facts, [plan]).items()))
    workshop.build(kind, signature, transformer)
    again = Workshop(SUBJECT, "eager", workshop.folder)
    assert again.has(kind)
    assert again.build(kind, signature, transformer)["seconds"] is None
    before = (workshop.folder / "transformer").stat().st_mtime_ns
    assert place_weights(SUBJECT, workshop.folder)["written_seconds"] is None
    assert (workshop.folder / "transformer").stat().st_mtime_ns == before


def test_a_disk_without_room_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(DiskFull, match=r"0\.0 GB free.*--work"):
        place_weights(SUBJECT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_library_with_weights_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleOptions, match="inductor, eager"):
        Workshop(SUBJECT, "onnxruntime", tmp_path)


# --- the subject and the device ---------------------------------------------------------------


def test_the_subject_on_a_gpu_is_flux_1_dev_in_bf16() -> None:
    subject = subject_of("cuda", tiny=False, layers=None)
    assert subject.facts.parameters == FLUX_DEV.parameters
    assert (subject.size, subject.tokens, subject.precision) == ((1024, 1024), 4096, "bf16")
    check_fits(subject, 80 * 10**9)
    with pytest.raises(OutOfDeviceMemory, match=r"24\.\d GB of weights and activations.*--layers"):
        check_fits(subject, 24 * 10**9)
    shallow = subject_of("cuda", tiny=False, layers=(4, 8))
    assert shallow.facts.parameters < FLUX_DEV.parameters / 4
    check_fits(shallow, 24 * 10**9)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(IncompatibleOptions, match="--layers 0,3"):
        subject_of("cpu", tiny=True, layers=(0, 3))


def test_a_stopwatch_tells_calls_apart_and_forgets_what_was_read() -> None:
    watch = Stopwatch(clock_of("cpu"))
    for name in ("a", "b", "a"):
        watch.add(name, watch.mark())
    taken = watch.taken()
    assert {name: len(each) for name, each in taken.items()} == {"a": 2, "b": 1}
    assert watch.taken() == {}


def test_rates_are_those_of_the_sides_asked_for() -> None:
    rates = Matmul("cpu", torch.float32, [(16, 16, 16), (8, 4, 2)]).rates(repeats=1)
    assert rates.keys() == {"16x16x16", "8x4x2"}
    assert all(rate > 0 for rate in rates.values())


def test_a_cpu_has_no_card_and_a_resident_set() -> None:
    assert device_facts("cpu") == {"kind": "cpu", "name": None, "bytes": None}
    used = memory_in_use("cpu")
    assert used["tensors"] is None
    assert used["all"] is None or used["all"] > 10**7


@pytest.mark.gpu
def test_a_gpu_has_its_own_clock_memory_and_random_weights() -> None:
    from fresco_trt.models.flux.loading import random_transformer

    facts, before = device_facts("cuda"), memory_in_use("cuda")
    model = random_transformer(SUBJECT.facts, dtype=torch.bfloat16, device="cuda")
    again = random_transformer(SUBJECT.facts, dtype=torch.bfloat16, device="cuda")
    first, second = model.state_dict(), again.state_dict()
    assert all(value.is_cuda and value.equal(second[name]) for name, value in first.items())
    used = memory_in_use("cuda")
    assert used["tensors"] is not None
    assert before["tensors"] is not None
    assert used["tensors"] >= before["tensors"] + 2 * 2 * SUBJECT.facts.parameters
    assert facts["capability"].startswith("sm")
    rates = Matmul("cuda", torch.bfloat16, [(1024, 1024, 1024)]).rates()
    assert rates["1024x1024x1024"] > 1e11
