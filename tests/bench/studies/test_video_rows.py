"""Rows of the bench of clips, and what they say together."""

from __future__ import annotations

from typing import Any

import pytest

from bench.tables import video_tables
from bench.video.points import COLOURS, OURS, PEERS, ClipPoint, plan_of, points_of
from bench.video.report import comparison, has_cache
from bench.video.rows import row_of
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.presets import Preset

TINY = model_facts("hunyuan-tiny")
POINT = ClipPoint(group="fresco", label="fast, 2 stages", preset=Preset(steps=(2,)))


def scores(seconds: float, **changes: Any) -> dict[str, Any]:
    found = {"right": True, "object": True, "colour": True, "direction": True, "flicker": 0.5}
    costs = {"seconds": seconds, "engine_seconds": seconds / 2, "flops": 10.0}
    return {**found, "ssim": 0.9, **costs, **changes}


def row(point: str, speedup: float, score: float, ssim: float, **changes: Any) -> dict[str, Any]:
    group, _, label = point.partition(", ")
    found: dict[str, Any] = {"point": point, "group": group, "label": label, "steps": [2, 3]}
    values = {"score": score, "object": score, "direction": score, "ssim": ssim, "flicker": 0.0}
    for name, value in {**values, "speedup": speedup}.items():
        found |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    return {**found, "flops_ratio": speedup, "tuned": None, **changes}


# --- points -----------------------------------------------------------------------------------


def test_every_point_has_a_name_of_its_own_and_a_plan_or_a_peer() -> None:
    points = points_of(TINY)
    assert len({point.name for point in points}) == len(points)
    assert {point.group for point in points} == set(COLOURS)
    assert points[0].name == "plain"
    for point in points:
        assert (point.preset is None) == (point.peer is not None)
        if point.preset is not None:
            assert plan_of(TINY, point, TINY.default_size).sparse_attention == point.sparse


def test_options_of_clips_are_measured_beside_what_they_change() -> None:
    points = {point.name: point for point in points_of(TINY)}
    bare = points["fresco, fresco-18, 3 stages"].preset
    tubes = points["fresco, fresco-18, 3 stages, tubes"].preset
    assert bare is not None
    assert tubes is not None
    assert (bare.tube, tubes.tube) == (False, True)
    amplified = points["fresco, turbo, 2 stages, amplifier 0.5"].preset
    assert amplified is not None
    assert amplified.text_amplifier == 0.5
    assert points["sparse, 50 steps, keep 0.5"].steps == (50,)
    published = points["cache, 50 steps, hicache 7"].preset
    assert published is not None
    assert published.cache == TINY.caches["hicache"]


# --- one row ----------------------------------------------------------------------------------


def test_a_speed_up_is_the_median_of_pairs() -> None:
    """A clip that the machine was slow at counts in both, or not at all."""
    plain = [scores(4.0), scores(8.0), scores(4.0)]
    ours = [scores(1.0, flops=2.0), scores(4.0, flops=2.0, direction=False), scores(0.8, flops=1.0)]
    found = row_of(POINT, ours, plain)
    assert (found["speedup"], found["speedup_low"], found["speedup_high"]) == (4.0, 2.0, 5.0)
    assert (found["flops_ratio"], found["host_share"]) == (6.0, 0.5)
    assert (found["score"], found["direction"]) == (1.0, pytest.approx(2 / 3, abs=1e-4))
    assert found["direction_low"] < found["direction"] < found["direction_high"]
    assert (found["flicker"], found["ssim"], found["ssim_high"]) == (0.5, 0.9, 0.9)


def test_what_nobody_counted_is_left_blank() -> None:
    ours = [scores(1.0, flops=None, engine_seconds=None)]
    found = row_of(POINT, ours, [scores(4.0)])
    assert (found["flops_ratio"], found["host_share"]) == (None, None)


# --- together ---------------------------------------------------------------------------------

ROWS = [
    row("plain", 1.0, 0.95, 1.0),
    row("few-step, 12 steps, euler", 4.2, 0.9, 0.8),
    row("few-step, 12 steps, euler, shift 1.5", 4.2, 0.8, 0.9, tuned=1.5),
    row("few-step, 12 steps, euler, shift 5", 4.2, 0.92, 0.7, tuned=5.0),
    row("few-step, 12 steps, euler, shift 8", 4.2, 0.7, 0.6, tuned=8.0),
    row("fresco, fast, 2 stages", 4.5, 0.94, 0.85),
    row("fresco, fast, 2 stages, hicache 2", 6.5, 0.9, 0.8),
    row("pab, 20 steps, skip 2", 3.5, 0.95, 0.99),
    row("taylorseer, 50 steps, interval 5", 4.1, 0.9, 0.95),
]


def test_the_control_is_shown_at_the_shifts_that_were_best_for_it() -> None:
    found = comparison(ROWS)
    best = {each["label"]: each["best"] for each in found["rows"] if "best" in each}
    assert best == {"12 steps, euler, shift 1.5": "ssim", "12 steps, euler, shift 5": "score"}
    assert [each["label"] for each in found["tuning"]] == ["12 steps, euler, shift 8"]


def test_the_comparison_says_what_met_the_targets_and_where_a_peer_is_ahead() -> None:
    found = comparison(ROWS)
    assert found["targets"]["4x"]["met_by"] == ["fresco, fast, 2 stages"]
    cached = found["targets"]["6x with a cache"]
    assert cached["met_by"] == []
    assert cached["so_fast"][0]["score"] == pytest.approx(0.05)
    behind = [(each["speedup"], each["quality"], each["by"][:3]) for each in found["behind"]]
    assert behind == [(3.0, "score", "pab"), (3.0, "ssim", "pab"), (4.0, "ssim", "tay")]
    assert [each["speedup"] for each in found["frontier"]["speedup"]] == [3, 4, 5, 6]


def test_rows_with_a_cache_are_told_from_those_without() -> None:
    """By the label alone, which is all that a stored row has."""
    for point in points_of(TINY):
        if point.group in OURS and point.preset is not None:
            row = {"group": point.group, "label": point.label}
            assert has_cache(row) == (point.preset.cache.name != "none"), point.name
    assert not set(OURS) & set(PEERS)


def test_tables_show_every_row_and_say_what_was_missed() -> None:
    document = {
        **comparison(ROWS),
        "bounds": [],
        "machine": {"cores": 2, "processor": "a processor"},
        "size": [128, 128, 13],
        "command": "python -m bench.video",
        "commit": "abc",
        "clips": 3,
        "model": "hunyuan-tiny",
        "backend": "eager",
        "threads": 1,
    }
    rows, frontier, summary = video_tables(document)
    assert "| few-step, 12 steps, euler, shift 5 (best score) | 2+3 | 4.20 (4.10 to 4.30) |" in rows
    assert "3 clips, model `hunyuan-tiny` at 128x128, 13 frames" in rows
    assert "| 4x | 0.94 (fast, 2 stages) |" in frontier
    assert "Target 4x (4x, within 2 points" in summary
    assert "met by fresco, fast, 2 stages." in summary
    assert "missed; nearest fresco, fast, 2 stages, hicache 2, which loses 5 of score" in summary
    assert "at 4x in ssim taylorseer" in summary
