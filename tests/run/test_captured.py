"""Laws of one launch a stage, against a scripted GPU whose graphs hold kernels and no Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import BorrowedRunner, EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.errors import EngineFailed, NonFiniteValues
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import cache_names
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan
from fresco_trt.profile.spans import Recorder
from fresco_trt.run.captured import CapturedStages, _host_work
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning, engine_name
from fresco_trt.run.trace import recording
from tests.run.recording_device import RecordingDevice

DEMO = model_facts("flux-tiny")
SHORT = {
    count: replace(each, steps=tuple(min(4, steps) for steps in each.steps))
    for count, each in DEMO.presets["fast"].items()
}
"""As few steps as leave a cache something to skip."""

FACTS = replace(
    DEMO,
    hidden=64,
    heads=2,
    double_blocks=1,
    single_blocks=1,
    text_tokens=5,
    presets={"fast": SHORT},
)
MODEL = load_transformer("random", FACTS, seed=3)
BASIS = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(1)))[0]


def plan_of(cache: str | None = None, **settings: Any) -> StagePlan:
    if cache is not None:
        settings["cache"] = CacheConfig(name=cache, interval=2, warmup_steps=1)
    given = {"stages": 3, "preset": "fast", "size": (64, 64), **settings}
    return make_plan(FACTS, **given)


MIXED = plan_from_preset(
    FACTS,
    Preset(
        steps=(2, 2, 2),
        switch=(0.8, 0.6),
        refine=((("converged", 0.25), ("edge", 0.125)), ()),
        window=2,
    ),
    size=(64, 64),
)


class Engines:
    """Runners of a plan's engines on a device, each queued through a graph of its own."""

    def __init__(self, plan: StagePlan, device: RecordingDevice, **options: Any) -> None:
        self.plan, self.device = plan, device
        self.graphs: dict[str, Graph] = {}
        self._options = options

    @contextmanager
    def open(self) -> Iterator[Denoiser]:
        with ExitStack() as scope:
            runners = {
                engine_name(index, action): scope.enter_context(self._runner(index, action))
                for index, action in self.plan.graphs
            }
            cache = self.plan.cache
            yield Denoiser.of(
                FACTS,
                self.plan,
                runners,
                text_tokens=FACTS.text_tokens,
                basis=BASIS if cache is not None and cache.traits.needs_basis else None,
            )

    def _runner(self, index: int, action: Any) -> EngineRunner:
        name = engine_name(index, action)
        signature = stage_signature(
            FACTS, self.plan, index, action, text_tokens=FACTS.text_tokens, **self._options
        )
        module = module_runner(graph_from_signature(MODEL, signature), signature)
        module.__enter__()
        graph = self.graphs[name] = Graph(name, self.device, captures=True)
        return EngineRunner(signature, partial(replayed, module, signature, graph), graph=graph)


def conditioning(seed: int, pictures: int = 1) -> Conditioning:
    drawn = torch.Generator().manual_seed(seed)
    return Conditioning(
        inputs={
            "text": torch.randn(pictures, FACTS.text_tokens, FACTS.text_dim, generator=drawn),
            "pooled": torch.randn(pictures, FACTS.pooled_dim, generator=drawn),
            "guidance": torch.full([pictures], 1.0 + seed),
        },
        prompt_tokens=2,
    )


def captured(denoiser: Denoiser) -> CapturedStages:
    found = CapturedStages.of(denoiser)
    assert found is not None
    return found


def by_steps(denoiser: Denoiser, seed: int) -> Tensor:
    *_, last = denoiser.steps(conditioning(seed), seed)
    return last.tokens.clone()


def by_stages(stages: CapturedStages, seed: int) -> Tensor:
    *_, last = stages.draw(conditioning(seed), seed)
    return last.tokens.clone()


def agrees(denoiser: Denoiser, stages: CapturedStages, seed: int) -> bool:
    return torch.equal(by_stages(stages, seed), by_steps(denoiser, seed))


# --- the same picture -------------------------------------------------------------------------


def with_text(plan: StagePlan, *text: int | None) -> StagePlan:
    pairs = zip(plan.stages, text, strict=True)
    return replace(plan, stages=tuple(replace(each, text_tokens=t) for each, t in pairs))


