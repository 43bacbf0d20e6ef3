"""The studies' tables: what stands below what, and how it is counted without seconds."""

from __future__ import annotations

from typing import Any

from bench.tables import (
    ablation_table,
    caching_table,
    combinations_table,
    composition_table,
    frontier_table,
)
from tests.bench.documents import ALL, cells, document, row


def test_caches_stand_below_what_they_speed_up() -> None:
    table = caching_table(
        document(
            row("plain", psnr=None),
            row("fresco", preset="turbo"),
            row("fresco", preset="fast", variant="hicache, interval 3"),
            row("fresco", preset="fast"),
            row("fresco", preset="fast", variant="2 stages"),
            row("fresco", preset="fast", ablation="noise fresh"),
            row("cache", preset="svd, interval 5"),
            row("cache-dit", preset="50 steps, threshold 0.24"),
            row("few-step", preset="7 steps"),
        )
    )
    names = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    assert names == [
        "| plain",
        "| cache-dit, 50 steps, threshold 0.24",
        "| cache, svd, interval 5",
        "| fresco, fast",
        "| fresco, fast, hicache, interval 3",
    ]


def test_a_combination_without_seconds_is_counted_in_flops_and_says_so() -> None:
    both = {"preset": "fast", "variant": "no cache"}
    table = combinations_table(
        document(
            row("plain", psnr=None),
            row("fresco", **both, precision="fp32", twin_ssim=None),
            row("fresco", **both, precision="fp8", twin_ssim=0.97, speedup=None),
            row("fresco", **both, precision="fp32", twin_ssim=None, model="flux-tiny-turbo"),
        )
    )
    first, second = (line for line in table.splitlines() if line.startswith("| flux-tiny |"))
    assert "| flux-tiny-turbo | fast | no cache | fp32 |" in table
    assert "| 2.00 (1.50 to 2.50) | 3.00 |" in first
    assert "| fp8 | 3.00 by FLOPs | 3.00 |" in second
    assert second.endswith("| 0.970 |")
    assert "| plain" not in table


def test_a_combinations_caches_stand_side_by_side() -> None:
    fast = {"preset": "fast", "score": 0.75, "ssim": 0.6}
    rows = [
        row("plain", psnr=None),
        row("fresco", **fast, variant="no cache", precision="fp32", twin_ssim=None),
        row("fresco", **fast, variant="svd, interval 3", precision="fp32", twin_ssim=None),
        row("fresco", **fast, variant="no cache", precision="fp8", twin_ssim=0.97, speedup=None),
    ]
    lines = composition_table(document(*rows)).splitlines()
    assert lines[0] == "| model | steps | precision | no cache | svd |"
    assert lines[2:] == [
        "| flux-tiny | fast | fp32 | 2.0x, 0.75, 0.60 | 2.0x, 0.75, 0.60 |",
        "| flux-tiny | fast | fp8 | (3.0x), 0.75, 0.60, 0.970 |  |",
    ]


def test_an_ablation_stands_below_its_own_base() -> None:
    table = ablation_table(ALL)
    assert "fast" not in table
    assert cells(table, "fresco, balanced")[2] == "2.00 (1.50 to 2.50)"
    assert cells(table, "noise fresh")[2] == ""
    assert all(line.count("|") == table.splitlines()[0].count("|") for line in table.splitlines())


def test_the_frontier_names_the_best_of_each_kind_at_each_speed() -> None:
    def best(value: float, point: str) -> dict[str, Any]:
        return {"value": value, "point": point}

    entry = {
        "speedup": 5.0,
        "fresco": {"score": best(0.7, "fresco, fast"), "ssim": best(0.61234, "fresco, fast")},
        "peer": {"score": None, "ssim": best(0.5, "ralu, 4x")},
        "few-step": {"score": best(0.6, "few-step, 7 steps"), "ssim": None},
    }
    table = frontier_table({"frontier": {"speedup": [entry], "flops_ratio": []}})
    assert cells(table, "5x") == [
        "5x",
        "0.70 (fast)",
        "none so fast",
        "0.60 (7 steps)",
        "0.612 (fast)",
        "0.500 (ralu, 4x)",
        "none so fast",
    ]
    untimed = {"flops_ratio": [{**entry, "flops_ratio": 3.0}]}
    assert "FLOPs saved" in frontier_table({"frontier": untimed})
