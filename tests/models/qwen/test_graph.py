"""Laws of a Qwen-Image stage's graphs: what diffusers' transformer computes, whole and in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fresco_trt.models.qwen.blocks import cut
from fresco_trt.models.qwen.graph import graph_from_signature
from fresco_trt.models.qwen.loading import load_transformer
from fresco_trt.models.qwen.signatures import bypass_signature, full_signature
from fresco_trt.models.qwen.tokens import QwenPatchifier, position_ids
from fresco_trt.plan.grid import Grid
from fresco_trt.run.mixed import Mixed
from fresco_trt.run.positions import mixed_tables, possible_positions
from tests.models.qwen.small import EDIT, EDIT_2511, IMAGE, SMALL, inputs_of
from tests.run.grids import child_indices

if TYPE_CHECKING:
    from fresco_trt.plan.caching import CacheSite
    from fresco_trt.plan.facts import ModelFacts

GRID = Grid(height=6, width=10, scale=1.0)  # 3 rows, of which the middle is no whole place
N = GRID.tokens


def by_diffusers(facts: ModelFacts, model: Any, given: dict[str, Tensor], own: int) -> Tensor:
    """The transformer's own forward on a text of ``own`` tokens without padding."""
    with torch.no_grad():
        found: Tensor = model(
            hidden_states=given["latents"],
            encoder_hidden_states=given["text"][:, :own],
            timestep=given["timestep"],
            img_shapes=[[(1, GRID.rows, GRID.columns)] * (facts.references + 1)],
            return_dict=False,
        )[0]
    return found[:, :N]


@pytest.mark.parametrize("facts", SMALL, ids=lambda facts: facts.name)
@pytest.mark.parametrize("own", [5, 7], ids=["padded", "full"])
def test_the_graph_is_diffusers_transformer_whatever_the_padding(
    facts: ModelFacts, own: int
) -> None:
    model = load_transformer("random", facts)
    signature = full_signature(facts, N, 7, references=facts.references * N)
    given = inputs_of(facts, signature, GRID, own)
    graph = graph_from_signature(model, signature)
    with torch.no_grad():
        (velocity,) = graph(*given.values())
        padding = torch.where(given["text_mask"][..., None] > 0, given["text"], 9.0)
        (other,) = graph(*(given | {"text": padding}).values())
    torch.testing.assert_close(
        velocity, by_diffusers(facts, model, given, own), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(velocity, other)


def test_references_at_zero_are_another_picture() -> None:
    model: Any = load_transformer("random", EDIT_2511)
    signature = full_signature(EDIT, N, 7, references=N)
    given = inputs_of(EDIT, signature, GRID)
    plain: Any = load_transformer("random", EDIT)
    with torch.no_grad():
        found, other = (
            graph_from_signature(each, signature)(*given.values())[0] for each in (model, plain)
        )
    assert (found - other).abs().max() > 1e-4


@pytest.mark.parametrize("facts", [IMAGE, EDIT_2511], ids=lambda facts: facts.name)
@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_bypass_ends_where_the_full_graph_does_and_parts_make_up_both(
    facts: ModelFacts, site: CacheSite
) -> None:
    model, references = load_transformer("random", facts), facts.references * N
    full = full_signature(facts, N, 7, references=references, feature=True, site=site)
    bypass = bypass_signature(facts, N, 7, references=references, site=site)
    given = inputs_of(facts, full, GRID)
    with torch.no_grad():
        whole = graph_from_signature(model, full)
        velocity, kept = whole(*given.values())
        name = full.outputs[1].name
        both = {name: kept, **given}
        again = graph_from_signature(model, bypass)
        arguments = [both[spec.name] for spec in bypass.inputs]
        torch.testing.assert_close(again(*arguments)[0], velocity, atol=1e-5, rtol=1e-5)
        for graph, signature, values in ((whole, full, given), (again, bypass, both)):
            parts = cut(graph, signature)
            inputs = {spec.name: values[spec.name] for spec in signature.inputs}
            found = parts.run({part.kind: part.layers for part in parts.parts}, inputs)
            assert torch.equal(found["velocity"], graph(*inputs.values())[0])
            for part in parts.parts:
                example = [torch.zeros(spec.shape) for spec in part.signature.inputs]
                shapes = [tuple(each.shape) for each in part.layers[0](*example)]
                assert shapes == [spec.shape for spec in part.signature.outputs]


# --- places -----------------------------------------------------------------------------------


def test_a_coarse_token_is_at_the_centre_of_its_four_though_rows_count_from_the_middle() -> None:
    coarse, fine = Grid(height=6, width=10, scale=0.5), Grid(height=12, width=20, scale=1.0)
    patchifier = QwenPatchifier(IMAGE, 7)
    children = position_ids(fine.rows, fine.columns)[torch.tensor(child_indices(coarse, fine))]
    own = possible_positions(patchifier, coarse, fine, "fine")[: coarse.tokens]
    assert torch.equal(own, children.mean(dim=1))
    halves = possible_positions(patchifier, coarse, fine, "coarse")
    parents, finer = halves[: coarse.tokens], halves[coarse.tokens :]
    assert torch.equal(parents, position_ids(coarse.rows, coarse.columns))
    steps = torch.tensor([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]) / 2
    assert torch.equal(finer[torch.tensor(child_indices(coarse, fine))], parents[:, None] + steps)


@pytest.mark.parametrize("units", ["fine", "coarse"])
def test_a_reference_of_a_mixed_stage_lies_on_the_finer_tokens(units: Any) -> None:
    coarse, fine = Grid(height=6, width=10, scale=0.5), Grid(height=12, width=20, scale=1.0)
    patchifier = QwenPatchifier(EDIT, 7)
    expanded = torch.zeros(coarse.tokens, dtype=torch.bool)
    mixed = Mixed.from_mask(coarse, fine, expanded.index_fill(0, torch.tensor([4]), True), 1)
    cos = mixed_tables(patchifier, mixed, units, 1)["rope_cos"][7:]
    children, reference = cos[mixed.tokens - 4 : mixed.tokens], cos[mixed.tokens :]
    own_axes = slice(8, 32)  # rows and columns; the first axis tells pictures apart
    assert torch.equal(reference[mixed.children][:, own_axes], children[:, own_axes])
    assert not torch.equal(reference[mixed.children], children)
