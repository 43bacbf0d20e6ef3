"""Laws of block-sparse attention: its order, what a block sees, what it costs, who refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fresco_trt.cli.main import main
from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.hunyuan.blocks import cut
from fresco_trt.models.hunyuan.facts import HUNYUAN_VIDEO
from fresco_trt.models.hunyuan.family import HUNYUAN
from fresco_trt.models.hunyuan.graph import graph_from_signature
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.signatures import bypass_signature, full_signature, sparse_signature
from fresco_trt.models.hunyuan.sparse import (
    Layout,
    Sparse,
    block_mask,
    blocks_chosen,
    curve,
    layout_of,
    positions_of,
    sparse_attention,
)
from fresco_trt.models.hunyuan.tokens import position_ids, rotary_tables
from fresco_trt.models.masked import HIDDEN
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import flops_of_step, plan_cost
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.signature import GraphSignature
from fresco_trt.plan.sparse import BLOCK, blocks_kept
from fresco_trt.plan.stages import StagePlan
from fresco_trt.plan.stored import plan_problems
from tests.models.hunyuan.small import SMALL, inputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.plan.caching import CacheSite

T = SMALL.text_tokens
GRID = Grid(height=14, width=32, scale=1.0, frames=4)  # 448 tokens: the last of four blocks has 64


def layout(grid: Grid = GRID, own: int = 5) -> Layout:
    """With a text of ``own`` tokens in the first of two clips."""
    rope = rotary_tables(SMALL, T, position_ids(grid))
    return layout_of(rope, SMALL.rope_axes, bias_of(grid, own), T)


def bias_of(grid: Grid = GRID, own: int = 5) -> Tensor:
    bias = torch.zeros(2, 1, 1, T + grid.tokens)
    bias[0, ..., own:T] = -HIDDEN
    return bias


# --- order ------------------------------------------------------------------------------------


def test_positions_are_read_from_the_tables_at_the_largest_size() -> None:
    grid = Grid(height=90, width=160, scale=1.0, frames=33)
    places = position_ids(grid)[::97] + 0.5
    cos, sin = rotary_tables(HUNYUAN_VIDEO, 0, places)
    found = positions_of(cos, sin, HUNYUAN_VIDEO.rope_axes)
    torch.testing.assert_close(found, places, atol=1e-3, rtol=0)


def test_the_curve_goes_through_every_cell_once_and_from_each_to_a_neighbour() -> None:
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3)
    along = curve(cells)
    order = along.argsort()
    assert along[order].tolist() == list(range(len(cells)))
    assert (cells[order].diff(dim=0).abs().sum(dim=1) == 1).all()


def test_the_order_is_a_permutation_whose_blocks_are_compact() -> None:
    found = layout()
    assert torch.equal(found.order[found.place], torch.arange(T + GRID.tokens))
    assert len(found.order) == BLOCK * 5
    assert set(found.order[:BLOCK].tolist()) == set(range(T))
    grid = Grid(height=32, width=64, scale=1.0, frames=8)
    order = layout(grid).order[BLOCK:] - T
    sides = position_ids(grid)[order].unflatten(0, (-1, BLOCK))
    # In raster order a block has 4 x 32 tokens of one frame.
    assert (sides.amax(dim=1) - sides.amin(dim=1) + 1).amax() <= 8


# --- what a block sees ------------------------------------------------------------------------


def heads_of(batch: int = 2, width: int = 16) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(batch, T + GRID.tokens, 3, width) for _ in range(3)]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    heads = (each.transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


def chosen_of(heads: Sequence[Tensor], found: Layout, count: int) -> Tensor:
    query, key = (each.transpose(1, 2)[:, :, found.order] for each in heads[:2])
    own = found.place[found.order] == torch.arange(len(found.order))
    return blocks_chosen(query, key, own, found.lift, count)


def test_all_blocks_are_dense_attention() -> None:
    heads = heads_of()
    found = sparse_attention(*heads, Sparse(layout(), 4))
    torch.testing.assert_close(found, dense(*heads, bias_of()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_block_sees_the_text_itself_and_as_many_as_were_asked_for(count: int) -> None:
    """As dense attention does under a mask of all tokens, in their own order."""
    heads, found = heads_of(), layout()
    chosen = chosen_of(heads, found, count)
    listed = block_mask(chosen, 5).to_dense().bool()
    assert listed[:, :, 0].all()
    assert listed[:, :, 1:, 0].all()
    assert torch.equal(listed[:, :, 1:, 1:].sum(dim=-1), torch.full((2, 3, 4), count))
    assert listed[:, :, 1:, 1:].gather(-1, chosen).all()
    assert chosen.shape == (2, 3, 4, count)
    assert all(len(set(row)) == count for row in chosen.flatten(0, 2).tolist())
    assert (chosen == torch.arange(4)[:, None]).any(dim=-1).all()
    block = found.place[T:] // BLOCK - 1
    seen = torch.zeros(2, 3, 4, 4, dtype=torch.bool).scatter_(-1, chosen, True)
    mask = torch.ones(2, 3, T + GRID.tokens, T + GRID.tokens, dtype=torch.bool)
    mask[:, :, T:, T:] = seen[:, :, block][..., block]
    expected = dense(*heads, torch.where(mask, bias_of(), -torch.inf))
    given = sparse_attention(*heads, Sparse(found, count))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_neighbours_come_first_then_the_nearest_means() -> None:
    grid = Grid(height=8, width=512, scale=1.0, frames=1)  # 8 blocks along one line
    found, count = layout(grid), 4
    torch.manual_seed(0)
    heads = [torch.randn(1, T + grid.tokens, 1, 16) for _ in range(2)]
    chosen = chosen_of(heads, found, count)[0, 0]
    near = (found.lift > 0).sum(dim=1)
    assert sorted(near.tolist()) == [2, 2, 3, 3, 3, 3, 3, 3]  # in which order the line is cut
    means = [each[0, T:, 0][found.order[BLOCK:] - T].view(8, BLOCK, 16).mean(1) for each in heads]
    scores = means[0] @ means[1].T
    for row in range(8):
        first = set((found.lift[row] > 0).nonzero()[:, 0].tolist())
        others = scores[row].argsort(descending=True).tolist()
        rest = [each for each in others if each not in first][: count - len(first)]
        assert set(chosen[row].tolist()) == first | set(rest)


# --- graphs -----------------------------------------------------------------------------------


def run(signature: GraphSignature, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    graph = graph_from_signature(load_transformer("random", SMALL), signature)
    given = {spec.name: inputs[spec.name] for spec in signature.inputs}
    with torch.no_grad():
        found: tuple[Tensor, ...] = graph(*given.values())
        parts = cut(graph, signature)
        whole = parts.run({part.kind: part.layers for part in parts.parts}, given)
    assert torch.equal(whole["velocity"], found[0])
    return found


@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_graph_of_all_blocks_is_the_dense_one_and_of_fewer_another(site: CacheSite) -> None:
    full = full_signature(SMALL, GRID.tokens, T, feature=True, site=site)
    given = inputs_of(full, GRID)
    velocity, kept = run(full, given)
    torch.testing.assert_close(
        run(sparse_signature(full, 1.0), given)[0], velocity, atol=1e-5, rtol=1e-5
    )
    fewer, other = run(half := sparse_signature(full, 0.5), given)
    assert (fewer - velocity).abs().max() > 1e-3
    assert not torch.equal(kept, other)
    assert GraphSignature.from_json(half.to_json()) == half
    if site == "trunk":  # it ends where the full graph does, sparse as that is
        bypass = sparse_signature(bypass_signature(SMALL, GRID.tokens, T, site=site), 0.5)
        ended = run(bypass, {**given, bypass.inputs[0].name: other})[0]
        torch.testing.assert_close(ended, fewer, atol=1e-5, rtol=1e-5)


# --- plans ------------------------------------------------------------------------------------

VIDEO = model_facts("hunyuan-video")


def plan_of(spelling: str, stages: int = 2) -> StagePlan:
    return make_plan(VIDEO, stages=stages, preset=spelling, size=(512, 320, 61))


def test_a_plan_has_the_share_and_costs_less() -> None:
    plan, whole = plan_of("turbo,sparse_attention=0.3"), plan_of("turbo")
    assert StagePlan.from_json(plan.to_json()) == plan
    assert (plan.preset, whole.to_json().get("sparse_attention")) == (None, None)
    assert plan_cost(VIDEO, plan).ratio > plan_cost(VIDEO, whole).ratio
    every = plan_of("turbo,sparse_attention=1.0")
    assert plan_cost(VIDEO, every).flops == plan_cost(VIDEO, whole).flops
    tokens, text = 1280, VIDEO.text_tokens
    saved = flops_of_step(VIDEO, tokens) - flops_of_step(VIDEO, tokens, sparse=0.25)
    # 3 of 10 blocks: of each pair of image tokens seven tenths are not multiplied.
    assert saved == VIDEO.blocks * 4 * VIDEO.hidden * tokens**2 * 7 / 10
    counts = [
        HUNYUAN.graphs.signature(VIDEO, plan, stage, text_tokens=text).key_blocks
        for stage in range(2)
    ]
    assert counts == [blocks_kept(each, 0.3) for each in plan.tokens]


def test_the_plan_command_says_how_much_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "hunyuan-video", "--stages", "2", "--size", "512x320x61"]
    assert main([*asked, "--preset", "turbo,sparse_attention=0.3"]) == 0
    assert "attention sees 30% of a clip's blocks of keys" in capsys.readouterr().out
    assert main(asked) == 0
    assert "attention sees" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "share", "count"),
    [(1280, 0.3, 3), (1280, 0.31, 4), (1281, 0.3, 4), (64, 0.01, 1), (118_800, 0.3, 279)],
)
def test_a_share_of_the_blocks_is_rounded_up(tokens: int, share: float, count: int) -> None:
    assert blocks_kept(tokens, share) == count


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01"])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(share: str) -> None:
    with pytest.raises(PlanError, match="a share over 0 and at most 1"):
        plan_of(f"turbo,sparse_attention={share}")
    with pytest.raises(InvalidPlan, match="a share over 0 and at most 1"):
        replace(plan_of("turbo"), sparse_attention=float(share))


def test_other_models_and_libraries_without_a_kernel_refuse_it_by_name() -> None:
    flux = model_facts("flux")
    with pytest.raises(IncompatibleOptions, match=r"sparse_attention=0\.3 with flux"):
        make_plan(flux, stages=2, preset="balanced,sparse_attention=0.3")
    own = replace(make_plan(flux, stages=2), sparse_attention=0.3)
    assert [given for given, _ in plan_problems(own, flux)] == ["a plan with sparse_attention"]
    asked = BuildRequest(plan=plan_of("turbo,sparse_attention=0.3"), weights="random")
    for name in ("onnxruntime", "tensorrt", "tensorrt-rtx"):
        with pytest.raises(IncompatibleOptions, match=f"0.3 with the backend {name}"):
            resolve(replace(asked, backend=name, precision="fp32"))
    for name in ("eager", "inductor"):
        assert resolve(replace(asked, backend=name)).signature(1, "full").key_blocks == 24
