"""Laws of what a GPU run measures: the points and their order, and that plain is plain."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bench.gpu.device import Matmul, Stopwatch, clock_of, device_facts, memory_in_use
from bench.gpu.engines import (
    CALLS,
    Workshop,
    check_fits,
    engines_of,
    examine,
    subject_of,
    twin,
)
from bench.gpu.methods import (
    CACHE_DIT,
    COMPILED,
    EAGER,
    TRANSFORMER,
    Point,
    conditioning,
    expected_seconds,
    points_of,
    staged_method,
)
from bench.gpu.plain import PlainPipeline, computed_steps, pipeline_of
from bench.gpu.weights import describe, make_weights
from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.backends.transformer import FOLDER, WEIGHTS
from fresco_trt.bench.engines import Kind, kinds_of
from fresco_trt.errors import IncompatibleOptions, OutOfDeviceMemory
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature
from fresco_trt.plan.making import make_plan
from tests.backends.host_device import HostDevice

SUBJECT = subject_of("cpu", tiny=True, layers=None)
STEPS = 3


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights, once."""
    return make_weights(SUBJECT, tmp_path_factory.mktemp("weights"))[0]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, transformer: Any) -> Workshop:
    """Described weights, and no engine yet."""
    folder = tmp_path_factory.mktemp("workshop")
    describe(transformer, folder / FOLDER)
    workshop = Workshop(SUBJECT, "eager", folder)
    workshop.hold(transformer)
    return workshop


# --- one engine -------------------------------------------------------------------------------


@pytest.mark.parametrize("captures", [True, False])
def test_an_engine_is_timed_and_compared_once_it_is_captured(captures: bool) -> None:
    device = HostDevice()
    signature = bypass_signature(FLUX_TINY, 4, FLUX_TINY.text_tokens)
    transformer = random_transformer(FLUX_TINY, layers=(1, 1))
    with module_runner(graph_from_signature(transformer, signature), signature) as inner:
        graph = Graph("4-bypass", device, captures=captures)
        open_session = partial(replayed, inner, signature, graph)
        with EngineRunner(signature, open_session, graph=graph) as runner:
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
    assert [(each.steps, each.pipeline) for each in points[:2]] == [(50, EAGER), (50, COMPILED)]
    beside = points_of(FLUX_DEV, (1024, 1024), against="compiled")
    assert [(each.steps, each.pipeline) for each in beside[:1]] == [(50, COMPILED)]
    assert {each.pipeline for each in beside} == {None, COMPILED}
    assert len({point.name for point in points}) == len(points)


def test_every_preset_is_measured_with_and_without_the_cache() -> None:
    for against in ("all", "compiled"):
        points = points_of(FLUX_DEV, (1024, 1024), against=against)
        plans = [point.plan for point in points if point.plan is not None]
        staged = {(plan.preset, plan.cache is not None) for plan in plans if len(plan.stages) == 3}
        assert len(staged) == 2 * 4


def test_what_is_long_is_the_whole_schedule_on_the_full_grid() -> None:
    long = [point.name for point in points_of(FLUX_DEV, (1024, 1024)) if point.is_long]
    assert long == [
        *(f"diffusers{more}, 50 steps" for more in ("", ", torch.compile")),
        *(f"diffusers{more}, cache-dit, 50 steps" for more in ("", ", torch.compile")),
        "one static engine, 28 steps",
    ]


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
    plain = Point(name="plain", group="plain", steps=7, pipeline=COMPILED)
    assert expected_seconds(plain, {}, {COMPILED: 0.5}) == 3.5
    assert expected_seconds(plain, {}, {EAGER: 0.5}) is None


# --- drawing ----------------------------------------------------------------------------------


def test_the_plain_pipeline_and_one_static_engine_draw_the_same(
    workshop: Workshop, transformer: Any
) -> None:
    """The pipeline is put together without encoders and decoder; its schedule is the model's."""
    inputs = conditioning(SUBJECT)
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


def test_cache_dit_computes_the_steps_of_its_own_schedule() -> None:
    """Whatever the weights are: the first block of each kind runs always, the others then only."""
    pytest.importorskip("cache_dit", reason="cache-dit comes with the extra 'bench'")
    ran: list[int] = []
    subject = subject_of("cpu", tiny=True, layers=(1, 2))
    own: Any = random_transformer(subject.facts)
    own.single_transformer_blocks[1].register_forward_hook(lambda *_: ran.append(1))
    steps = subject.facts.default_steps
    timed = pipeline_of(CACHE_DIT, own, subject).method(steps)(0)
    assert timed.latents.isfinite().all()
    assert len(timed.inside[TRANSFORMER]) == steps
    assert len(ran) == sum(computed_steps(steps)) < steps / 2


def test_without_cache_dit_the_way_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch, transformer: Any
) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(ImportError, match="cache_dit"):
        pipeline_of(CACHE_DIT, twin(transformer), SUBJECT)


def test_a_twin_has_the_same_weights_in_the_same_memory(transformer: Any) -> None:
    other = twin(transformer)
    assert other is not transformer
    places = {name: value.data_ptr() for name, value in transformer.state_dict().items()}
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == places


def test_an_engine_that_is_there_is_not_built_again(workshop: Workshop, transformer: Any) -> None:
    plan = make_plan(SUBJECT.facts, stages=2, preset="turbo", size=SUBJECT.size)
    kind, signature = next(iter(engines_of(SUBJECT.facts, [plan]).items()))
    workshop.build(kind, signature, transformer)
    again = Workshop(SUBJECT, "eager", workshop.folder)
    assert again.has(kind)
    assert again.build(kind, signature, transformer)["seconds"] is None


def test_a_description_says_what_a_file_of_weights_would(tmp_path: Path, transformer: Any) -> None:
    size = describe(transformer, tmp_path)
    write_source(transformer, tmp_path / "whole")
    assert size > sum(value.nbytes for value in transformer.state_dict().values())
    assert (tmp_path / "config.json").read_text() == (tmp_path / "whole/config.json").read_text()
    with (
        safe_open(tmp_path / WEIGHTS, "pt") as given,
        safe_open(tmp_path / "whole" / WEIGHTS, "pt") as whole,
    ):
        assert set(given.keys()) == set(whole.keys())
        for name in given.keys():  # noqa: SIM118
            ours, theirs = given.get_slice(name), whole.get_slice(name)
            assert ours.get_shape() == theirs.get_shape()
            assert ours.get_dtype() == theirs.get_dtype()


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


def test_a_stopwatch_reads_again_what_nobody_called_anew_since_a_replay_makes_it() -> None:
    watch = Stopwatch(clock_of("cpu"))
    for name in ("a", "b", "a"):
        watch.add(name, watch.mark())
    taken = watch.taken()
    assert {name: len(each) for name, each in taken.items()} == {"a": 2, "b": 1}
    assert watch.taken() == taken
    watch.add("a", watch.mark())
    assert {name: len(each) for name, each in watch.taken().items()} == {"a": 1, "b": 1}
    watch.reset()
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
