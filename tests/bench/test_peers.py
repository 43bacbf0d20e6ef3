"""The caches of others: on while they draw, gone after, and what they save counted truly."""

from __future__ import annotations

import pytest
import torch

from fresco_trt.bench.methods import CacheDit, FirstBlock, TaylorSeer
from fresco_trt.bench.peers import DiffusersMethods
from fresco_trt.bench.plain import Plain
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import flops_of_step
from tests.shallow import shallow_pipeline

TINY = with_blocks(model_facts("flux-tiny"), (1, 1))
STEPS, TOKENS = 9, 64
CACHES = {
    "taylorseer": TaylorSeer(steps=STEPS, interval=4),
    "taylorseer of attention": TaylorSeer(steps=STEPS, interval=4, lite=False),
    "first-block": FirstBlock(steps=STEPS, threshold=0.5),
}
DIT = CacheDit(steps=STEPS, threshold=0.9, taylor=False)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> DiffusersMethods:
    folder = shallow_pipeline(tmp_path_factory.mktemp("pipeline") / "shallow")
    return DiffusersMethods(folder, TINY, (64, 64))


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {
        "text": torch.randn(1, TINY.text_tokens, TINY.text_dim),
        "pooled": torch.randn(1, TINY.pooled_dim),
    }


def test_plain_steps_cost_what_the_plan_counts(
    pipeline: DiffusersMethods, inputs: dict[str, torch.Tensor]
) -> None:
    drawn = pipeline.method(Plain(steps=3))(inputs, 1)
    assert drawn.flops == 3 * flops_of_step(TINY, TOKENS)
    assert drawn.engine_seconds is None
    assert drawn.latents.shape == (1, TINY.latent_channels, 16, 16)


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_saves_work_and_leaves_the_pipeline_as_it_was(
    pipeline: DiffusersMethods, inputs: dict[str, torch.Tensor], name: str
) -> None:
    plain, cached = pipeline.method(Plain(steps=STEPS)), pipeline.method(CACHES[name])
    before, first, again, after = (draw(inputs, 1) for draw in (plain, cached, cached, plain))
    assert first.flops < before.flops == after.flops
    assert torch.equal(before.latents, after.latents)
    assert torch.equal(first.latents, again.latents)  # a picture does not reach into the next
    assert not torch.equal(first.latents, before.latents)


def test_a_whole_prediction_saves_whole_steps(
    pipeline: DiffusersMethods, inputs: dict[str, torch.Tensor]
) -> None:
    drawn = pipeline.method(CACHES["taylorseer"])(inputs, 1)
    full = drawn.flops / flops_of_step(TINY, TOKENS)
    assert full == round(full)
    assert 3 <= full < STEPS


def test_cache_dit_runs_apart_or_says_why_not(
    pipeline: DiffusersMethods, inputs: dict[str, torch.Tensor]
) -> None:
    pytest.importorskip("cache_dit", reason="cache-dit comes with the extra 'bench'")
    plain, cached = pipeline.method(Plain(steps=STEPS)), pipeline.method(DIT)
    before, first, again, after = (draw(inputs, 1) for draw in (plain, cached, cached, plain))
    assert first.flops < before.flops == after.flops
    assert torch.equal(before.latents, after.latents)
    assert torch.equal(first.latents, again.latents)


def test_without_cache_dit_the_method_is_an_import_error(
    pipeline: DiffusersMethods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cache_dit", None)
    with pytest.raises(ImportError, match="cache_dit"):
        pipeline.method(DIT)