PLANS = {
    "unipc": replace(plan_of(), solver="unipc"),
    "text": with_text(plan_of(), 2, 3, None),
    "mixed": MIXED,
    **{name: plan_of(name, stages=2) for name in cache_names("feature")},
    "coarse_velocity": plan_of("coarse_velocity", stages=2),
}


@pytest.mark.parametrize("name", PLANS)
def test_replayed_stages_draw_what_their_steps_draw_bit_for_bit(name: str) -> None:
    plan, device = PLANS[name], RecordingDevice()
    with Engines(plan, device).open() as denoiser:
        stages = captured(denoiser)
        assert all(agrees(denoiser, stages, seed) for seed in (1, 2))
        device.calls.clear()
        third = by_stages(stages, 3)
        assert device.calls == ["replay"] * len(plan.stages)
        assert torch.equal(third, by_steps(denoiser, 3))


# --- what is captured, and when ---------------------------------------------------------------


def test_a_stage_is_launched_plainly_then_captured_then_replayed_whole() -> None:
    plan, device = plan_of(stages=2), RecordingDevice()
    with Engines(plan, device).open() as denoiser:
        stages = captured(denoiser)
        by_steps(denoiser, 0)
        by_steps(denoiser, 0)  # the engines' own graphs are there already
        calls = []
        for seed in range(3):
            device.calls.clear()
            by_stages(stages, seed)
            calls.append(list(device.calls))
            assert stages.is_captured is (seed > 0)
    assert calls[0] == ["replay"] * plan.nfe
    assert calls[1] == ["capture", "replay"] * 2
    assert calls[2] == ["replay"] * 2


def test_a_replay_is_one_span_of_its_stage_and_a_plain_launch_has_its_steps() -> None:
    plan = plan_of(stages=2)
    with Engines(plan, RecordingDevice()).open() as denoiser:
        stages = captured(denoiser)
        with recording(plain := Recorder()):
            by_stages(stages, 1)
        by_stages(stages, 2)
        with recording(replays := Recorder()):
            by_stages(stages, 3)
    assert [(each.name, each.number) for each in replays.spans] == [
        *(("stage", 1), ("replay", None)),
        *(("stage", 2), ("replay", None)),
    ]
    names = [each.name for each in plain.spans]
    assert [names.count(each) for each in ("stage", "step", "full", "transition", "replay")] == [
        *(2, plan.nfe, plan.nfe, 1, 0),
    ]


def test_stages_may_be_taken_one_by_one_left_and_mixed_with_single_steps() -> None:
    plan = plan_of(stages=2)
    with Engines(plan, RecordingDevice()).open() as denoiser:
        stages, expected = captured(denoiser), by_steps(denoiser, 5)
        for _ in range(3):
            ends = stages.draw(conditioning(8), 8)
            first = next(ends)
            steps = itertools.islice(denoiser.steps(conditioning(8), 8), plan.stages[0].steps)
            *_, last = steps
            assert torch.equal(first.tokens, last.tokens)
            assert torch.equal(first.velocity, last.velocity)
            assert (first.stage, first.sigma_next) == (last.stage, last.sigma_next)
            with pytest.raises(RuntimeError, match="within another"):
                by_stages(stages, 5)
            ends.close()
            assert torch.equal(by_stages(stages, 5), expected)


def test_a_request_of_another_kind_begins_again() -> None:
    """Of more pictures, for instance: what the graphs read is of another shape."""
    plan, device = plan_of(stages=2), RecordingDevice()
    with Engines(plan, device, batch=2).open() as denoiser:
        stages = captured(denoiser)
        for scale in (1.5, 1.5, 3.0, 3.0):
            given = replace(
                conditioning(1, 2), negative=conditioning(2, 2).inputs, true_cfg_scale=scale
            )
            *_, last = denoiser.steps(given, [3, 4])
            expected = last.tokens.clone()
            device.calls.clear()
            *_, end = stages.draw(given, [3, 4])
            assert torch.equal(end.tokens, expected)
            assert ("capture" in device.calls) is (device.calls.count("replay") == 2)


