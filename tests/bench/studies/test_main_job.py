"""The benchmark's arithmetic: ratios are paired, controls keep their meaning, records are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.main_job import REFERENCE, Tally, equal_time_steps, rows_of
from fresco_trt.bench.plain import Plain, judged_scenes
from fresco_trt.bench.record import circumstances, median_and_range, store
from fresco_trt.bench.scenes.judge import Verdict
from fresco_trt.bench.scenes.scene import is_held_out

RIGHT = Verdict(objects=True, colour=True, pattern=True)
WRONG = Verdict(objects=True, colour=False, pattern=True)


def tally(seconds: list[float], verdicts: list[Verdict], level: float) -> Tally:
    pictures = [torch.full((1, 3, 4, 4), level) for _ in seconds]
    engines = [0.9 * s for s in seconds]
    return Tally(seconds=seconds, engine_seconds=engines, verdicts=verdicts, pictures=pictures)


def test_speed_ups_are_taken_scene_by_scene() -> None:
    # The machine slows down threefold after the first scene; each pair still says five.
    tallies = {
        REFERENCE: tally([10.0, 30.0, 30.0], [RIGHT] * 3, 0.0),
        "ours": tally([2.0, 6.0, 6.0], [RIGHT, WRONG, RIGHT], 0.2),
    }
    reference, ours = rows_of(tallies)
    assert reference["speedup"] == {"median": 1, "low": 1, "high": 1}
    assert ours["speedup"] == {"median": 5, "low": 5, "high": 5}
    assert ours["score"] == pytest.approx(2 / 3)
    assert ours["objects"] == 1
    assert ours["host_share"] == pytest.approx(0.1)


def test_closeness_is_the_signal_to_noise_ratio_of_a_range_of_two() -> None:
    tallies = {REFERENCE: tally([1.0], [RIGHT], 0.0), "ours": tally([1.0], [RIGHT], 0.2)}
    reference, ours = rows_of(tallies)
    assert reference["psnr"] is None
    assert ours["psnr"] == pytest.approx(20.0)  # 10 log10(2^2 / 0.2^2)


@pytest.mark.parametrize(("ours", "steps"), [(0.7, 7), (0.74, 7), (0.01, 1)])
def test_the_equal_time_control_has_the_nearest_number_of_steps(ours: float, steps: int) -> None:
    assert equal_time_steps(0.1, ours) == steps


def test_a_control_says_its_shift() -> None:
    assert Plain(steps=7).name != Plain(steps=7, mu=1.6).name


def test_every_fourth_judged_scene_shows_an_unseen_pair() -> None:
    unseen = [
        any(is_held_out(p.name, s.background.colour) for p in s.placements)
        for s in judged_scenes(40)
    ]
    assert unseen == [i % 4 == 3 for i in range(40)]
    assert judged_scenes(8) == judged_scenes(40)[:8]


def test_a_record_says_where_it_comes_from_and_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "figures.json"
    store({**circumstances(), "rows": [median_and_range([3.0, 1.0, 2.0])]}, path)
    document = json.loads(path.read_text())
    assert document["rows"] == [{"median": 2.0, "low": 1.0, "high": 3.0}]
    assert document["machine"]["torch"] == torch.__version__
    assert str(Path.home()) not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["figures.json"]


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert circumstances()["commit"] is None
