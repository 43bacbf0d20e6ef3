"""The study of caches: each of them, beside the peers on the same steps."""

from __future__ import annotations

import pytest

from bench.caches import INTERVALS, PEERS, STUDY, points
from fresco_trt.bench.methods import Point
from fresco_trt.bench.points import chosen, table_named
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.caching import NO_CACHE, cache_names
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

TINY = model_facts("flux-tiny")


def cached(found: list[Point], method: str) -> set[tuple[str, int]]:
    return {
        (point.settings.cache.name, point.settings.cache.interval)
        for point in found
        if point.method == method
        and isinstance(point.settings, Preset)
        and point.settings.cache != NO_CACHE
    }


def test_every_cache_stands_beside_the_peers_on_the_plain_steps_and_on_presets() -> None:
    found = list(points(TINY, TINY.default_size))
    every = {(name, interval) for name in cache_names("feature") for interval in INTERVALS}
    assert cached(found, "cache") == every
    assert {name for name, _ in cached(found, "fresco")} == set(cache_names("feature"))
    alone = [point.settings for point in found if point.method == "cache"]
    full = [plan_from_preset(TINY, each).full_steps for each in alone if isinstance(each, Preset)]
    assert set(full) == {18, 12, 9}
    peers = [point for point in found if point.method in PEERS]
    assert {point.method for point in peers} == set(PEERS)
    assert {point.nfe for point in peers} == {TINY.default_steps}


@pytest.mark.parametrize("model", model_names())
def test_every_model_has_such_points_the_plain_pipeline_first(model: str) -> None:
    facts = model_facts(model)
    found = points(facts, facts.default_size)
    assert table_named(STUDY.points) is points
    assert len({point.name for point in found}) == len(found)
    assert found[0].method == "plain"
    assert 1 < len(chosen(found, None, quick=True)) < len(found)
