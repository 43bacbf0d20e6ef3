"""Laws of the FLUX family: the wrapper is diffusers' forward, and packing loses nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor
from torch.nn import Module

from fresco_trt.errors import InvalidPlan
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_SCHNELL, FLUX_TINY
from fresco_trt.models.flux.graph import FullGraph, condition_of, graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import full_signature
from fresco_trt.models.flux.tokens import FluxPatchifier, pack, position_ids, rotary_tables, unpack
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid

GUIDED = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5)
UNGUIDED = replace(GUIDED, guidance=False, guidance_default=None)
GRIDS = [(4, 4), (2, 6), (7, 3), (1, 1)]


def example(facts: ModelFacts, rows: int, columns: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a full graph, two pictures at once, with the tables of a raster."""
    generator = torch.Generator().manual_seed(seed)
    signature = full_signature(facts, rows * columns, facts.text_tokens, batch=2)
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}
    inputs["timestep"] = torch.rand(2, generator=generator)
    positions = position_ids(rows, columns)
    cos, sin = rotary_tables(facts, facts.text_tokens, positions)
    return inputs | {"rope_cos": cos, "rope_sin": sin}


def reference(model: Module, inputs: dict[str, Tensor], rows: int, columns: int) -> Tensor:
    """diffusers' own forward on the same pictures."""
    velocity: Tensor = model(
        hidden_states=inputs["latents"],
        encoder_hidden_states=inputs["text"],
        pooled_projections=inputs["pooled"],
        timestep=inputs["timestep"],
        guidance=inputs.get("guidance"),
        img_ids=position_ids(rows, columns),
        txt_ids=torch.zeros(inputs["text"].shape[1], 3),
    ).sample
    return velocity


@pytest.mark.parametrize("facts", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_the_wrapper_is_diffusers_forward(facts: ModelFacts, rows: int, columns: int) -> None:
    model = random_transformer(facts)
    inputs = example(facts, rows, columns)
    (velocity,) = FullGraph(model)(*inputs.values())
    expected = reference(model, inputs, rows, columns)
    assert expected.abs().mean() > 0.1  # a silent model would agree with anything
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)


def test_every_input_matters() -> None:
    graph = FullGraph(random_transformer(GUIDED))
    inputs = example(GUIDED, 3, 4)
    (velocity,) = graph(*inputs.values())
    for name, value in example(GUIDED, 4, 3, seed=1).items():
        (changed,) = graph(*(inputs | {name: value}).values())
        assert (changed - velocity).abs().max() > 1e-4, name


def test_the_feature_is_the_last_blocks_image_tokens() -> None:
    model: Any = random_transformer(GUIDED)
    graph = FullGraph(model, feature=True)
    inputs = example(GUIDED, 4, 4)
    seen: list[Tensor] = []
    model.single_transformer_blocks[-1].register_forward_hook(
        lambda block, given, returned: seen.append(returned[1])
    )
    velocity, feature = graph(*inputs.values())
    assert torch.equal(feature, seen[0])
    condition = condition_of(model, inputs["pooled"], inputs["timestep"], inputs["guidance"])
    torch.testing.assert_close(model.proj_out(model.norm_out(feature, condition)), velocity)


def test_the_residual_is_what_all_blocks_after_the_first_add() -> None:
    model: Any = random_transformer(GUIDED)
    graph = FullGraph(model, feature=True, site="trunk")
    first: list[Tensor] = []
    model.transformer_blocks[0].register_forward_hook(
        lambda block, given, returned: first.append(returned[1])
    )
    _, residual = graph(*example(GUIDED, 4, 4).values())
    _, feature = FullGraph(model, feature=True)(*example(GUIDED, 4, 4).values())
    torch.testing.assert_close(residual, feature - first[0])


def test_half_precision_weights_keep_float32_inputs_and_outputs() -> None:
    inputs = example(GUIDED, 4, 4)
    exact, _ = FullGraph(random_transformer(GUIDED), feature=True)(*inputs.values())
    half = random_transformer(GUIDED)
    half = Module.to(half, torch.bfloat16)
    velocity, feature = FullGraph(half, feature=True)(*inputs.values())
    assert velocity.dtype == feature.dtype == torch.float32
    assert 0 < (velocity - exact).abs().max() < 0.1


