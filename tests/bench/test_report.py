"""Rows from scores: pairs, intervals, the tuned control, and who is best how fast."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from fresco_trt.bench.evaluator import decode, encode
from fresco_trt.bench.instrument import Scores
from fresco_trt.bench.methods import Point
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.points import engine_steps
from fresco_trt.bench.report import document_of, frontier, rows_of, tuned
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import Solver

CONTRACT = {
    *("method", "preset", "ablation", "variant", "nfe", "flops_ratio", "peak_mb", "ssim", "psnr"),
    *("speedup", "speedup_low", "speedup_high", "score", "score_low", "score_high", "distance"),
    "images_per_second",
}

PLAIN = Point(method="plain", settings=Plain(steps=50))
OURS = Point(method="fresco", settings=Preset(steps=(2, 3), switch=(0.7,)), preset="fast")


def scores(seconds: float, **changes: Any) -> Scores:
    features = encode(torch.randn(4))
    return {
        "seconds": seconds,
        "engine_seconds": 0.9 * seconds,
        "flops": 100.0 * seconds,
        "right": True,
        "psnr": 20.0,
        "ssim": 0.9,
        "features": features,
        **changes,
    }


def rows(scenes: list[dict[str, Scores]], *points: Point, timed: bool = True) -> list[Any]:
    real = torch.randn(50, 4)
    peaks = {points[-1].name: 321.0}
    return rows_of(points, scenes, real, peaks, model="flux-tiny", timed=timed, shared_seconds=0.5)


def test_a_row_has_the_keys_that_readers_rely_on() -> None:
    scenes = [{"plain": scores(5.0), OURS.name: scores(1.0)} for _ in range(3)]
    found = rows(scenes, PLAIN, OURS)
    assert all(row.keys() >= CONTRACT for row in found)
    json.dumps(found, allow_nan=False)


def test_speed_ups_are_paired_scene_by_scene() -> None:
    # The machine slows down threefold after the first scene; each pair still says five.
    scenes = [{"plain": scores(t), OURS.name: scores(t / 5)} for t in (10.0, 30.0, 30.0)]
    plain, ours = rows(scenes, PLAIN, OURS)
    assert (plain["speedup"], plain["speedup_low"], plain["speedup_high"]) == (1, 1, 1)
    assert (ours["speedup"], ours["speedup_low"], ours["speedup_high"]) == (5, 5, 5)
    assert ours["flops_ratio"] == 5
    assert ours["host_share"] == pytest.approx(0.1)
    assert ours["images_per_second"] == pytest.approx(1 / (6.0 + 0.5), rel=1e-4)
    assert (plain["peak_mb"], ours["peak_mb"]) == (None, 321.0)
    assert ours["nfe"] == 5


def test_a_precision_that_is_only_simulated_has_no_seconds() -> None:
    codes = replace(OURS, quant="fp8")
    scenes = [
        {"plain": scores(5.0), OURS.name: scores(1.0), codes.name: scores(1.0, twin_ssim=t)}
        for t in (0.9, 0.98)
    ]
    real = torch.randn(50, 4)
    points = (PLAIN, OURS, codes)
    found = rows_of(
        points,
        scenes,
        real,
        {},
        model="flux-tiny",
        timed=True,
        shared_seconds=0.5,
        simulated=("fp8",),
    )
    assert [row["precision"] for row in found] == ["fp32", "fp32", "fp8"]
    assert (found[1]["speedup"], found[2]["speedup"], found[2]["flops_ratio"]) == (5, None, 5)
    assert [row["twin_ssim"] for row in found] == [None, None, pytest.approx(0.94)]
    del scenes[0][codes.name]["twin_ssim"], scenes[1][codes.name]["twin_ssim"]  # no twin was drawn
    run_there = rows_of(points, scenes, real, {}, model="flux-tiny", timed=True, shared_seconds=0.5)
    assert run_there[2]["speedup"] == 5
    assert run_there[2]["twin_ssim"] is None


def test_scores_are_fractions_with_their_interval() -> None:
    scenes = [{"plain": scores(1.0), OURS.name: scores(1.0, right=n < 48)} for n in range(64)]
    row = rows(scenes, PLAIN, OURS)[1]
    assert row["score"] == 0.75
    assert row["score_low"] == pytest.approx(0.632, abs=1e-3)  # Wilson's, 48 of 64
    assert row["score_high"] == pytest.approx(0.840, abs=1e-3)


def test_the_reference_has_no_closeness_to_itself() -> None:
    scenes = [{"plain": scores(1.0, psnr=None, ssim=1.0)} for _ in range(2)]
    row = rows(scenes, PLAIN)[0]
    assert row["psnr"] is None
    assert row["psnr_low"] is None
    assert row["ssim"] == 1


def test_an_instrument_without_a_clock_gives_no_times() -> None:
    scenes = [{"plain": scores(5.0), OURS.name: scores(1.0)} for _ in range(2)]
    row = rows(scenes, PLAIN, OURS, timed=False)[1]
    times = ("speedup", "speedup_low", "speedup_high", "images_per_second", "host_share")
    assert [row[key] for key in times] == [None] * 5
    assert row["flops_ratio"] == 5


def test_without_a_classifier_there_is_closeness_alone() -> None:
    scenes = [{"plain": scores(1.0, right=None, features=None)} for _ in range(2)]
    row = rows_of([PLAIN], scenes, None, {}, model="flux-tiny", timed=True, shared_seconds=0.0)[0]
    assert row["score"] is None
    assert row["distance"] is None
    assert row["ssim"] == 0.9


def test_features_survive_the_log() -> None:
    features = torch.randn(224) * 5
    torch.testing.assert_close(decode(encode(features)), features, rtol=1e-3, atol=1e-3)


# --- the tuned control ------------------------------------------------------------------------


def few(steps: int, mu: float | None, **qualities: float) -> tuple[Point, dict[str, Any]]:
    variant = "diffusers, default shift" if mu is None else f"diffusers, mu {mu:g}"
    point = Point(
        method="few-step",
        settings=Plain(steps=steps, mu=mu),
        preset=f"{steps} steps",
        variant=variant,
    )
    return point, row("few-step", 50 / steps, variant=variant, point=point.name, **qualities)


def row(method: str, speed: float, **changes: Any) -> dict[str, Any]:
    common = {"method": method, "model": "m", "preset": None, "ablation": None, "variant": None}
    speeds = {"speedup": speed, "flops_ratio": speed}
    return common | speeds | {"score": 0.5, "ssim": 0.5, "point": method} | changes


def test_the_best_shifts_are_shown_beside_the_default_one() -> None:
    table = [
        few(5, None, score=0.5, ssim=0.5),
        few(5, 0.4, score=0.6, ssim=0.6),
        few(5, 0.8, score=0.8, ssim=0.7),
        few(5, 1.6, score=0.7, ssim=0.9),
        few(9, 0.8, score=0.9, ssim=0.95),
    ]
    points, found = [p for p, _ in table], [r for _, r in table]
    shown, tried = tuned(points, found)
    assert [each["variant"] for each in shown] == [
        "diffusers, default shift",
        "diffusers, tuned (mu 0.8, best score)",
        "diffusers, tuned (mu 1.6, best ssim)",
        "diffusers, tuned (mu 0.8, best score and ssim)",
    ]
    assert [each["variant"] for each in tried] == ["diffusers, mu 0.4"]


def test_the_control_is_tuned_over_solvers_as_over_shifts() -> None:
    ways: list[tuple[float | None, Solver, float]] = [
        (None, "euler", 0.7),
        (None, "dpmpp_2m", 0.75),
        (1.6, "euler", 0.8),
        (1.6, "dpmpp_2m", 0.9),
    ]
    points = [engine_steps(7, mu, solver) for mu, solver, _ in ways]
    found = [
        row("few-step", 7.0, preset=point.preset, variant=point.variant, ssim=ssim)
        for point, (_, _, ssim) in zip(points, ways, strict=True)
    ]
    shown, tried = tuned(points, found)
    assert [each["variant"] for each in shown] == [
        "engine, default shift",
        "engine, tuned (mu 1.6, dpmpp_2m, best score and ssim)",
    ]
    assert [each["variant"] for each in tried] == [
        "engine, default shift, dpmpp_2m",
        "engine, mu 1.6",
    ]


def test_every_row_is_either_shown_or_kept_as_tried() -> None:
    table = [few(5, mu, score=0.5, ssim=0.5) for mu in (None, 0.4, 0.8)]
    points = [PLAIN, *(p for p, _ in table)]
    found = [row("plain", 1.0), *(r for _, r in table)]
    document = document_of(points, found, [], timed=True)
    assert len(document["rows"]) + len(document["tuning"]) == len(found)
    assert document["rows"][0]["method"] == "plain"
    assert set(document_of(points, found, [], timed=False)["frontier"]) == {"flops_ratio"}


def test_a_row_says_what_drew_it() -> None:
    sibling = replace(OURS, model="flux-tiny-turbo")
    scenes = [{name: scores(1.0) for name in ("plain", OURS.name, sibling.name)}]
    found = rows(scenes, PLAIN, OURS, sibling)
    assert [row["model"] for row in found] == ["flux-tiny", "flux-tiny", "flux-tiny-turbo"]


# --- the frontier -----------------------------------------------------------------------------


def test_a_sibling_is_not_at_the_models_own_frontier() -> None:
    table = [row("plain", 1.0), row("fresco", 5.0), row("fresco", 9.0, model="turbo", point="t")]
    points = [PLAIN, OURS, replace(OURS, model="turbo")]
    best = document_of(points, table, [], timed=True)["frontier"]["speedup"]
    assert best[0]["fresco"]["score"]["point"] == "fresco"
    assert all(entry["fresco"]["score"] is None for entry in best if entry["speedup"] > 5)


def test_the_best_at_a_speed_may_be_faster_but_not_slower() -> None:
    table = [
        row("fresco", 5.0, score=0.9, point="slow"),
        row("fresco", 9.0, score=0.7, point="fast"),
        row("fresco", 9.5, score=1.0, ablation="noise fresh"),
        row("ralu", 4.0, score=0.8),
    ]
    best = {entry["speedup"]: entry for entry in frontier(table, "speedup")}
    assert best[5.0]["fresco"]["score"] == {"value": 0.9, "point": "slow"}
    assert best[6.0]["fresco"]["score"] == {"value": 0.7, "point": "fast"}
    assert best[10.0]["fresco"]["score"] is None
    assert best[4.0]["peer"]["score"] == {"value": 0.8, "point": "ralu"}
    assert best[5.0]["peer"]["score"] is None
    assert best[3.0]["few-step"]["score"] is None
