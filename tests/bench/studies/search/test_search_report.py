"""What searches found as Markdown."""

from __future__ import annotations

from typing import Any

from bench.search.report import cache_schedule_table, presets_table


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_preset_stands_beside_the_best_that_skips_steps() -> None:
    def finalist(cache: str, score: float) -> dict[str, Any]:
        figures = {"flops_ratio": 5.25, "score": score, "ssim": 0.8, "scenes": 48}
        return {"preset": {"cache": {"name": cache}}, **figures}

    finalists = [finalist("hicache", 0.9), finalist("none", 0.7), finalist("none", 0.6)]
    budgets = {"fast": {"finalists": finalists}, "turbo": {"finalists": finalists[1:]}}
    table = presets_table([{"stages": 2, "budgets": budgets}])
    assert cells(table, "fast")[1:] == ["2", "5.2", "0.70", "0.80", "5.2, 0.90, 0.80"]
    assert cells(table, "turbo")[-1] == "none among the last"


def test_skipped_steps_stand_beside_full_ones_alone() -> None:
    def entry(steps: int, ssim: float, **cache: Any) -> dict[str, Any]:
        asked = {"name": "none", "actions": None, "order": None, **cache}
        preset = {"steps": [steps], "shift": [9.03], "solver": "euler", "cache": asked}
        figures = {"flops_ratio": 8.25, "score": 0.8, "ssim": ssim, "scenes": 32}
        return {"preset": preset, **figures}

    skips = [
        entry(6, 0.9, name="taylor", actions=["FFBFBF"], order=1),
        entry(4, 0.8, name="reuse", actions=["FBFB"], order=0),
    ]
    controls = [entry(7, 0.85), entry(6, 0.75)]
    budgets = {"8x": {"budget": 8.0, "finalists": skips, "controls": controls}}
    table = cache_schedule_table({"candidates": 96, "budgets": budgets})
    assert cells(table, "8x")[1:] == [
        "FFBFBF, taylor of order 1, mu 2.2, euler",
        *("8.2", "0.80", "0.900"),
        "7, mu 2.2, euler",
        *("8.2", "0.80", "0.850"),
    ]
    assert "96 random plans" in table
    assert "32 scenes" in table
