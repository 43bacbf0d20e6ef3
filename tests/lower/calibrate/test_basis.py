"""Principal directions: measured on the plan's own trajectories, and bundled with the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fresco_trt
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.svd_basis import BASIS_FILE, read_basis
from fresco_trt.errors import CalibrationError
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.lower.calibrate import basis as calibration_basis
from fresco_trt.lower.calibrate.basis import Reference, measure_basis, read_prompts
from fresco_trt.lower.calibrate.trajectories import features, in_full
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.caching import spelt_actions
from fresco_trt.plan.config import CacheConfig
from tests.shallow import NAME, shallow_pipeline, shallow_transformer

TINY = bundled_folder("flux-tiny")
PLAN = fresco_trt.plan(NAME, stages=2, preset="turbo", size=(64, 64))
MODEL = shallow_transformer()
WORDS = tuple("F" + "B" * (stage.steps - 1) for stage in PLAN.stages)

REFERENCE = Reference(
    facts=model_facts(NAME),
    transformer=MODEL,
    weights_sha256=weights_digest(MODEL),
    pipeline=TINY,
    prompts=("a star on a plain red background", "a cat on a checked blue background"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of that model."""
    return str(shallow_pipeline(tmp_path_factory.mktemp("model") / "flux-tiny"))


def request(out: Path, basis: Path | None, weights: str) -> BuildRequest:
    return BuildRequest(
        model=NAME,
        weights=weights,
        backend="eager",
        stages=2,
        preset="turbo",
        size=(64, 64),
        cache=CacheConfig(name="svd", actions=WORDS, basis=basis),
        out=out,
    )


def test_every_step_of_every_prompt_is_looked_at() -> None:
    shapes = [tuple(each.shape) for each in features(REFERENCE, PLAN, lambda *_: None)]
    steps = [stage.steps for stage in PLAN.stages]
    grids = [stage.grid.tokens for stage in PLAN.stages]
    one = [
        (1, tokens, 192) for count, tokens in zip(steps, grids, strict=True) for _ in range(count)
    ]
    assert shapes == 2 * one


def test_directions_are_those_of_the_features_with_the_share_asked_for() -> None:
    seen = torch.cat([f.flatten(0, 1) for f in features(REFERENCE, PLAN, lambda *_: None)]).double()
    for energy in (0.5, 0.95):
        basis = measure_basis(REFERENCE, PLAN, energy=energy)
        held = (seen @ basis.directions.double()).square().sum() / seen.square().sum()
        assert held >= energy - 1e-6
        fewer = (seen @ basis.directions[:, :-1].double()).square().sum() / seen.square().sum()
        assert fewer < energy
        exact = torch.linalg.svdvals(seen)
        torch.testing.assert_close(basis.values.double(), exact, rtol=1e-3, atol=1e-2)


def test_a_plan_with_skipped_steps_is_measured_in_full() -> None:
    cache = CacheConfig(name="reuse", actions=WORDS)
    cached = fresco_trt.plan(NAME, stages=2, preset="turbo", size=(64, 64), cache=cache)
    assert in_full(cached) == replace(PLAN)
    assert measure_basis(REFERENCE, cached).record == measure_basis(REFERENCE, PLAN).record


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_shares_are_refused(energy: float) -> None:
    with pytest.raises(CalibrationError, match="energy"):
        measure_basis(REFERENCE, PLAN, energy=energy)


@pytest.mark.parametrize("content", [None, b"", b"\n  \n", b"\xff\xfe"])
def test_prompts_that_are_none_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match="one prompt a line"):
        read_prompts(path)


def test_the_tracked_prompts_are_read_line_by_line() -> None:
    folder = Path(__file__).parents[3] / "calibration"
    assert len(read_prompts(folder / "flux-tiny-prompts.txt")) == 16


# --- in a bundle ------------------------------------------------------------------------------


def test_a_bundle_carries_the_basis_that_was_given(tmp_path: Path, weights: str) -> None:
    given = tmp_path / "basis.safetensors"
    basis = measure_basis(REFERENCE, PLAN)
    basis.store(given)
    bundle = run(request(tmp_path / "bundle", given, weights)).bundle
    assert (bundle.folder / BASIS_FILE).read_bytes() == given.read_bytes()
    assert bundle.manifest.calibration is not None
    assert run(request(tmp_path / "bundle", given, weights)).reused
    with fresco_trt.FrescoPipeline.from_bundle(bundle.folder) as pipe:
        result = pipe("a star on a plain red background")
    drawn = [step.action for step in result.steps]
    assert drawn == [action for word in WORDS for action in spelt_actions(word)]
    assert "bypass" in drawn


def test_without_one_it_is_measured_and_the_build_repeats(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_basis, "PROMPTS", tmp_path)
    monkeypatch.setattr(calibration_basis, "_SHIPPED", ())
    with pytest.raises(CalibrationError, match="--prompts"):
        run(request(tmp_path / "bundle", None, weights))
    assert not (tmp_path / "bundle").exists()
    (tmp_path / "flux-tiny-prompts.txt").write_text("a star on a plain red background\n")
    bundle = run(request(tmp_path / "bundle", None, weights)).bundle
    assert read_basis(bundle.folder / BASIS_FILE).record.prompts == 1
    assert run(request(tmp_path / "bundle", None, weights)).reused
    (tmp_path / "flux-tiny-prompts.txt").write_text("a cat on a plain red background\n")
    assert "SVD basis" in run(request(tmp_path / "bundle", None, weights)).state


def test_a_basis_of_other_weights_is_refused_and_nothing_is_written(
    tmp_path: Path, weights: str
) -> None:
    given = tmp_path / "basis.safetensors"
    basis = measure_basis(REFERENCE, PLAN)
    replace(basis, record=replace(basis.record, weights_sha256="0" * 64)).store(given)
    with pytest.raises(CalibrationError, match="weights 000000"):
        run(request(tmp_path / "bundle", given, weights))
    assert not (tmp_path / "bundle").exists()


def test_open_bundles_without_a_cache_have_no_calibration(eager_bundle: Path) -> None:
    assert open_bundle(eager_bundle).manifest.calibration is None


def test_prompts_come_with_the_package_unless_there_are_some_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = calibration_basis.default_prompts("flux-tiny")
    assert len(read_prompts(shipped)) >= 16
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / shipped.name).write_text("a cat\n")
    assert read_prompts(calibration_basis.default_prompts("flux-tiny")) == ("a cat",)
    assert calibration_basis.default_prompts("flux") == Path("calibration/flux-prompts.txt")


def test_a_model_over_anothers_encoders_has_its_prompts_until_it_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student = "flux-tiny-turbo"
    assert calibration_basis.default_prompts(student) == calibration_basis.default_prompts(
        "flux-tiny"
    )
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / f"{student}-prompts.txt").write_text("a cat\n")
    assert read_prompts(calibration_basis.default_prompts(student)) == ("a cat",)
