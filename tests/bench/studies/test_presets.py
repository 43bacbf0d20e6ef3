"""The demo's presets: what was found for them is what ships."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from bench.found_presets import BUDGETS, SLACK, found_preset, preset_of, presets_table
from bench.presets import NAMED, SPEEDS, tuned_presets, tuned_table, unlike
from bench.tables import RESULTS, stored
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.tune.stored import preset_to_json

TINY = model_facts("flux-tiny")
SEARCHES = sorted(path.stem for path in RESULTS.glob("flux-tiny-*stage-presets.json"))
TUNED = sorted(path.stem for path in RESULTS.glob("*-tuned.json"))


def tuned_of(presets: dict[str, dict[int, Preset]]) -> dict[str, Any]:
    """A stored tune that chose these presets."""
    rows = {
        name: {str(count): {"preset": preset_to_json(each)} for count, each in schedules.items()}
        for name, schedules in presets.items()
    }
    speeds = [{"speed": speed, "stages": rows[name]} for name, speed in NAMED.items()]
    document: dict[str, Any] = json.loads(json.dumps({"speeds": speeds}))
    return document


@pytest.mark.parametrize("name", TUNED)
def test_the_presets_are_what_a_stored_tune_chose(name: str) -> None:
    document = stored(name)
    assert not unlike(document, model_facts(document["model"]))


def test_a_preset_that_a_tune_did_not_choose_is_found() -> None:
    presets = {name: dict(TINY.presets[name]) for name in NAMED}
    assert not unlike(tuned_of(presets), TINY)
    presets["fast"][2] = Preset(steps=(2, 5), switch=(0.9,))
    (found,) = unlike(tuned_of(presets), TINY)
    assert found.startswith("fast of 2 stages")
    assert len(list(tuned_presets(tuned_of(presets)))) == 12
    assert set(NAMED.values()) <= set(SPEEDS)


def test_the_best_stands_beside_the_control() -> None:
    def row(family: str, ssim: float) -> dict[str, Any]:
        return {"family": family, "steps": 9, "full_steps": 5, "speed": 8.25, "ssim": ssim}

    beside = {"mean": 0.1, "low": 0.05, "high": 0.15}
    control, best = row("few-step", 0.8), row("stages", 0.9)
    speeds = [
        {"speed": 8.0, "best": best, "control": control, "beside_control": beside},
        {"speed": 9.0, "best": control, "control": control, "beside_control": None},
    ]
    document = {"metrics": ["ssim"], "pictures": 32, "prompts": 32, "speeds": speeds}
    lines = tuned_table(document).splitlines()
    assert lines[2] == (
        "| 8x | stages | 5 of 9 | 8.2 | 0.900 | 9 | 0.800 | +0.100 (+0.050 to +0.150) |"
    )
    assert lines[3].endswith("| 0.800 | the control is the best |")
    assert len({line.count("|") for line in lines[:4]}) == 1


# --- the search before ------------------------------------------------------------------------


def test_a_stored_preset_is_read_back() -> None:
    preset = Preset(steps=(3, 4), switch=(0.8,), shift=(2.0, 3.0), restart="same")
    cached = replace(preset, cache=CacheConfig(name="hicache", interval=2, warmup_steps=1))
    finalists = [{"preset": json.loads(json.dumps(asdict(each)))} for each in (cached, preset)]
    # Steps are left out where --cache says so, not by a preset.
    assert found_preset({"budgets": {"fast": {"finalists": finalists}}}, "fast") == preset
    assert [preset_of(each["preset"]) for each in finalists] == [cached, preset]


@pytest.mark.skipif(bool(TUNED), reason="a tune is stored, of which the presets are")
@pytest.mark.parametrize("name", SEARCHES)
def test_the_presets_are_what_the_stored_searches_found(name: str) -> None:
    document = stored(name)
    for budget in BUDGETS:
        assert TINY.presets[budget][document["stages"]] == found_preset(document, budget)


@pytest.mark.skipif(bool(TUNED), reason="a tune is stored, of which the presets are")
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_presets_keep_to_the_budgets_that_name_them(stages: int, budget: str) -> None:
    plan = plan_from_preset(TINY, TINY.presets[budget][stages])
    assert BUDGETS[budget] <= plan_cost(TINY, plan).ratio <= SLACK * BUDGETS[budget]


def test_a_preset_stands_beside_the_best_that_skips_steps() -> None:
    def finalist(cache: str, score: float) -> dict[str, Any]:
        figures = {"flops_ratio": 5.25, "score": score, "ssim": 0.8, "scenes": 48}
        return {"preset": {"cache": {"name": cache}}, **figures}

    finalists = [finalist("hicache", 0.9), finalist("none", 0.7), finalist("none", 0.6)]
    budgets = {"fast": {"finalists": finalists}, "turbo": {"finalists": finalists[1:]}}
    table = presets_table([{"stages": 2, "budgets": budgets}])
    fast, turbo = (
        next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        for name in ("fast", "turbo")
    )
    assert fast == "| fast | 2 | 5.2 | 0.70 | 0.80 | 5.2, 0.90, 0.80 |"
    assert turbo.endswith("| none among the last |")
