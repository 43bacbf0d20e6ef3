"""Every combination of models, stages, caches and precisions: complete, named apart, really drawn.

"Really": quantised engines are quantised, and a distilled model's are its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import combinations
from bench.combinations import QUANTS, combined_points, study_of
from bench.tables import combinations_table
from fresco_trt.backends import backend
from fresco_trt.bench import job, memory, model_runner
from fresco_trt.bench.methods import Point
from fresco_trt.bench.plain import is_judged
from fresco_trt.bench.points import chosen, table_named
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.bench.files import check_files
from tests.bench.shallow import shallow_models

pytestmark = pytest.mark.usefixtures("traced_once")

TINY = model_facts("flux-tiny")
TURBO = model_facts("flux-tiny-turbo")
POINTS = combined_points(TINY, [TURBO])


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings are put together in a folder of the tests' own."""
    monkeypatch.setenv("FRESCO_TRT_CACHE", str(tmp_path_factory.getbasetemp() / "kept"))


def facts_of(point: Point) -> ModelFacts:
    """Of what draws a point."""
    return TINY if point.model is None else model_facts(point.model)


def test_every_base_has_every_precision_and_a_name_of_its_own() -> None:
    assert len({point.name for point in POINTS}) == len(POINTS)
    ours = {(point.model, point.preset, point.variant, point.quant) for point in POINTS[1:]}
    bare = {base for *base, quant in map(list, ours) for base in [tuple(base)] if quant is None}
    assert ours == {(*base, quant) for base in bare for quant in QUANTS}
    plain = {preset for model, preset, _ in bare if model is None}
    distilled = {preset for model, preset, _ in bare if model == TURBO.name}
    assert plain == {"50 steps", "4 steps", *TINY.presets}
    assert distilled == {"4 steps", *TURBO.presets}
    assert {(model, preset, "no cache") for model, preset, _ in bare} <= bare


def test_without_siblings_there_is_the_model_alone() -> None:
    alone = combined_points(TINY)
    assert {point.model for point in alone} == {None}
    assert set(alone) == {p for p in POINTS if p.model is None and p.preset != "4 steps"}


def test_a_distilled_models_every_preset_has_a_point_with_a_cache_or_none_would_skip() -> None:
    for name, schedules in TURBO.presets.items():
        cached = {p.variant for p in POINTS if (p.model, p.preset) == (TURBO.name, name)}
        assert (len(cached) == 1) == (max(schedules[3].steps) == 1)


def test_a_twin_is_the_same_plan_unquantised() -> None:
    named = {point.name: point for point in POINTS}
    for point in POINTS:
        assert (point.twin is None) == (point.quant is None)
        if point.twin is not None:
            twin = named[point.twin]
            assert (twin.settings, twin.quant) == (point.settings, None)


def test_what_is_called_cached_skips_steps_and_nothing_else_does() -> None:
    for point in POINTS:
        if not isinstance(point.settings, Preset):
            continue
        plan = plan_from_preset(facts_of(point), point.settings)
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
        if (point.model, point.preset, point.variant) == (None, "balanced", "no cache")
    }
    assert len(set(kinds.values())) == len(QUANTS)


def test_a_sibling_is_measured_on_its_own_weights(tmp_path: Path) -> None:
    folder = bundled_folder(TINY.name)
    setup = model_runner.Setup(
        facts=TINY,
        size=(64, 64),
        pipeline=folder,
        backend=backend("eager"),
        engines=tmp_path,
        scenes=1,
    )
    assert setup.of(None) is setup
    sibling = setup.of(TURBO.name)
    assert (sibling.facts, sibling.size, sibling.scenes) == (TURBO, (64, 64), 1)
    assert sibling.engines == tmp_path / TURBO.name
    own = load_transformer(None, TURBO)
    assert weights_digest(load_transformer(sibling.pipeline, TURBO)) == weights_digest(own)


def test_a_student_is_benched_alone_from_its_package_or_its_folder() -> None:
    student = bundled_folder(TURBO.name)
    found = job.pipeline_folder(None, TURBO.name)
    assert found == job.pipeline_folder(str(student), TURBO.name) != student
    assert is_judged(TURBO.name)  # by the classifier of the demo's scenes, which it draws
    assert not is_judged("flux")


def test_what_is_measured_from_a_path_has_no_siblings() -> None:
    packaged, given = (study_of(weights).points for weights in (None, "folder"))
    assert table_named(packaged)(TINY, TINY.default_size) == POINTS
    assert table_named(given)(TINY, TINY.default_size) == combined_points(TINY)


Run = Callable[..., tuple[dict[str, Any], list[Point]]]


@pytest.fixture
def run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """A short run of one scene at the plain steps of the distilled model, by models and recipes:
    its document, and the points that it was asked for.

    Exporting is what takes long: of one block of each kind, and stages and caches on quantised
    engines are tested where these are built.
    """
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(job, "peak_mb", lambda setup, point, table: 123.0)
    monkeypatch.setattr(model_runner, "AMAX_PROMPTS", 2)

    def run(models: tuple[str | None, ...], **options: Any) -> tuple[dict[str, Any], list[Point]]:
        monkeypatch.setattr(
            combinations,
            "_is_quick",
            lambda point: (
                (point.preset, point.variant) == ("4 steps", "no cache")
                and point.model in models
                and point.quant in (None, "int8-smooth")
            ),
        )
        combinations.main(out=tmp_path, scenes=1, quick=True, size="64x64", **options)
        document = json.loads((tmp_path / "flux-tiny-combinations-quick.json").read_text())
        return document, chosen(combined_points(TINY, [TURBO]), None, quick=True)

    with shallow_models(tmp_path_factory.mktemp("models")):
        yield run


@pytest.mark.slow
def test_a_run_quantises_what_it_says_and_compares_it_with_its_twin(
    run: Run, tmp_path: Path
) -> None:
    document, _ = run((TURBO.name,))
    check_files(document, tmp_path, combinations_table(document))
    assert document["compare"] == "combinations"
    # The plot needs the bench extra; every point has a row.
    assert {each["what"] for each in document["left_out"]} <= {
        "flux-tiny-combinations-quick-pareto.png"
    }
    plain, bare, quantised = document["rows"]
    assert [row["precision"] for row in document["rows"]] == ["fp32", "fp32", "int8"]
    assert (plain["model"], bare["model"], quantised["model"]) == (
        TINY.name,
        TURBO.name,
        TURBO.name,
    )
    assert 0.5 < quantised["twin_ssim"] < 1.0  # rounded, and still that picture
    assert quantised["speedup"] > 0
    assert plain["twin_ssim"] is bare["twin_ssim"] is None
    table = (tmp_path / "flux-tiny-combinations-quick.md").read_text()
    assert "| flux-tiny-turbo | 4 steps | no cache | int8 |" in table


@pytest.mark.slow
def test_what_the_backend_lacks_is_left_out_and_each_model_draws_with_its_own_weights(
    run: Run,
) -> None:
    document, quick = run((None, TURBO.name), backend="eager")
    left = {row["point"] for row in document["rows"]}
    assert left == {point.name for point in quick if point.quant is None}
    reasons = {each["what"]: each["reason"] for each in document["left_out"]}
    for point in quick:
        if point.quant is not None:
            assert "--precision int8 with the backend eager" in reasons[point.name]
    own, sibling = (
        next(row for row in document["rows"] if (row["model"], row["preset"]) == each)
        for each in ((TINY.name, "4 steps"), (TURBO.name, "4 steps"))
    )
    assert own["ssim"] != sibling["ssim"]
