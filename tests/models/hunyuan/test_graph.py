"""Laws of a HunyuanVideo stage's graphs: what diffusers' transformer does, whole and in parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fresco_trt.models.hunyuan.blocks import cut
from fresco_trt.models.hunyuan.graph import graph_from_signature
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.signatures import BIAS, bypass_signature, full_signature
from fresco_trt.models.hunyuan.tokens import HunyuanPatchifier
from fresco_trt.plan.grid import Grid
from tests.models.hunyuan.small import CLIP, SMALL, inputs_of

if TYPE_CHECKING:
    from fresco_trt.plan.caching import CacheSite

T = SMALL.text_tokens
PATCHIFIER = HunyuanPatchifier(SMALL, T)
PICTURE = Grid(height=6, width=10, scale=1.0)


def by_diffusers(model: Any, given: dict[str, Tensor], own: int, grid: Grid) -> Tensor:
    """The transformer's own forward on latents of ``grid`` and a text of ``own`` tokens."""
    latents = PATCHIFIER.unpack(given["latents"], grid)
    guidance = given.get("guidance")
    with torch.no_grad():
        found: Tensor = model(
            hidden_states=latents if latents.ndim == 5 else latents[:, :, None],
            timestep=given["timestep"] * 1000,
            encoder_hidden_states=given["text"],
            encoder_attention_mask=(torch.arange(T) < own).long()[None],
            pooled_projections=given["pooled"],
            guidance=None if guidance is None else guidance * 1000,
            return_dict=False,
        )[0]
    return PATCHIFIER.pack(found)


@pytest.mark.parametrize("grid", [CLIP, PICTURE], ids=["clip", "picture"])
@pytest.mark.parametrize("own", [5, 7], ids=["padded", "full"])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_the_graph_is_diffusers_transformer_whatever_the_padding(
    grid: Grid, own: int, guided: bool
) -> None:
    facts = SMALL if guided else replace(SMALL, guidance=False, guidance_default=None)
    model = load_transformer("random", facts)
    given = inputs_of(signature := full_signature(facts, grid.tokens, T), grid, own)
    graph = graph_from_signature(model, signature)
    with torch.no_grad():
        (velocity,) = graph(*given.values())
        padding = torch.where(given[BIAS][..., None] < 0, 9.0, given["text"])
        (other,) = graph(*(given | {"text": padding}).values())
    expected = by_diffusers(model, given, own, grid)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(velocity, other)


def test_an_amplified_text_is_one_whose_tokens_stand_there_twice() -> None:
    """Ln 2 more for each of the prompt's own tokens; what refines them sees a mean, and no more."""
    model, own = load_transformer("random", SMALL), 5
    given = inputs_of(full_signature(SMALL, CLIP.tokens, T), CLIP, own)
    amplified = given[BIAS] + math.log(2) * (given[BIAS] == 0)
    order = torch.tensor([*range(own), *range(T)])
    rows = torch.tensor([*order, *range(T, T + CLIP.tokens)])
    twice = given | {name: given[name][:, order] for name in ("text", BIAS)}
    twice |= {name: given[name][rows] for name in ("rope_cos", "rope_sin")}
    one = graph_from_signature(model, full_signature(SMALL, CLIP.tokens, T))
    two = graph_from_signature(model, full_signature(SMALL, CLIP.tokens, T + own))
    with torch.no_grad():
        (velocity,), (expected,) = one(*(given | {BIAS: amplified}).values()), two(*twice.values())
        (plain,) = one(*given.values())
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)
    assert (velocity - plain).abs().max() > 1e-3


def test_packing_is_undone_and_positions_are_frame_row_and_column() -> None:
    latents = torch.randn(2, 16, 3, 6, 10)
    tokens = PATCHIFIER.pack(latents)
    assert tokens.shape == (2, CLIP.tokens, 64)
    assert torch.equal(PATCHIFIER.unpack(tokens, CLIP), latents)
    places = PATCHIFIER.positions(CLIP)
    assert places[[0, 1, 5, 15, 44]].tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
        [2, 2, 4],
    ]
    with pytest.raises(ValueError, match="the reference 1"):
        PATCHIFIER.positions(CLIP, 1)


@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_bypass_ends_where_the_full_graph_does_and_parts_make_up_both(site: CacheSite) -> None:
    model = load_transformer("random", SMALL)
    full = full_signature(SMALL, CLIP.tokens, T, feature=True, site=site)
    bypass = bypass_signature(SMALL, CLIP.tokens, T, site=site)
    given = inputs_of(full, CLIP)
    with torch.no_grad():
        whole = graph_from_signature(model, full)
        velocity, kept = whole(*given.values())
        both = {full.outputs[1].name: kept, **given}
        again = graph_from_signature(model, bypass)
        arguments = [both[spec.name] for spec in bypass.inputs]
        torch.testing.assert_close(again(*arguments)[0], velocity, atol=1e-5, rtol=1e-5)
        for graph, signature in ((whole, full), (again, bypass)):
            parts = cut(graph, signature)
            inputs = {spec.name: both[spec.name] for spec in signature.inputs}
            found = parts.run({part.kind: part.layers for part in parts.parts}, inputs)
            assert torch.equal(found["velocity"], graph(*inputs.values())[0])
            for part in parts.parts:
                example = [torch.zeros(spec.shape) for spec in part.signature.inputs]
                shapes = [tuple(each.shape) for each in part.layers[0](*example)]
                assert shapes == [spec.shape for spec in part.signature.outputs]
