"""Every plan's cache becomes its predictor, or is refused with what to do about it; yours too."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, InvalidPlan
from fresco_trt.plan import caching
from fresco_trt.plan.caching import CachePlan, cache_names, cache_traits
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.cache import CacheTraits, predictor, register, registry
from fresco_trt.run.cache.freqca import FreqCaPredictor
from fresco_trt.run.cache.hicache import HiCachePredictor
from fresco_trt.run.cache.reuse import ReusePredictor
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.cache.svd import SvdPredictor
from fresco_trt.run.cache.taylor import TaylorPredictor

GRID = 1, 4, 6
BASIS = torch.eye(8)[:, :3]


def made(name: str, max_order: int) -> Any:
    return predictor(CachePlan(name=name, max_order=max_order), grid=GRID, basis=BASIS)


@pytest.mark.parametrize("name", cache_names("feature"))
def test_every_default_predicts(name: str) -> None:
    predicts = predictor(cache_traits(name).settings(), grid=GRID, basis=BASIS)
    feature = torch.randn(1, 24, 8)
    state = predicts.observe(predicts.start(), feature, 0.0)
    torch.testing.assert_close(predicts.predict(state, 1.0), feature)


def test_the_settings_arrive() -> None:
    assert made("reuse", 0) == ReusePredictor()
    assert made("taylor", 3) == TaylorPredictor(order=3)
    assert made("hicache", 2) == HiCachePredictor(order=2)
    assert made("freqca", 1) == FreqCaPredictor(rows=4, columns=6, order=1)
    principal = made("svd", 1)
    assert isinstance(principal, SvdPredictor)
    assert principal.order == 1
    assert principal.basis is BASIS


def test_the_published_scales_are_the_predictors_own() -> None:
    assert HiCachePredictor().scale == 0.5
    assert FreqCaPredictor(rows=4, columns=6).scale == 0.71


def test_what_the_traits_need_is_asked_for() -> None:
    with pytest.raises(IncompatibleOptions, match="'svd' without a basis"):
        predictor(cache_traits("svd").settings(), grid=GRID, basis=None)
    with pytest.raises(IncompatibleOptions, match="'freqca' on a mixed grid"):
        predictor(cache_traits("freqca").settings(), grid=None, basis=BASIS)
    with pytest.raises(IncompatibleOptions, match="predicts no feature"):
        predictor(cache_traits("coarse_velocity").settings(), grid=GRID, basis=BASIS)
    for name in ("taylor", "hicache"):
        predictor(cache_traits(name).settings(), grid=None, basis=None)


# --- a predictor of one's own ------------------------------------------------------------------

TOY = CacheTraits(name="half", orders=(0, 1), default_order=1, interval=3, warmup_steps=1)


@dataclass(frozen=True)
class Half:
    """Half of the last feature; whatever the order."""

    def start(self) -> torch.Tensor | None:
        return None

    def observe(self, state: Any, feature: torch.Tensor, at: float) -> torch.Tensor:
        return feature / 2

    def predict(self, state: Any, at: float) -> Any:
        return state

    def nbytes(self, feature_bytes: int) -> int:
        return feature_bytes


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered predictor of one's own, forgotten after the test."""
    monkeypatch.setattr(caching, "_REGISTER", dict(caching._REGISTER))
    monkeypatch.setattr(registry, "_MAKERS", dict(registry._MAKERS))
    register(TOY, lambda cache, grid, basis: Half())
    return TOY.name


def test_a_predictor_of_ones_own_is_planned_stored_and_run(half: str) -> None:
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=7, cache=half)
    assert caching.spelling_of(plan.stages[0].actions) == "FBBFBBF"
    assert plan.cache == CachePlan(name=half, max_order=1)
    assert plan.cache.kept_features == 2
    assert StagePlan.from_json(plan.to_json()) == plan
    cache = StageCache.of(plan, 0, None)
    assert cache is not None
    cache.observe(torch.ones(1, 4, 2), 0)
    assert torch.equal(cache.predict(1), torch.full((1, 4, 2), 0.5))
    assert fresco_trt.plan("flux-tiny", stages=3, cache="half,max_order=0").cache == CachePlan(
        name=half, max_order=0
    )


def test_one_that_is_not_registered_is_refused_with_how() -> None:
    with pytest.raises(InvalidPlan, match=r"'half'.*register a predictor of your own"):
        CachePlan(name="half", max_order=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "none"},
        {"name": "Half"},
        {"default_order": 2},
        {"orders": (-1, 1)},
        {"sites": ()},
        {"sites": ("velocity",)},
        {"predicts": "velocity"},
    ],
)
def test_traits_that_contradict_one_another_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"half|none|Half"):
        CacheTraits(**{"name": "half", "orders": (0, 1), "default_order": 1, **wrong})


def test_a_name_belongs_to_one_predictor(half: str) -> None:
    register(TOY, lambda cache, grid, basis: Half())
    with pytest.raises(ValueError, match="'hicache' is registered"):
        register(CacheTraits(name="hicache", orders=(0,), default_order=0), Half)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected make"):
        register(TOY, None)


def test_the_register_is_documented_and_the_config_has_no_names() -> None:
    assert inspect.getdoc(register)
    assert CacheConfig(name="half").name == "half"