def test_an_engine_that_moved_since_it_ran_is_not_captured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it allocates anew would be in memory that other graphs write to."""
    plan, device = plan_of(stages=2), RecordingDevice()
    engines = Engines(plan, device)
    with engines.open() as denoiser:
        stages = captured(denoiser)
        by_stages(stages, 1)
        engines.graphs["stage2.full"]._warm = False
        assert all(agrees(denoiser, stages, seed) for seed in (2, 3))
        assert not stages.is_captured
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith("stage 2 of 2 runs without a CUDA graph: ")
    assert "stage2.full has not run yet" in said


def test_graphs_are_forgotten_with_those_of_their_engines() -> None:
    plan, device = plan_of(stages=2), RecordingDevice()
    engines = Engines(plan, device)
    with engines.open() as denoiser:
        stages = captured(denoiser)
        for seed in (1, 2):
            by_stages(stages, seed)
        engines.graphs["stage2.full"].forget()
        for count in ("plain", "capture"):
            device.calls.clear()
            assert agrees(denoiser, stages, 3), count
    with pytest.raises(RuntimeError, match="scope"):
        by_stages(stages, 1)


# --- what cannot be captured ------------------------------------------------------------------


def test_a_capture_that_fails_is_said_once_and_drawn_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan, device = plan_of(stages=2), RecordingDevice()
    with Engines(plan, device).open() as denoiser:
        stages = captured(denoiser)
        for seed in (1, 2):
            by_steps(denoiser, seed)  # the engines' own graphs are there already
        by_stages(stages, 1)
        device.refuses = "operation not permitted when stream is capturing"
        assert all(agrees(denoiser, stages, seed) for seed in (1, 2, 3))
    assert [each.getMessage() for each in caplog.records] == [
        f"stage {index} of 2 runs without a CUDA graph: {device.refuses}" for index in (1, 2)
    ]


def test_a_stage_that_draws_on_the_host_is_named_once_and_launched_plainly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(stages=2)
    (crossing,) = plan.transitions
    plan = replace(plan, transitions=(replace(crossing, noise="fresh"),))
    device = RecordingDevice()
    with Engines(plan, device).open() as denoiser:
        stages = captured(denoiser)
        assert all(agrees(denoiser, stages, seed) for seed in (1, 2, 3))
        device.calls.clear()
        by_stages(stages, 4)
    assert device.calls == ["replay"] * (plan.stages[0].steps + 1)
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == (
        "stage 1 of 2 runs step by step: the transition after it reads random numbers that the "
        "host draws"
    )


def test_a_stage_whose_tokens_the_caller_chooses_is_launched_plainly() -> None:
    reason = _host_work(SimpleNamespace(plan=MIXED, choice=len), 0)  # type: ignore[arg-type]
    assert reason == "the tokens after it are chosen by a function of the caller's"


@pytest.mark.parametrize("lack", ["gpu", "graphs", "wrapped"])
def test_without_graphs_under_it_nothing_is_captured(lack: str) -> None:
    plan, device = plan_of(stages=2), RecordingDevice(gpu=lack != "gpu")
    engines = Engines(plan, device)
    with engines.open() as denoiser:
        if lack == "graphs":
            engines.graphs["stage1.full"].captures = False
        if lack == "wrapped":
            wrapped = {name: BorrowedRunner(each) for name, each in denoiser.runners.items()}
            denoiser = replace(denoiser, runners=wrapped)
        assert CapturedStages.of(denoiser) is None


# --- errors -----------------------------------------------------------------------------------


def test_what_is_not_finite_is_told_at_the_end_with_its_step() -> None:
    plan = plan_of(stages=2)
    with Engines(plan, RecordingDevice()).open() as denoiser:
        stages, bad = captured(denoiser), conditioning(1)
        bad.inputs["text"].fill_(float("nan"))
        for seed in (1, 2, 3):
            assert agrees(denoiser, stages, seed)
            with pytest.raises(NonFiniteValues, match=r"stage 1 of 2.*step 1 of .*stage1\.full"):
                list(stages.draw(bad, seed))


def test_a_graph_that_does_not_start_is_an_engine_that_failed() -> None:
    device = RecordingDevice()
    with Engines(plan_of(stages=2), device).open() as denoiser:
        stages = captured(denoiser)
        for seed in (1, 2):
            by_stages(stages, seed)
        device.breaks = True
        with pytest.raises(EngineFailed, match="replaying stage 1: illegal memory access"):
            by_stages(stages, 3)
        device.breaks = False
        assert agrees(denoiser, stages, 3)
