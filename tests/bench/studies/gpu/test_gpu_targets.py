"""Laws of the targets: each has its figure or says that there is none, and is met on its side."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu.targets import CACHED, TURBO, Target, targets_of, targets_table


def median(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def call(engine: str, tokens: int, seconds: float, share: float) -> dict[str, Any]:
    return {
        "engine": engine,
        "tokens": tokens,
        "seconds": median(seconds),
        "share_of_matmul": median(share),
    }


def row(method: str, seconds: float, *calls: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": method,
        "denoise_seconds": median(seconds),
        "speedup_compiled": median(6.7 / seconds),
        "host_share": median(0.004),
        "calls": list(calls),
    }


DOCUMENT: dict[str, Any] = {
    "dry_run": False,
    "precision": "bf16",
    "backend": "inductor",
    "rows": [
        row("diffusers, torch.compile, 50 steps", 6.7, call("transformer", 4096, 0.130, 0.72)),
        row(
            TURBO,
            0.65,
            call("stage1.full", 256, 0.022, 0.6),
            call("stage2.full", 1024, 0.050, 0.55),
            call("stage3.full", 4096, 0.117, 0.8),
        ),
    ],
    "memory_of_weights": {"tensors": 100},
    "memory": [{"tensors": 101}, {"tensors": 102}],
    "compiling": {"seconds": 60.0, "compiled": 13},
}


def test_every_target_has_its_figure_and_its_verdict() -> None:
    found = {each.what: (each.measured, each.verdict) for each in targets_of(DOCUMENT)}
    assert list(found.values()) == [
        (pytest.approx(0.9), "met"),
        (pytest.approx(1 / 0.55), "missed"),
        (pytest.approx(1 / 0.6), "missed"),
        (0.65, "met"),
        (pytest.approx(6.7 / 0.65), "met"),
        (None, "not measured"),
        (pytest.approx(1.02), "met"),
        (pytest.approx(0.4), "met"),
        (60.0, "met"),
    ]
    assert "a step of 1024 tokens, over its floor of 27.5 ms" in found


def test_a_bound_is_met_from_its_own_side() -> None:
    most = Target(what="seconds", bound=1.0, unit="s", measured=2.0)
    least = Target(what="speed-up", bound=1.0, unit="x", measured=2.0, least=True)
    assert (most.met, least.met) == (False, True)


def test_fp8_has_a_target_of_its_own() -> None:
    fp8 = {**DOCUMENT, "precision": "fp8", "rows": [row(CACHED, 0.4)]}
    assert [each.verdict for each in targets_of(fp8)] == ["missed", "met", "met", "met"]


def test_the_table_has_a_line_each_and_none_of_a_dry_run() -> None:
    others = ({**DOCUMENT, "dry_run": True}, {**DOCUMENT, "backend": "eager"})
    assert targets_table(others) == ""
    table = targets_table([DOCUMENT, *others])
    assert len(table.splitlines()) == 2 + 9
    assert "| `turbo` | at most 0.7 s | 0.65 s | met |" in table
    empty = {"dry_run": False, "precision": "bf16", "rows": []}
    assert {each.verdict for each in targets_of(empty)} == {"not measured"}
