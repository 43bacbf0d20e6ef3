"""Laws of one launch a stage, against a scripted GPU whose graphs hold kernels and no Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.torch_graph import replayed
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import cache_names
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.captured import CapturedStages
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning, engine_name
from tests.run.recording_device import RecordingDevice

FACTS = replace(
    model_facts("flux-tiny"), hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
MODEL = load_transformer("random", FACTS, seed=3)
BASIS = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(1)))[0]


def plan_of(cache: str | None = None, **settings: Any) -> StagePlan:
    if cache is not None:
        settings["cache"] = CacheConfig(name=cache, interval=2, warmup_steps=1)
    given = {"stages": 3, "preset": "quality", "size": (64, 64), **settings}
    return make_plan(FACTS, **given)


class Engines:
    """Runners of a plan's engines on a device, each queued through a graph of its own."""

    def __init__(self, plan: StagePlan, device: RecordingDevice, **options: Any) -> None:
        self.plan, self.device = plan, device
        self.graphs: dict[str, Graph] = {}
        self._options = options

    @contextmanager
    def open(self) -> Iterator[Denoiser]:
        from contextlib import ExitStack

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
    "plain": plan_of(),
    "multistep": replace(plan_of(), solver="multistep"),
    "text": with_text(plan_of(), 2, 3, None),
    **{name: plan_of(name) for name in cache_names("feature")},
    "coarse_velocity": plan_of("coarse_velocity", size=(128, 128)),
}


@pytest.mark.parametrize("name", PLANS)
def test_replayed_stages_draw_what_their_steps_draw_bit_for_bit(name: str) -> None:
    plan, device = PLANS[name], RecordingDevice()
    with Engines(plan, device).open() as denoiser:
        stages = captured(denoiser)
        assert all(agrees(denoiser, stages, seed) for seed in (1, 2, 3))
        device.calls.clear()
        by_stages(stages, 4)
        assert device.calls == ["replay"] * len(plan.stages)
