"""One engine for each number of tokens, whatever plan asks, and the plain sampler's result."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco_trt.backends import backend
from fresco_trt.bench.engines import EnginePool, Kind, plan_method, signatures_of
from fresco_trt.bench.instrument import Draw
from fresco_trt.bench.plain import Plain, denoise, load_pipeline
from fresco_trt.models.flux.loading import load_transformer, random_transformer
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.denoise import Denoiser

pytestmark = pytest.mark.usefixtures("traced_once")

TINY = model_facts("flux-tiny")
SIZE = (64, 64)
STAGED = Preset(steps=(2, 2, 2), switch=(0.85, 0.7))
MIXED = replace(STAGED, refine=((("even", 0.4),), ()), window=1)
ALIGNED = replace(MIXED, positions="aligned")
CACHED = Preset(steps=(7,), cache=CacheConfig(name="hicache", interval=3, warmup_steps=1))
TRUNK = replace(CACHED, cache=replace(CACHED.cache, site="trunk"))


def plan_of(preset: Preset) -> StagePlan:
    return plan_from_preset(TINY, preset, size=SIZE)


def method_of(plan: StagePlan, runners: Any) -> Draw:
    """What draws by a plan on entered runners."""
    return plan_method(Denoiser.of(TINY, plan, runners, text_tokens=TINY.text_tokens))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eager engines for every plan of this file. Read only."""
    made = tmp_path_factory.mktemp("engines")
    plans = [plan_of(preset) for preset in (STAGED, MIXED, ALIGNED, CACHED, TRUNK)]
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), made, scope)
        pool.build(signatures_of(TINY, plans), load_transformer(None, TINY))
    return made


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {
        "text": torch.randn(1, TINY.text_tokens, TINY.text_dim),
        "pooled": torch.randn(1, TINY.pooled_dim),
        "guidance": torch.tensor([3.5]),
    }


def test_plans_share_the_engines_of_their_token_counts(folder: Path) -> None:
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        staged, mixed = plan_of(STAGED), plan_of(MIXED)
        first, second = pool.runners(staged), pool.runners(mixed)
        assert staged.tokens == (4, 16, 64)
        assert mixed.tokens == (16, 34, 64)
        assert first["stage2.full"] is second["stage1.full"]
        assert first["stage3.full"] is second["stage3.full"]
        assert second["stage2.full"].signature.input("latents").shape[1] == 34
        third = pool.runners(plan_of(ALIGNED))
        assert third["stage3.full"] is second["stage3.full"]
        assert third["stage2.full"].signature.input("rope_cos_coarse").shape[0] == 128 + 16


def test_a_folder_is_built_once_and_read_by_whoever_opens_it(folder: Path) -> None:
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        assert pool.has([Kind(4), Kind(64), Kind(34, 6)])
        assert not pool.has([Kind(4), Kind(65)])
        assert not pool.has([Kind(34, 5)])
        with pytest.raises(ValueError, match="in a folder with some"):
            pool.build([Kind(65)], load_transformer(None, TINY))


@pytest.mark.parametrize("mu", [None, 1.6])
def test_one_stage_is_the_pipeline_at_the_same_shift(
    folder: Path, inputs: dict[str, torch.Tensor], mu: float | None
) -> None:
    shift = None if mu is None else (torch.tensor(mu, dtype=torch.float64).exp().item(),)
    pipe: Any = load_pipeline()
    expected, seconds = denoise(pipe, TINY, SIZE, inputs, [5], Plain(steps=4, mu=mu))
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        plan = plan_of(Preset(steps=(4,), shift=shift))
        drawn = method_of(plan, pool.runners(plan))(inputs, 5)
    torch.testing.assert_close(drawn.latents, expected, atol=2e-4, rtol=0)
    assert seconds > 0
    assert drawn.engine_seconds is not None
    assert 0 < drawn.engine_seconds < drawn.seconds


@pytest.mark.parametrize("preset", [STAGED, MIXED, ALIGNED, replace(STAGED, noise="fresh")])
def test_a_seed_is_a_picture(folder: Path, inputs: dict[str, torch.Tensor], preset: Preset) -> None:
    plan = plan_of(preset)
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        draw = method_of(plan, pool.runners(plan))
        first, again, other = (draw(inputs, seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (1, TINY.latent_channels, 16, 16)


@pytest.mark.slow
def test_exported_engines_draw_what_the_eager_ones_do(
    tmp_path: Path, inputs: dict[str, torch.Tensor]
) -> None:
    plan, transformer = plan_of(MIXED), random_transformer(TINY, layers=(1, 1))
    found = []
    with ExitStack() as scope:
        for name in ("eager", "onnxruntime"):
            pool = EnginePool(TINY, backend(name), tmp_path / name, scope)
            pool.build(signatures_of(TINY, [plan]), transformer)
            draw = method_of(plan, pool.runners(plan))
            found.append(draw(inputs, 3).latents)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    assert not list(tmp_path.rglob(".work-*"))


def test_a_cached_plan_has_engines_of_its_own(folder: Path) -> None:
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        runners = pool.runners(plan_of(CACHED))
        assert set(runners) == {"stage1.full", "stage1.bypass"}
        outputs = [spec.name for spec in runners["stage1.full"].signature.outputs]
        assert outputs == ["velocity", "feature"]
        assert runners["stage1.full"] is not pool.runners(plan_of(STAGED))["stage3.full"]


def test_engines_of_another_site_are_others(folder: Path, inputs: dict[str, torch.Tensor]) -> None:
    plan = plan_of(TRUNK)
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        runners = pool.runners(plan)
        assert runners["stage1.full"].signature.output("residual").shape == (1, 64, TINY.hidden)
        assert runners["stage1.bypass"].signature.input("latents").shape[1] == 64
        drawn = method_of(plan, runners)(inputs, 3)
    assert drawn.latents.isfinite().all()


def test_skipped_steps_are_not_paid_for(folder: Path, inputs: dict[str, torch.Tensor]) -> None:
    plan, plain = plan_of(CACHED), plan_of(replace(CACHED, cache=NO_CACHE))
    assert (plan.nfe, plan.full_steps) == (7, 3)
    with ExitStack() as scope:
        pool = EnginePool(TINY, backend("eager"), folder, scope)
        drawn = [method_of(each, pool.runners(each))(inputs, 3) for each in (plan, plain)]
    assert drawn[1].flops / drawn[0].flops == pytest.approx(7 / 3, rel=0.02)
    assert not torch.equal(drawn[0].latents, drawn[1].latents)
    assert drawn[0].latents.isfinite().all()
