"""Laws of models in other dimensions: a name says all there is, and diffusers builds the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, UnknownModel
from fresco_trt.models.flux.config import transformer_config
from fresco_trt.models.flux.facts import FLUX_FACTS
from fresco_trt.models.flux.variants import check_config
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import plan_summary

SMALL = (
    "flux:in_channels=4,num_layers=1,num_single_layers=1,attention_head_dim=16,"
    "num_attention_heads=2,joint_attention_dim=32,pooled_projection_dim=32,"
    "guidance_embeds=false,axes_dims_rope=4+4+8,vae_scale=1"
)
NAMES = [
    "flux:num_layers=8",
    "flux:num_layers=0,num_single_layers=40",
    "flux-schnell:num_attention_heads=16,guidance_embeds=true",
    "flux-tiny:num_layers=1,pooled_projection_dim=32",
    SMALL,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_what_its_name_says(name: str) -> None:
    import torch
    from diffusers import FluxTransformer2DModel

    facts = model_facts(name)
    assert facts.name == name
    assert facts.presets_of == name.partition(":")[0]
    kind: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = kind(**transformer_config(facts))
    assert sum(each.numel() for each in model.parameters()) == facts.parameters
    assert model.inner_dim == facts.hidden


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "turbo"])
def test_a_variant_plans_with_the_presets_of_its_base(name: str, preset: str) -> None:
    facts, base = model_facts(name), model_facts(name.partition(":")[0])
    for stages in (1, 2, 3):
        plan = fresco_trt.plan(name, stages=stages, preset=preset)
        steps = [len(stage.actions) for stage in plan.stages]
        assert steps == list(base.presets[preset][stages].steps)
        assert plan_summary(facts, plan)["presets_of"] == base.name


def test_models_that_are_listed_have_presets_of_their_own() -> None:
    assert {facts.presets_of for facts in FLUX_FACTS} == {None}


def test_one_model_has_one_name() -> None:
    assert model_facts("flux:num_layers=19") is model_facts("flux")
    other = model_facts("flux:num_single_layers=9,num_layers=08")
    assert other.name == "flux:num_layers=8,num_single_layers=9"
    assert other == model_facts(other.name)


def test_a_measured_spectrum_is_of_the_same_latents_alone() -> None:
    assert model_facts("flux:num_layers=8").spectrum == model_facts("flux").spectrum
    assert model_facts("flux:in_channels=32").spectrum is None
    assert model_facts("flux:vae_scale=16").default_size == (2048, 2048)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("", "'' in the model name"),
        ("num_layers", "'num_layers' in the model name"),
        ("num_layers=x", "expected name=value"),
        ("num_layers=1,num_layers=2", "each name once"),
        ("layers=2", "layers=2 of a model like flux; expected one of in_channels, num_layers"),
        ("num_layers=true", "num_layers=True.*a whole number from 0"),
        ("num_attention_heads=0", "a whole number from 1"),
        ("num_layers=0,num_single_layers=0", "a transformer without blocks"),
        ("attention_head_dim=64", r"axes_dims_rope=16\+56\+56 with attention_head_dim=64"),
        ("attention_head_dim=6,axes_dims_rope=1+2+3", "three even widths"),
        ("axes_dims_rope=128", "three even widths"),
        ("guidance_embeds=1", "true or false"),
        ("in_channels=6", "four for each latent channel"),
        ("patch_size=2", "patch_size=1"),
        ("out_channels=32", "out_channels=32.*out_channels=64"),
    ],
)
def test_dimensions_that_no_transformer_has_are_refused(changes: str, told: str) -> None:
    with pytest.raises(IncompatibleOptions, match=told):
        model_facts(f"flux:{changes}")


def test_a_variant_of_no_model_is_unknown() -> None:
    with pytest.raises(UnknownModel, match="did you mean flux"):
        model_facts("fluxx:num_layers=8")


@pytest.mark.parametrize(
    ("stored", "named"), [("flux-schnell", "flux-schnell"), ("flux:num_layers=8",) * 2]
)
def test_weights_of_other_dimensions_are_told_their_model(
    tmp_path: Path, stored: str, named: str
) -> None:
    config = {"_class_name": "FluxTransformer2DModel", **transformer_config(model_facts(stored))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleOptions, match=f"pass --model {named}, or the weights"):
        check_config(tmp_path, model_facts("flux"))
    check_config(tmp_path, model_facts(stored))


def test_a_variant_is_built_and_draws(tmp_path: Path) -> None:
    name = "flux-tiny:num_layers=1,num_single_layers=1,num_attention_heads=2"
    folder = fresco_trt.build(
        name,
        stages=2,
        preset="turbo",
        size=(64, 64),
        weights="random",
        backend="eager",
        out=tmp_path / "bundle",
    )
    with fresco_trt.FrescoPipeline.from_bundle(folder) as pipe:
        assert pipe.bundle.manifest.model.name == name
        assert pipe("an apple", seed=1).images[0].size == (64, 64)


def test_the_folder_of_a_variant_is_short_and_its_own() -> None:
    from fresco_trt.lower.request import BuildRequest, resolve

    def folder(model: str) -> str:
        request = BuildRequest(model=model, weights="random", size=(64, 64), stages=1)
        return str(resolve(request).out)

    first, second = folder(SMALL), folder("flux:num_layers=8")
    assert first != second
    assert all(len(each) < 60 and ":" not in each for each in (first, second))
