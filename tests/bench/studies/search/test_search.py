"""The search of presets: candidates keep to budgets, and the best of an exact contest wins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.search.command import found_preset, preset_of
from bench.search.halving import SLACK, Candidate, Gallery, halve
from bench.search.stages import BUDGETS, candidates
from bench.tables import RESULTS, stored
from fresco_trt.bench.instrument import Case, Draw, Drawn, LeftOut, Scores
from fresco_trt.bench.methods import Point
from fresco_trt.bench.results_log import ResultsLog
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

TINY = model_facts("flux-tiny")
SEARCHES = sorted(path.stem for path in RESULTS.glob("flux-tiny-*stage-presets.json"))


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("budget", BUDGETS)
def test_candidates_keep_to_their_budget(stages: int, budget: str) -> None:
    pool = candidates(TINY, stages, budget, 8)
    assert len({each.preset for each in pool}) == len({each.name for each in pool}) == 8
    for each in pool:
        plan = plan_from_preset(TINY, each.preset)
        assert len(plan.stages) == stages
        assert BUDGETS[budget] <= plan_cost(TINY, plan).ratio <= SLACK * BUDGETS[budget]


def test_the_same_seed_gives_the_same_candidates() -> None:
    assert candidates(TINY, 3, "fast", 5) == candidates(TINY, 3, "fast", 5)
    assert candidates(TINY, 3, "fast", 5) != candidates(TINY, 3, "fast", 5, seed=1)


def numbered(count: int) -> list[Candidate]:
    return [
        Candidate(name=f"fast {n}", preset=Preset(steps=(n + 1, 4), switch=(0.8,)))
        for n in range(count)
    ]


def test_the_best_is_found_and_only_the_better_half_draws_on() -> None:
    asked: dict[int, set[str]] = {}

    def drawn(wanted: Sequence[Candidate], number: int) -> dict[str, dict[str, Any]]:
        asked.setdefault(number, {each.name for each in wanted})
        quality = {each.name: int(each.name.split()[1]) for each in wanted}
        return {name: {"right": n >= 4, "ssim": n / 10} for name, n in quality.items()}

    ranked = halve(numbered(8), drawn, ((8, 2), (4, 3), (2, 5)))
    assert [each.name for each, _ in ranked] == ["fast 7", "fast 6"]
    assert ranked[0][1] == {"value": 1.7, "score": 1.0, "ssim": pytest.approx(0.7), "scenes": 5}
    assert [len(asked[number]) for number in range(5)] == [8, 8, 4, 2, 2]


def test_a_picture_that_is_wrong_loses_to_one_that_is_right() -> None:
    def drawn(wanted: Sequence[Candidate], number: int) -> dict[str, dict[str, Any]]:
        scores = {"fast 0": (True, 0.2), "fast 1": (False, 0.9)}
        return {e.name: dict(zip(("right", "ssim"), scores[e.name], strict=True)) for e in wanted}

    assert halve(numbered(2), drawn, ((2, 1),))[0][0].name == "fast 0"


class Painter:
    """An instrument whose drawings are counted and always right."""

    timed = True

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    @property
    def cases(self) -> Sequence[Case]:
        return [Case(number=n, caption=f"scene {n}", seed=n) for n in range(6)]

    @property
    def warm_up(self) -> Case:
        return self.cases[0]

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        return {point.name: self._method(point.name) for point in points}, []

    def _method(self, name: str) -> Draw:
        def draw(inputs: Mapping[str, Tensor], seed: int) -> Drawn:
            self.drawn.append((name, seed))
            return Drawn(latents=torch.zeros(1), seconds=1.0, engine_seconds=None, flops=1.0)

        return draw

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        return {}

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Scores], dict[str, Any]]:
        assert reference in drawn
        return {name: {"right": True, "ssim": 0.5, "psnr": None} for name in drawn}, {}

    def real_features(self) -> Tensor | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}


def test_every_scene_is_drawn_once_also_after_a_kill(tmp_path: Path) -> None:
    pool, painter = numbered(3), Painter()
    for _ in range(2):
        log = ResultsLog(tmp_path / "search.jsonl", {"request": 1})
        with ExitStack() as scope:
            gallery = Gallery(painter, pool, log, scope)
            scores = [gallery(pool, number) for number in (0, 1, 0)]
    assert scores[0] == {each.name: {"right": True, "ssim": 0.5} for each in pool}
    assert len(painter.drawn) == len(set(painter.drawn)) == 2 * (len(pool) + 1)


def test_a_stored_preset_is_read_back() -> None:
    preset = Preset(steps=(3, 4), switch=(0.8,), shift=(2.0, 3.0), restart="same")
    cached = replace(preset, cache=CacheConfig(name="hicache", interval=2, warmup_steps=1))
    finalists = [{"preset": json.loads(json.dumps(asdict(each)))} for each in (cached, preset)]
    # Steps are left_out where --cache says so, not by a preset.
    assert found_preset({"budgets": {"fast": {"finalists": finalists}}}, "fast") == preset
    assert [preset_of(each["preset"]) for each in finalists] == [cached, preset]


@pytest.mark.parametrize("name", SEARCHES)
def test_the_presets_are_what_the_stored_searches_found(name: str) -> None:
    document = stored(name)
    for budget in BUDGETS:
        assert TINY.presets[budget][document["stages"]] == found_preset(document, budget)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_presets_keep_to_the_budgets_that_name_them(stages: int, budget: str) -> None:
    plan = plan_from_preset(TINY, TINY.presets[budget][stages])
    assert BUDGETS[budget] <= plan_cost(TINY, plan).ratio <= SLACK * BUDGETS[budget]
