"""Steps to skip: a looser tolerance skips more, and what is predicted is judged by its velocity."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

import fresco_trt
from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate import run_features as features
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.cache_schedule import measure_cache_schedule
from fresco_trt.lower.calibrate.options import Options
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.config import CacheConfig

MODEL = load_transformer(None, FLUX_TINY)
REFERENCE = Reference(
    facts=FLUX_TINY,
    transformer=MODEL,
    weights_sha256=weights_digest(MODEL),
    pipeline=bundled_folder("flux-tiny"),
    prompts=("a star on a plain red background", "a cat on a checked blue background"),
)
PLAN = fresco_trt.plan("flux-tiny", stages=2, preset="quality", size=(64, 64))


def test_a_looser_tolerance_skips_at_least_as_much() -> None:
    taylor = cache_traits("taylor").settings()
    lists = measure_cache_schedule(REFERENCE, PLAN, taylor, (1e-9, 0.1, 1e9))
    strict, between, loose = lists
    assert strict.full_steps == PLAN.nfe
    assert strict.full_steps >= between.full_steps >= loose.full_steps == len(PLAN.stages)
    for each in lists:
        assert [len(word) for word in each.actions] == [stage.steps for stage in PLAN.stages]
        assert all(word[0] == "F" for word in each.actions)


def test_a_step_is_skipped_exactly_where_its_error_is_allowed() -> None:
    (found,) = measure_cache_schedule(REFERENCE, PLAN, cache_traits("reuse").settings(), (0.15,))
    for word, errors in zip(found.actions, found.errors, strict=True):
        assert errors[0] is None
        for letter, error in zip(word[1:], errors[1:], strict=True):
            assert error is not None
            assert (letter == "B") == (error <= 0.15)


def test_the_list_makes_a_plan() -> None:
    (found,) = measure_cache_schedule(REFERENCE, PLAN, cache_traits("hicache").settings(), (0.3,))
    planned = fresco_trt.plan(
        "flux-tiny",
        stages=2,
        preset="quality",
        size=(64, 64),
        cache=CacheConfig(name="hicache", actions=found.actions),
    )
    assert planned.full_steps == found.full_steps < planned.nfe


@pytest.mark.parametrize("tolerance", [0.0, -0.1, float("inf"), float("nan")])
def test_impossible_tolerances_are_refused(tolerance: float) -> None:
    with pytest.raises(CalibrationError, match="tolerance"):
        measure_cache_schedule(REFERENCE, PLAN, cache_traits("reuse").settings(), (tolerance,))


def test_the_command_stores_what_it_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star on a plain red background\n", encoding="utf-8")
    small = fresco_trt.plan("flux-tiny", stages=2, preset="turbo", size=(64, 64))
    making = import_module("fresco_trt.plan.making")
    monkeypatch.setattr(making, "make_plan", lambda facts, **options: small)
    options = Options(
        model="flux-tiny",
        measure="cache-schedule",
        prompts=prompts,
        tolerance=0.2,
        cache=CacheConfig(name="svd", max_order=1),
        out=tmp_path,
    )
    document = features.run_cache_schedule(options, lambda *_: None)
    stored = json.loads(
        (tmp_path / "flux-tiny-3stage-balanced-svd-order1-cache-schedule.json").read_text()
    )
    assert stored == json.loads(json.dumps(document))
    assert (stored["stages"], stored["prompts"], stored["steps"]) == (2, 1, small.nfe)
    assert [each["tolerance"] for each in stored["schedules"]] == [0.2]
    assert (stored["cache"]["name"], stored["cache"]["max_order"]) == ("svd", 1)
