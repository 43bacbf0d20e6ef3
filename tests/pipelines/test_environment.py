"""What a bundle says must make sense together before any of its engines is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.manifest import Manifest
from fresco_trt.errors import BundleError, EnvironmentMismatch, ManifestInvalid
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.environment import check_environment
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.config import TargetConfig
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.hostile import labels
from tests.hostile.digests import make_right


@pytest.fixture(scope="module")
def manifest(eager_bundle: Path) -> Manifest:
    return open_bundle(eager_bundle).manifest


def refused(manifest: Manifest, **changes: Any) -> EnvironmentMismatch:
    """The error for a manifest with other fields."""
    with pytest.raises(EnvironmentMismatch) as caught:
        check_environment(manifest.model_copy(update=changes))
    assert caught.value.exit_code == 2
    return caught.value


def test_what_was_built_here_is_fit(manifest: Manifest) -> None:
    check_environment(manifest)


def test_another_model_is_refused(manifest: Manifest) -> None:
    model = manifest.model.model_copy(update={"name": "flux-9"})
    assert "flux-9" in refused(manifest, model=model).given


def test_another_backend_is_refused(manifest: Manifest) -> None:
    backend = manifest.backend.model_copy(update={"name": "abacus"})
    error = refused(manifest, backend=backend)
    assert "abacus" in error.given
    assert "onnxruntime" in error.expected


def test_a_precision_that_the_backend_lacks_is_refused(manifest: Manifest) -> None:
    assert "fp8" in refused(manifest, precision="fp8").given


def test_more_text_than_the_model_reads_is_refused(manifest: Manifest) -> None:
    most = model_facts("flux-tiny").text_tokens
    assert str(most) in refused(manifest, text_tokens=most + 1).expected


def test_a_missing_engine_is_refused(manifest: Manifest) -> None:
    assert "stage3.full" in refused(manifest, engines=manifest.engines[:-1]).expected


def test_an_engine_too_many_is_refused(manifest: Manifest) -> None:
    extra = manifest.engines[0].model_copy(update={"name": "stage9.full"})
    assert "stage9.full" in refused(manifest, engines=(*manifest.engines, extra)).given


def test_engines_of_other_shapes_are_refused(manifest: Manifest) -> None:
    first, second, third = manifest.engines
    swapped = (
        first.model_copy(update={"signature": second.signature}),
        second.model_copy(update={"signature": first.signature}),
        third,
    )
    assert "stage1.full" in refused(manifest, engines=swapped).given


def test_engines_of_another_position_scheme_are_refused(
    mixed_bundle: Path, aligned_bundle: Path
) -> None:
    fine, aligned = (open_bundle(path).manifest for path in (mixed_bundle, aligned_bundle))
    check_environment(aligned)
    assert "rope_cos_coarse" in refused(fine, plan=aligned.plan).expected
    assert "rope_cos_coarse" in refused(aligned, plan=fine.plan).given


@pytest.mark.parametrize("size", [(128, 64), (1024, 512)])
def test_a_plan_of_another_size_is_refused(manifest: Manifest, size: tuple[int, int]) -> None:
    facts = replace(model_facts("flux-tiny"), max_pixels=1024 * 512)
    refused(manifest, plan=make_plan(facts, stages=3, preset="turbo", size=size))


def test_a_plan_on_other_grids_is_refused(manifest: Manifest) -> None:
    facts = replace(model_facts("flux-tiny"), vae_scale=8)
    plan = make_plan(facts, stages=3, preset="turbo", size=(64, 64))
    assert "grids" in refused(manifest, plan=plan).given


def test_a_plan_that_does_not_start_from_noise_is_refused(manifest: Manifest) -> None:
    first, *others = manifest.plan.stages
    lower = replace(first, sigmas=(0.995, *first.sigmas[1:]))
    plan = replace(manifest.plan, stages=(lower, *others))
    assert "0.995" in refused(manifest, plan=plan).given


@pytest.mark.parametrize("name", ["hicache", "svd"])
def test_a_cache_without_its_engines_is_refused(manifest: Manifest, name: str) -> None:
    first, *others = manifest.plan.stages
    cached = replace(first, actions=("full", *["bypass"] * (first.steps - 1)))
    plan = replace(manifest.plan, stages=(cached, *others), cache=cache_traits(name).settings())
    error = refused(manifest, plan=plan)
    expected = "cache-basis.safetensors" if name == "svd" else "stage1.bypass"
    assert expected in error.expected


def test_a_transition_that_the_sampler_lacks_is_refused(manifest: Manifest) -> None:
    # A rewind that would not lift as it is written.
    preset = Preset(steps=(1, 1, 3), switch=(0.98, 0.9), lift="haar", noise="rewind")
    made = plan_from_preset(model_facts("flux-tiny"), preset, size=(64, 64))
    transitions = tuple(replace(each, lift="bilinear") for each in made.transitions)
    plan = replace(made, transitions=transitions)
    assert "transition" in refused(manifest, plan=plan).given


@pytest.mark.parametrize("attack", labels.ATTACKS.values(), ids=labels.ATTACKS)
def test_labels_that_do_not_agree_are_refused(
    demo_bundle: Path, tmp_path: Path, attack: Callable[[Path], None]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle, bundle, copy_function=os.link)
    attack(bundle)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, environment=check_environment)
    assert type(caught.value) in (EnvironmentMismatch, ManifestInvalid)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("batch", [0, 2, 65])
def test_engines_of_another_batch_are_refused(manifest: Manifest, batch: int) -> None:
    backend = manifest.backend.model_copy(update={"target": TargetConfig(batch=batch)})
    error = refused(manifest, backend=backend)
    assert ("[2," in error.expected) if batch == 2 else (f"batch={batch}" in error.given)


@pytest.mark.parametrize("name", ["vae", "tokenizer_2", "model_index.json"])
def test_a_pipeline_folder_without_a_part_is_refused(manifest: Manifest, name: str) -> None:
    inside = f"{manifest.pipeline.folder}/{name}"
    kept = tuple(file for file in manifest.files if not file.path.startswith(inside))
    assert name in refused(manifest, files=kept).given


def test_right_digests_and_key_are_those_of_the_builder(eager_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(eager_bundle, bundle, copy_function=os.link)
    make_right(bundle)
    assert open_bundle(bundle, environment=check_environment) == replace(
        open_bundle(eager_bundle), folder=bundle
    )
