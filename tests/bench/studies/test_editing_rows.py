"""Rows of the bench of editing, and what they say together."""

from __future__ import annotations

from typing import Any

import pytest

from bench.editing.points import EditPoint
from bench.editing.report import beats, comparison
from bench.editing.rows import row_of
from bench.editing.tables import summary
from fresco_trt.bench.scenes.edits import KINDS
from fresco_trt.plan.presets import Preset

POINT = EditPoint(group="fresco", label="one", preset=Preset(steps=(2,)))


def scores(made: bool, seconds: float, **changes: Any) -> dict[str, Any]:
    found = {"made": made, "outside": 30.0, "seconds": seconds, "engine_seconds": seconds / 2}
    return {**found, "flops": 10.0, "stage": 1, "iou": None, **changes}


def row(
    group: str, speedup: float, score: float, outside: float, label: str = ""
) -> dict[str, Any]:
    name = f"{group}{label}"
    values = {"speedup": speedup, "score": score, "outside": outside}
    return {"name": name, "group": group, "label": label, **values}


# --- one row ----------------------------------------------------------------------------------


def test_a_row_counts_each_kind_by_itself() -> None:
    kinds = list(KINDS) * 2
    each = [scores(kind == "add", 1.0) for kind in kinds]
    found = row_of(POINT, kinds, each, each)
    assert found["kinds"] == {kind: float(kind == "add") for kind in KINDS}
    assert found["score"] == pytest.approx(1 / 7, abs=1e-4)
    assert found["score_low"] < found["score"] < found["score_high"]


def test_a_speed_up_is_that_of_all_edits_together() -> None:
    """Not the mean of their ratios: an edit that takes long counts for as long as it takes."""
    plain = [scores(True, 4.0), scores(True, 4.0)]
    ours = [scores(True, 1.0, flops=1.0), scores(False, 3.0, flops=4.0)]
    found = row_of(POINT, ["add", "paint"], ours, plain)
    assert (found["speedup"], found["flops_ratio"]) == (2.0, 4.0)
    assert found["speedup_kinds"] == {"add": 4.0, "paint": pytest.approx(4 / 3, abs=1e-3)}
    assert (found["speedup_low"], found["speedup_high"]) == (pytest.approx(4 / 3, abs=1e-3), 4.0)
    assert (found["gained"], found["lost"]) == (0, 1)
    assert found["host_share"] == 0.5


def test_what_nobody_counted_is_left_blank() -> None:
    plain = [scores(True, 4.0)]
    peer = [scores(True, 1.0, flops=None, engine_seconds=None, iou=0.5)]
    found = row_of(EditPoint(group="spotedit", label="one"), ["add"], peer, plain)
    assert (found["flops_ratio"], found["host_share"], found["steps"]) == (None, None, [])
    assert (found["iou"], found["stages"]) == (0.5, None)


# --- together ---------------------------------------------------------------------------------


def test_a_row_that_is_behind_anywhere_beats_nothing() -> None:
    one = row("fresco", 5.0, 0.9, 30.0)
    assert not beats(one, one)
    assert beats(row("few-step", 5.0, 0.9, 30.1), one)
    assert not beats(row("few-step", 9.0, 0.9, 29.9), one)


def test_the_comparison_says_who_is_ahead_and_by_how_much() -> None:
    plain = row("plain", 1.0, 0.9, 25.0)
    rows = [
        plain,
        row("few-step", 6.0, 0.9, 26.0),
        row("spotedit", 2.0, 0.95, 28.0),
        row("fresco", 5.5, 0.88, 25.5),
        row("specedit", 7.5, 0.9, 31.0, ", hicache 2"),
    ]
    found = comparison(rows)
    few, spot = found["others"]
    assert [gap["name"] for gap in few["beaten_by"]] == ["specedit, hicache 2"]
    assert few["beaten_by"][0] | {"name": ""} == {
        "name": "",
        "speedup": 1.25,
        "score": 0.0,
        "outside": 5.0,
    }
    assert (spot["peer"], spot["beaten_by"]) == (True, [])
    assert spot["outside"] == {"name": "specedit, hicache 2", "value": 31.0}
    (behind,) = found["behind"]
    assert (behind["name"], [gap["name"] for gap in behind["by"]]) == ("fresco", ["few-step"])
    assert found["targets"]["5x"]["met_by"] == ["fresco", "specedit, hicache 2"]
    assert found["targets"]["7x with a cache"]["met_by"] == ["specedit, hicache 2"]


def test_the_summary_says_where_the_control_wins_and_what_was_missed() -> None:
    rows = [
        row("plain", 1.0, 0.9, 25.0),
        row("few-step", 6.0, 0.9, 26.0),
        row("fresco", 5.5, 0.85, 25.5),
    ]
    text = summary({"comparison": comparison(rows)})
    assert (
        "- Target 5x (5x, edits within 2 points of the plain edit, better outside): missed" in text
    )
    assert "fresco (5.50x its speed, -5 points, +0.5 dB)" in text
    assert "Target 7x with a cache" in text
    assert "nothing of ours is so fast" in text
    assert "| few-step | none so fast | none so fast | none of ours |" in text
    assert "- fresco is beaten by few-step (1.09x its speed, +5 points, +0.5 dB)." in text


def test_the_summary_names_the_fastest_of_those_ahead_and_counts_the_rest() -> None:
    rows = [
        row("plain", 1.0, 0.9, 25.0),
        row("few-step", 6.0, 0.9, 26.0, ", 4 steps"),
        row("few-step", 7.0, 0.9, 26.0, ", 3 steps"),
        row("fresco", 5.0, 0.9, 25.5),
    ]
    text = summary({"comparison": comparison(rows)})
    assert "- fresco is beaten by few-step, 3 steps (1.40x its speed" in text
    assert "+0.5 dB) and 1 more." in text
