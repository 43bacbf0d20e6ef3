"""Every plan's cache becomes its predictor, or is refused with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fresco_trt.errors import IncompatibleOptions, InvalidPlan
from fresco_trt.plan.caching import DEFAULTS, FEATURE_CACHES, VARIANTS, CachePlan
from fresco_trt.run.cache import predictor, svd, taylor
from fresco_trt.run.cache.freqca import FreqCaPredictor
from fresco_trt.run.cache.hicache import HiCachePredictor
from fresco_trt.run.cache.reuse import ReusePredictor
from fresco_trt.run.cache.svd import SvdPredictor
from fresco_trt.run.cache.taylor import TaylorPredictor

GRID = 1, 4, 6
BASIS = torch.eye(8)[:, :3]


def made(name: Any, **settings: Any) -> Any:
    return predictor(CachePlan(name=name, **settings), grid=GRID, basis=BASIS)


@pytest.mark.parametrize("name", FEATURE_CACHES)
def test_every_default_predicts(name: Any) -> None:
    cache = DEFAULTS[name]
    predicts = predictor(cache, grid=GRID, basis=BASIS)
    feature = torch.randn(1, 24, 8)
    state = predicts.observe(predicts.start(), feature, 0.0)
    torch.testing.assert_close(predicts.predict(state, 1.0), feature)


def test_the_settings_arrive() -> None:
    assert made("reuse", order=0) == ReusePredictor()
    assert made("taylor", order=3) == TaylorPredictor(order=3)
    assert made("taylor", axis="sigma") == TaylorPredictor()
    assert made("taylor", variant="published") == TaylorPredictor(variant="published")
    assert made("hicache", scale=0.3) == HiCachePredictor(order=2, scale=0.3)
    assert made("freqca", order=1, scale=0.9) == FreqCaPredictor(
        rows=4, columns=6, order=1, scale=0.9
    )
    principal = made("svd", order=1)
    assert isinstance(principal, SvdPredictor)
    assert (principal.variant, principal.order) == ("", 1)
    assert principal.basis is BASIS
    assert made("svd", variant="slope").variant == "slope"


def test_the_published_scales_are_the_predictors_own() -> None:
    assert HiCachePredictor().scale == 0.5
    assert FreqCaPredictor(rows=4, columns=6).scale == 0.71


def test_the_variants_are_those_of_the_plan() -> None:
    assert tuple(taylor.VARIANTS) == VARIANTS["taylor"]
    assert tuple(svd.VARIANTS) == VARIANTS["svd"]


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"name": "reuse"}, "order 2"),
        ({"name": "reuse", "order": 0, "scale": 0.3}, "scale 0.3"),
        ({"name": "taylor", "order": 0}, "order 0"),
        ({"name": "taylor", "scale": 0.3}, "scale 0.3"),
        ({"name": "hicache", "order": 0}, "order 0"),
        ({"name": "svd", "order": 0}, "order 0"),
        ({"name": "svd", "scale": 0.3}, "scale 0.3"),
        ({"name": "svd", "variant": "literal", "order": 1}, "order 1.*'literal'"),
        ({"name": "svd", "variant": "slope", "order": 3}, "order 3.*'slope'"),
        ({"name": "freqca", "order": 0}, "order 0"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], given: str) -> None:
    with pytest.raises(IncompatibleOptions, match=f"^{given}.*; expected .* Fix: "):
        made(**settings)


def test_svd_needs_a_basis_and_freqca_a_whole_grid() -> None:
    with pytest.raises(IncompatibleOptions, match="without a basis"):
        predictor(CachePlan(name="svd"), grid=GRID, basis=None)
    with pytest.raises(IncompatibleOptions, match="mixed grid"):
        predictor(CachePlan(name="freqca"), grid=None, basis=BASIS)
    for name in ("taylor", "hicache"):
        predictor(CachePlan(name=name), grid=None, basis=None)


@pytest.mark.parametrize("name", ["hicache", "freqca"])
def test_a_hermite_basis_counts_steps(name: str) -> None:
    with pytest.raises(InvalidPlan, match="over sigma"):
        made(name, axis="sigma")
