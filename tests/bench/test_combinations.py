"""Every combination of stages, caches and precisions: complete, named apart, really quantised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fresco_trt import cli
from fresco_trt.bench import job, memory, studio
from fresco_trt.bench.combinations import QUANTS, combined_points
from fresco_trt.bench.points import chosen
from fresco_trt.bench.table import combinations_table
from fresco_trt.models.zoo import model_facts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

TINY = model_facts("flux-tiny")
POINTS = combined_points(TINY)


def test_every_base_has_every_precision_and_a_name_of_its_own() -> None:
    assert len({point.name for point in POINTS}) == len(POINTS)
    ours = {(point.preset, point.variant, point.quant) for point in POINTS[1:]}
    bare = {(preset, variant) for preset, variant, quant in ours if quant is None}
    assert ours == {(*base, quant) for base in bare for quant in QUANTS}
    assert {preset for preset, _ in bare} == {"50 steps", *TINY.presets}
    assert {(preset, "no cache") for preset, _ in bare} <= bare


def test_a_twin_is_the_same_plan_unquantised() -> None:
    named = {point.name: point for point in POINTS}
    for point in POINTS:
        assert (point.twin is None) == (point.quant is None)
        if point.twin is not None:
            twin = named[point.twin]
            assert (twin.recipe, twin.quant) == (point.recipe, None)


def test_what_is_called_cached_skips_steps_and_nothing_else_does() -> None:
    for point in POINTS:
        if not isinstance(point.recipe, Preset):
            continue
        plan = plan_from_preset(TINY, point.recipe)
        skips = any("bypass" in stage.actions for stage in plan.stages)
        assert skips == (point.variant != "no cache")


def test_the_short_version_has_a_twin_for_each_that_is_quantised() -> None:
    quick = chosen(POINTS, None, quick=True)
    names = {point.name for point in quick}
    assert 2 < len(quick) < len(POINTS) / 4
    assert all(point.twin in names for point in quick if point.twin is not None)
    assert any(point.twin is not None for point in quick)


def test_quantised_engines_are_measured_apart() -> None:
    kinds = {
        point.quant: memory.kind_of(point, TINY, TINY.default_size)
        for point in POINTS
        if (point.preset, point.variant) == ("balanced", "no cache")
    }
    assert len(set(kinds.values())) == len(QUANTS)


@pytest.mark.slow
def test_a_run_quantises_what_it_says_and_compares_it_with_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(job, "peak_mb", lambda setting, point: 123.0)
    monkeypatch.setattr(studio, "RANGES_PROMPTS", 2)
    request = ["bench", "--model", "flux-tiny", "--size", "64x64", "--quick", "--scenes", "1"]
    request += ["--compare", "combinations", "--out", str(tmp_path), "--json"]
    assert cli.main(request) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["compare"] == "combinations"
    # The plot needs the bench extra; every point has a row.
    assert {each["what"] for each in document["skipped"]} <= {
        "flux-tiny-combinations-quick-pareto.png"
    }
    codes = [row for row in document["rows"] if row["precision"] == "int8"]
    assert codes
    for row in codes:
        assert 0.5 < row["twin_ssim"] < 1.0  # rounded, and still that picture
        assert row["speedup"] > 0
    assert all(row["twin_ssim"] is None for row in document["rows"] if row not in codes)
    table = (tmp_path / "flux-tiny-combinations-quick.md").read_text()
    assert table == f"{combinations_table(document)}\n"
    assert "| balanced | no cache | int8 |" in table


@pytest.mark.slow
def test_a_precision_that_the_backend_lacks_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(job, "peak_mb", lambda setting, point: 123.0)
    request = ["bench", "--model", "flux-tiny", "--size", "64x64", "--quick", "--scenes", "1"]
    request += ["--compare", "combinations", "--backend", "eager", "--out", str(tmp_path), "--json"]
    assert cli.main(request) == 0
    document = json.loads(capsys.readouterr().out)
    quick = chosen(POINTS, None, quick=True)
    left = {row["point"] for row in document["rows"]}
    assert left == {point.name for point in quick if point.quant is None}
    reasons = {each["what"]: each["reason"] for each in document["skipped"]}
    for point in quick:
        if point.quant is not None:
            assert "--precision int8 with the backend eager" in reasons[point.name]