@pytest.mark.parametrize("facts", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize("feature", [False, True])
def test_the_module_has_the_signature(facts: ModelFacts, feature: bool) -> None:
    signature = full_signature(facts, 6, 5, feature=feature, batch=2)
    graph = graph_from_signature(random_transformer(facts), signature)
    outputs = graph(*example(facts, 2, 3).values())
    assert [tuple(value.shape) for value in outputs] == [spec.shape for spec in signature.outputs]


def test_a_guided_model_refuses_to_run_without_guidance() -> None:
    inputs = example(GUIDED, 2, 2)
    del inputs["guidance"]
    with pytest.raises(TypeError, match="6 inputs given; expected 7"):
        FullGraph(random_transformer(GUIDED))(*inputs.values())


def test_signatures_are_those_of_the_published_models() -> None:
    dev = full_signature(FLUX_DEV, 4096, 512, feature=True)
    assert [str(spec) for spec in dev.inputs] == [
        "latents float32[1,4096,64]",
        "text float32[1,512,4096]",
        "pooled float32[1,768]",
        "timestep float32[1]",
        "guidance float32[1]",
        "rope_cos float32[4608,128]",
        "rope_sin float32[4608,128]",
    ]
    assert [str(spec) for spec in dev.outputs] == [
        "velocity float32[1,4096,64]",
        "feature float32[1,4096,3072]",
    ]
    schnell = full_signature(FLUX_SCHNELL, 4096, 256)
    assert "guidance" not in {spec.name for spec in schnell.inputs}
    with pytest.raises(InvalidPlan):
        full_signature(FLUX_DEV, 0, 512)


# --- positions --------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [GUIDED, FLUX_DEV], ids=["tiny", "dev"])
@pytest.mark.parametrize(("rows", "columns"), [*GRIDS, (64, 48)])
def test_tables_are_bit_equal_to_diffusers(facts: ModelFacts, rows: int, columns: int) -> None:
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    positions = position_ids(rows, columns)
    ids = torch.cat([torch.zeros(facts.text_tokens, 3), positions])
    cos, sin = FluxPosEmbed(theta=10_000, axes_dim=list(facts.rope_axes))(ids)
    tables = rotary_tables(facts, facts.text_tokens, positions)
    assert torch.equal(tables[0], cos)
    assert torch.equal(tables[1], sin)


def test_tables_take_fractional_positions() -> None:
    between = torch.tensor([[0.0, 0.5, 1.5]])
    cos, sin = rotary_tables(GUIDED, 2, between)
    assert cos.shape == (3, GUIDED.head_dim)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    whole, _ = rotary_tables(GUIDED, 2, between.round())
    assert not torch.equal(cos, whole)
    with pytest.raises(ValueError, match=r"expected \[N,3\]"):
        rotary_tables(GUIDED, 2, torch.zeros(4, 2))


def test_position_ids_are_diffusers_raster() -> None:
    expected = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(position_ids(3, 5), expected)


# --- packing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_packing_is_diffusers_and_unpacking_undoes_it(rows: int, columns: int) -> None:
    latents = torch.randn(2, 4, 2 * rows, 2 * columns)
    tokens = pack(latents)
    expected = FluxPipeline._pack_latents(latents, 2, 4, 2 * rows, 2 * columns)
    assert torch.equal(tokens, expected)
    assert torch.equal(unpack(tokens, rows, columns), latents)
    assert torch.equal(pack(unpack(tokens, rows, columns)), tokens)


def test_packing_refuses_what_it_would_scramble() -> None:
    with pytest.raises(ValueError, match="3x4"):
        pack(torch.zeros(1, 4, 3, 4))
    for tokens in (torch.zeros(1, 7, 16), torch.zeros(1, 6, 15)):
        with pytest.raises(ValueError, match="2x3 grid"):
            unpack(tokens, 2, 3)


def test_the_patchifier_is_the_functions_by_grid() -> None:
    grid = Grid(height=4, width=6, scale=0.5)
    patchifier = FluxPatchifier(GUIDED, 5)
    latents = torch.randn(1, 4, 4, 6)
    assert torch.equal(patchifier.unpack(patchifier.pack(latents), grid), latents)
    tables = patchifier.tables(patchifier.positions(grid))
    cos, sin = rotary_tables(GUIDED, 5, position_ids(2, 3))
    assert torch.equal(tables["rope_cos"], cos)
    assert torch.equal(tables["rope_sin"], sin)
    anywhere = torch.rand(7, 3) * 5
    cos, sin = rotary_tables(GUIDED, 5, anywhere)
    tables = patchifier.tables(anywhere)
    assert torch.equal(tables["rope_cos"], cos)
    assert torch.equal(tables["rope_sin"], sin)


def test_facts_and_packing_need_no_torch() -> None:
    code = "import sys, fresco_trt.models.flux.family; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
