"""Steps to skip: a looser tolerance skips more, and what is predicted is judged by its velocity."""

from __future__ import annotations

import json
import math
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fresco_trt
from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate import run_features as features
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.cache_schedule import measure_cache_schedule
from fresco_trt.lower.calibrate.options import Options
from fresco_trt.lower.calibrate.spectral_change import (
    accumulated,
    filtered,
    measure_change_schedule,
    relative_change,
)
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.caching import cache_traits, spelling_of
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.shallow import FACTS, shallow_transformer

MODEL = shallow_transformer()
REFERENCE = Reference(
    facts=FACTS,
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


# --- SeaCache's change ------------------------------------------------------------------------

ROWS, COLUMNS = 8, 4
SMALL = Grid(height=2 * ROWS, width=2 * COLUMNS, scale=1.0)
MIXED = plan_from_preset(
    FLUX_TINY,
    Preset(steps=(3, 2, 3), switch=(0.9, 0.8), refine=((("even", 0.25),), ()), window=1),
    size=(64, 64),
)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 0), (0, 2), (3, 1)])
def test_a_wave_is_scaled_by_the_wiener_gain_of_its_frequency(row: int, column: int) -> None:
    """The gains of both axes are multiplied, and their mean over all waves is 1."""

    def gain(frequency: float, clean: float = 0.4, noise: float = 0.6) -> float:
        spectrum = min(1e16, 1.0 / frequency**2 if frequency else 1e16)
        return clean * spectrum / (clean**2 * spectrum + noise**2)

    def axis(size: int) -> list[float]:
        return [gain(min(k, size - k) / size) for k in range(size)]

    mean = sum(axis(ROWS)) * sum(axis(COLUMNS)) / (ROWS * COLUMNS)
    phase = torch.arange(ROWS)[:, None] * row / ROWS + torch.arange(COLUMNS) * column / COLUMNS
    wave = torch.cos(2 * math.pi * phase).reshape(-1, 1)
    expected = wave * axis(ROWS)[row] * axis(COLUMNS)[column] / mean
    found = filtered(wave, SMALL, 0.6).reshape(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_clean_tokens_pass_and_of_pure_noise_only_the_mean() -> None:
    tokens = torch.randn(SMALL.tokens, 3)
    shape = 1, ROWS, COLUMNS, 3
    torch.testing.assert_close(filtered(tokens, SMALL, 0.0), tokens.reshape(shape))
    flat = filtered(tokens, SMALL, 1.0)
    mean = (tokens.mean(dim=0) * SMALL.tokens).expand(shape)
    torch.testing.assert_close(flat, mean, rtol=1e-4, atol=1e-4)


def test_a_step_is_full_where_the_changes_since_the_last_one_reach_the_threshold() -> None:
    changes = (0.5, 0.25, 0.125, 0.125, 0.125, 0.125, 0.5, 0.25)
    for threshold, word in (
        (0.1, "F" * 9),
        (0.25, "FFFBFBFFF"),
        (0.5, "FFBBFBBFB"),
        (9, "F" + 8 * "B"),
    ):
        assert spelling_of(accumulated(changes, threshold, ends=False)) == word
        assert spelling_of(accumulated(changes, threshold, ends=True)) == word[:-1] + "F"


def test_the_change_is_that_of_what_the_first_block_attends_to() -> None:
    """Averaged over the prompts; a mixed stage, whose tokens are on no one grid, skips no step."""
    block, modulated = MODEL.get_submodule("transformer_blocks.0.norm1"), []
    handle = block.register_forward_hook(lambda _, given, result: modulated.append(result[0][0]))
    strict, loose = measure_change_schedule(REFERENCE, MIXED, (1e-9, 1e9))
    handle.remove()
    assert strict.actions == ("FFF", "FF", "FFF")
    assert loose.actions == ("FBB", "FF", "FBF")
    assert loose.changes == strict.changes
    assert strict.changes[1] == (None, None)
    assert len(modulated) == MIXED.nfe * len(REFERENCE.prompts)
    for stage, first in ((0, 0), (2, 5)):
        grid, sigmas = MIXED.stages[stage].grid, MIXED.stages[stage].sigmas
        looks = [
            [filtered(modulated[run + first + i], grid, sigmas[i]) for i in range(3)]
            for run in (0, MIXED.nfe)
        ]
        expected = [
            sum(relative_change(look[i], look[i - 1]) for look in looks) / 2 for i in (1, 2)
        ]
        assert strict.changes[stage][0] is None
        assert strict.changes[stage][1:] == pytest.approx(expected)


def test_a_sea_schedule_is_stored_and_makes_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(make_plan, size=(64, 64))
    monkeypatch.setattr(import_module("fresco_trt.plan.making"), "make_plan", small)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\n")
    options = Options(
        model="flux-tiny",
        measure="sea-schedule",
        prompts=prompts,
        stages=2,
        preset="turbo",
        tolerance=100.0,
        out=tmp_path,
    )
    document = features.run_sea_schedule(options, lambda *_: None)
    stored = json.loads((tmp_path / "flux-tiny-2stage-turbo-sea-schedule.json").read_text())
    assert stored == document
    (found,) = stored["schedules"]
    cache = CacheConfig(name="reuse", site="trunk", actions=tuple(found["actions"]))
    planned = small(FLUX_TINY, stages=2, preset="turbo", cache=cache)
    assert planned.full_steps == found["full_steps"] < planned.nfe == stored["steps"]


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_no_sum_reaches_is_refused(threshold: float) -> None:
    with pytest.raises(CalibrationError, match="expected a sum of relative changes above 0"):
        measure_change_schedule(REFERENCE, PLAN, (threshold,))
