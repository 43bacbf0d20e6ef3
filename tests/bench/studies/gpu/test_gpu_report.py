"""Laws of a GPU run's rows and tables: ratios are paired, shares are of the same round's rate."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu.methods import COMPILED, EAGER, Point, name_of_plain, points_of
from bench.gpu.report import DRY_RUN, gpu_table, rows_of, step_table, summary
from fresco_trt.models.flux.facts import FLUX_DEV
from fresco_trt.plan.cost import flops_of_bypass, flops_of_step, plan_cost

SIZE, TOKENS = (1024, 1024), 4096
POINTS = {point.name: point for point in points_of(FLUX_DEV, SIZE)}
LONG = name_of_plain(EAGER, 50), name_of_plain(COMPILED, 50)
OURS = "fresco balanced, 3 stages, hicache"
STEP = flops_of_step(FLUX_DEV, TOKENS)
PEAKS = {
    EAGER: {"tensors": 24.5e9, "host": 3e9},
    OURS: {"tensors": 24.9e9, "host": None},
}


def of(name: str, seconds: float, engine: float) -> dict[str, Any]:
    """A measurement whose every call of an engine took ``engine`` seconds."""
    point = POINTS[name]
    names = ["transformer"] * point.steps
    if point.plan is not None:
        names = [
            f"stage{index + 1}.{action}"
            for index, stage in enumerate(point.plan.stages)
            for action in stage.actions
        ]
    inside: dict[str, list[float]] = {}
    for each in names:
        inside.setdefault(each, []).append(engine)
    return {
        "seconds": seconds,
        "engine_seconds": engine * len(names),
        "inside": inside,
        "by_stages": False,
        "finite": True,
    }


def rows(rounds: list[dict[str, Any]], points: list[Point] | None = None) -> dict[str, Any]:
    found = rows_of(
        points or list(POINTS.values()), rounds, FLUX_DEV, TOKENS, baseline_steps=50, peaks=PEAKS
    )
    return {row["method"]: row for row in found}


def one_round(slow: float, **more: dict[str, Any]) -> dict[str, Any]:
    """A round in which everything, the matrix products too, takes ``slow`` times as long."""
    methods = {
        LONG[0]: of(LONG[0], 10.0 * slow, 0.19 * slow),
        LONG[1]: of(LONG[1], 8.0 * slow, 0.15 * slow),
        OURS: of(OURS, 2.0 * slow, 0.05 * slow),
    }
    return {"round": 0, "matmul": {"a": 500e12 / slow, "b": 800e12 / slow}, "methods": methods}


def test_speed_ups_are_paired_within_a_round() -> None:
    found = rows([one_round(1.0), one_round(3.0), one_round(0.5)])[OURS]
    assert found["speedup"] == {"median": 5.0, "low": 5.0, "high": 5.0, "count": 3}
    assert found["speedup_compiled"]["low"] == found["speedup_compiled"]["high"] == 4.0
    assert found["denoise_seconds"] == {"median": 2.0, "low": 1.0, "high": 6.0, "count": 3}
    assert found["rounds"] == 3


def test_a_speed_up_over_what_was_not_measured_is_left_out() -> None:
    only = one_round(1.0)
    del only["methods"][LONG[1]]
    found = rows([only])
    assert found[OURS]["speedup_compiled"] is None
    assert found[OURS]["speedup"]["median"] == 5.0
    assert LONG[1] not in found


def test_the_share_of_the_roofline_is_of_the_fastest_product_of_the_same_round() -> None:
    found = rows([one_round(1.0), one_round(4.0)])[LONG[0]]
    (call,) = found["calls"]
    share = STEP / 0.19 / 800e12
    assert call["share_of_matmul"]["low"] == pytest.approx(share, rel=1e-5)
    assert call["share_of_matmul"]["high"] == pytest.approx(share, rel=1e-5)
    assert call["flops"] == STEP


def test_host_seconds_are_the_wall_less_the_calls() -> None:
    found = rows([one_round(1.0)])[LONG[0]]
    assert found["host_seconds"]["median"] == pytest.approx(10.0 - 50 * 0.19)
    assert found["host_share"]["median"] == pytest.approx(1 - 50 * 0.19 / 10.0)


def test_every_engine_has_its_own_tokens_and_price() -> None:
    calls = {each["engine"]: each for each in rows([one_round(1.0)])[OURS]["calls"]}
    assert [calls[f"stage{n}.full"]["tokens"] for n in (1, 2, 3)] == [256, 1024, 4096]
    assert calls["stage2.full"]["flops"] == flops_of_step(FLUX_DEV, 1024)
    assert calls["stage2.bypass"]["flops"] == flops_of_bypass(FLUX_DEV, 1024)


def test_the_prices_of_the_calls_add_up_to_the_plans() -> None:
    row, plan = rows([one_round(1.0)])[OURS], POINTS[OURS].plan
    assert plan is not None
    inside = of(OURS, 1.0, 1.0)["inside"]
    total = sum(each["flops"] * len(inside[each["engine"]]) for each in row["calls"])
    assert total == pytest.approx(plan_cost(FLUX_DEV, plan).flops)
    assert row["flops"] == pytest.approx(total)


def test_a_summary_is_a_median_within_its_interval() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "count": 3}


# --- tables -----------------------------------------------------------------------------------


def document(**changes: Any) -> dict[str, Any]:
    found = rows([one_round(1.0), one_round(1.0)])
    return {
        "dry_run": False,
        "complete": True,
        "command": "python -m bench.gpu",
        "commit": "abc",
        "device": {"name": "A card"},
        "machine": {"torch": "2.13.0"},
        "model": "flux",
        "layers": [19, 38],
        "size": [1024, 1024],
        "precision": "bf16",
        "backend": "inductor",
        "rows": list(found.values()),
        "dropped": [],
        "failed": [],
        "build": [
            {"tokens": 4096, "seconds": 30.0},
            {"tokens": 4096, "seconds": 1.4},
            {"tokens": 1024, "seconds": None},
            {"tokens": 256, "seconds": 12.4},
        ],
        "memory": [{"stages": 1, "all": 25e9}, {"stages": 2, "all": 25.5e9}],
        "disk": [{"weights": 23.8e9, "code": 1e6}, {"weights": 23.8e9, "code": 4e6}],
        **changes,
    }


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_row_for_every_method_and_says_where_from() -> None:
    table = gpu_table(document())
    assert cells(table, OURS)[1:4] == [
        "2.000 (2.000 to 2.000)",
        "5.00 (5.00 to 5.00)",
        "4.00 (4.00 to 4.00)",
    ]
    assert cells(table, LONG[0])[4] == "1.00"
    assert cells(table, OURS)[6] == "50.0 ms"
    assert cells(table, OURS)[8:] == ["24.90", ""]
    assert cells(table, LONG[0])[8:] == ["24.50", "3.00"]
    assert cells(table, LONG[1])[8:] == ["", ""]
    assert "at abc: A card" in table
    assert "Engines built: 31 s of 4096 tokens, 12 s of 256 tokens." in table
    assert "25.00 GB with 1, 25.50 GB with 2" in table
    assert "23.80 GB of weights and 4.0 MB of code" in table
    head, *body = [line for line in table.splitlines() if line.startswith("|")]
    assert all(line.count("|") == head.count("|") for line in body)
    assert DRY_RUN not in table


def test_a_dry_run_is_never_taken_for_a_result() -> None:
    dry = document(dry_run=True)
    assert gpu_table(dry).startswith(f"**{DRY_RUN}**")
    assert step_table(dry).startswith(f"**{DRY_RUN}**")


def test_what_is_missing_is_said_in_the_table() -> None:
    table = gpu_table(
        document(
            complete=False,
            dropped=[{"what": "fp8", "reason": "none"}],
            failed=[{"what": "engine 256", "reason": "none"}],
        )
    )
    assert "The run did not end. Not measured: fp8. Failed: engine 256." in table


def test_steps_of_every_stage_stand_beside_the_plain_ones() -> None:
    table = step_table(document())
    assert cells(table, EAGER)[1:3] == ["4096", "190.00 (190.00 to 190.00)"]
    assert cells(table, COMPILED)[1] == "4096"
    tokens = [line.split("|")[2].strip() for line in table.splitlines() if "engine of" in line]
    assert tokens == ["256", "1024", "4096"]
