"""Laws of phase-aligned attention: every query on its own grid, over the weights of all graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor
from torch.nn import Module

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.bench.engines import Engine
from fresco_trt.errors import InvalidPlan
from fresco_trt.lower.export import export_stages
from fresco_trt.models.flux.aligned import AlignedGraph, AlignedProcessor, MixedOrder
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_TINY
from fresco_trt.models.flux.graph import FullGraph, graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import COARSE_ROPE, full_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.grid import Grid
from fresco_trt.run.mixed import Mixed
from fresco_trt.run.positions import mixed_tables

pytestmark = pytest.mark.usefixtures("traced_once")

TEXT = 5
FACTS = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=TEXT)
PATCHIFIER = FluxPatchifier(FACTS, TEXT)
COARSE = Grid(height=4, width=6, scale=0.5)
FINE = Grid(height=8, width=12, scale=1.0)
REFINED = [1, 5]
KEPT = [0, 2, 3, 4]
ORDER = MixedOrder(text=TEXT, kept=4, refined=2)
CLOSE = {"atol": 1e-5, "rtol": 0.0}

KINDS = ["double", "single"]


def mixed_of(refined: list[int]) -> Mixed:
    expanded = torch.zeros(COARSE.tokens, dtype=torch.bool)
    expanded[refined] = True
    return Mixed.from_mask(COARSE, FINE, expanded, len(refined))


def rope_of(refined: list[int]) -> tuple[Tensor, ...]:
    tables = mixed_tables(PATCHIFIER, mixed_of(refined), "aligned")
    return tuple(tables[name] for name in ("rope_cos", "rope_sin", *COARSE_ROPE))


def model_of(seed: int = 0) -> Any:
    return random_transformer(FACTS, seed=seed)


def attention(kind: str, processor: Any, joint: Tensor, rope: tuple[Tensor, ...]) -> Tensor:
    """What one attention layer makes of features [B,S,H], text in front: the same, text in front.

    A single-stream layer's result is the attention itself, a double-stream one's is projected by
    layers of its own for text and image.
    """
    model = model_of()
    if kind == "single":
        found: Tensor = processor(
            model.single_transformer_blocks[0].attn,
            hidden_states=joint,
            encoder_hidden_states=None,
            attention_mask=None,
            image_rotary_emb=rope,
        )
        return found
    image, text = processor(
        model.transformer_blocks[0].attn,
        hidden_states=joint[:, TEXT:],
        encoder_hidden_states=joint[:, :TEXT],
        attention_mask=None,
        image_rotary_emb=rope,
    )
    return torch.cat([text, image], dim=1)


def ordinary(kind: str, joint: Tensor, rope: tuple[Tensor, ...]) -> Tensor:
    """By diffusers' own processor: the oracle."""
    return attention(kind, FluxAttnProcessor(), joint, rope)


def features(count: int) -> Tensor:
    # Large, so that attention is far from a plain mean and depends on where its keys are.
    return 4 * torch.randn(2, TEXT + count, FACTS.hidden)


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_left_coarse_it_is_ordinary_attention(kind: str) -> None:
    every, joint = list(range(COARSE.tokens)), features(FINE.tokens)
    rope = rope_of(every)
    order = MixedOrder(text=TEXT, kept=0, refined=COARSE.tokens)
    found = attention(kind, AlignedProcessor(order), joint, rope)
    torch.testing.assert_close(found, ordinary(kind, joint, rope[:2]), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_fine_image_tokens_have_ordinary_attention(kind: str) -> None:
    joint, rope = features(COARSE.tokens), rope_of([])
    order = MixedOrder(text=TEXT, kept=COARSE.tokens, refined=0)
    found = attention(kind, AlignedProcessor(order), joint, rope)
    coarse, fine = (ordinary(kind, joint, half) for half in (rope[2:], rope[:2]))
    torch.testing.assert_close(found[:, TEXT:], coarse[:, TEXT:], **CLOSE)
    torch.testing.assert_close(found[:, :TEXT], fine[:, :TEXT], **CLOSE)
    one_frame = attention(kind, AlignedProcessor(order), joint, rope[2:] * 2)
    torch.testing.assert_close(one_frame, coarse, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_fine_queries_see_everything_in_fine_units(kind: str) -> None:
    joint, rope = features(12), rope_of(REFINED)
    found = attention(kind, AlignedProcessor(ORDER), joint, rope)
    expected = ordinary(kind, joint, rope[:2])
    for part in (slice(TEXT), slice(ORDER.fine, None)):
        torch.testing.assert_close(found[:, part], expected[:, part], **CLOSE)
    own = slice(TEXT, ORDER.fine)
    assert (found[:, own] - expected[:, own]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_queries_see_a_whole_coarse_grid(kind: str) -> None:
    """Where the children are like their parent, exactly what they would see without any."""
    whole = features(COARSE.tokens)
    text, tokens = whole[:, :TEXT], whole[:, TEXT:]
    children = tokens[:, REFINED].repeat_interleave(4, dim=1)
    joint = torch.cat([text, tokens[:, KEPT], children], dim=1)
    tables = PATCHIFIER.tables(PATCHIFIER.positions(COARSE))
    expected = ordinary(kind, whole, (tables["rope_cos"], tables["rope_sin"]))[:, TEXT:][:, KEPT]
    own = slice(TEXT, ORDER.fine)

    def coarse_rows() -> Tensor:
        return attention(kind, AlignedProcessor(ORDER), joint, rope_of(REFINED))[:, own]

    torch.testing.assert_close(coarse_rows(), expected, **CLOSE)
    unseen = [ORDER.fine + child for child in range(8) if child % 4]
    joint[:, unseen] = 100.0
    torch.testing.assert_close(coarse_rows(), expected, **CLOSE)
    joint[:, ORDER.fine] = -joint[:, ORDER.fine]
    assert (coarse_rows() - expected).abs().max() > 1e-2


# --- the graph --------------------------------------------------------------------------------


def graph_of(refined: int = 2, tokens: int = 12, **choices: Any) -> tuple[Any, Any]:
    """The graph of a signature, both for batches of two."""
    signature = full_signature(FACTS, tokens, TEXT, refined=refined, batch=2, **choices)
    return graph_from_signature(model_of(), signature), signature


def example(signature: Any, refined: list[int]) -> dict[str, Tensor]:
    inputs = {spec.name: torch.randn(spec.shape) for spec in signature.inputs}
    inputs["timestep"] = torch.rand(inputs["timestep"].shape)
    return inputs | mixed_tables(PATCHIFIER, mixed_of(refined), "aligned")


def test_the_signature_has_tables_of_both_frames() -> None:
    dev = full_signature(FLUX_DEV, 768 + 4 * 256, 512, refined=256)
    assert [str(spec) for spec in dev.inputs[-4:]] == [
        "rope_cos float32[2304,128]",
        "rope_sin float32[2304,128]",
        "rope_cos_coarse float32[1536,128]",
        "rope_sin_coarse float32[1536,128]",
    ]
    for refined in (-1, 4):
        with pytest.raises(InvalidPlan, match="15 tokens"):
            full_signature(FLUX_DEV, 15, 512, refined=refined)


@pytest.mark.parametrize(("tokens", "refined"), [(12, 2), (9, 1), (24, 6), (21, 5)])
@pytest.mark.parametrize("feature", [False, True])
def test_the_graph_is_rebuilt_from_its_signature(tokens: int, refined: int, feature: bool) -> None:
    graph, signature = graph_of(refined, tokens, feature=feature)
    assert isinstance(graph, AlignedGraph)
    outputs = graph(*example(signature, list(range(refined))).values())
    assert [tuple(value.shape) for value in outputs] == [spec.shape for spec in signature.outputs]
    order = graph.transformer.transformer_blocks[0].attn.processor.order
    assert (order.text, order.kept, order.refined) == (TEXT, tokens - 4 * refined, refined)


def test_a_whole_fine_grid_is_the_ordinary_graph() -> None:
    graph, signature = graph_of(COARSE.tokens, FINE.tokens)
    inputs = example(signature, list(range(COARSE.tokens)))
    (found,) = graph(*inputs.values())
    (expected,) = FullGraph(model_of())(*list(inputs.values())[:-2])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_every_input_matters() -> None:
    graph, signature = graph_of()
    inputs = example(signature, REFINED)
    (velocity,) = graph(*inputs.values())
    for name, value in example(signature, [0, 4]).items():
        (changed,) = graph(*(inputs | {name: value}).values())
        assert (changed - velocity).abs().max() > 1e-4, name


def test_tables_of_another_mixed_grid_are_refused() -> None:
    graph, signature = graph_of()
    inputs = example(signature, REFINED)
    one_more = mixed_tables(PATCHIFIER, mixed_of([0, 1, 5]), "aligned")
    with pytest.raises(RuntimeError):
        graph(*(inputs | one_more).values())
    with pytest.raises(TypeError, match="7 inputs given; expected 9"):
        graph(*list(inputs.values())[:-2])


def test_the_order_of_tokens_and_of_families_is_no_matter() -> None:
    graph, signature = graph_of()
    inputs = example(signature, REFINED)
    (velocity,) = graph(*inputs.values())
    order = torch.tensor([2, 0, 3, 1, 8, 9, 10, 11, 4, 5, 6, 7])
    rows = torch.cat([torch.arange(TEXT), TEXT + order])
    families = torch.cat([rows[: TEXT + 4], torch.tensor([TEXT + 5, TEXT + 4])])
    moved = {"latents": inputs["latents"][:, order]}
    moved |= {name: inputs[name][rows] for name in ("rope_cos", "rope_sin")}
    moved |= {name: inputs[name][families] for name in COARSE_ROPE}
    (permuted,) = graph(*(inputs | moved).values())
    torch.testing.assert_close(permuted, velocity[:, order], **CLOSE)


def test_half_precision_weights_keep_float32_inputs_and_outputs() -> None:
    graph, signature = graph_of()
    inputs = example(signature, REFINED)
    (exact,) = graph(*inputs.values())
    half = Module.to(model_of(), torch.bfloat16)
    (velocity,) = graph_from_signature(half, signature)(*inputs.values())
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - exact).abs().max() < 0.1


# --- weights ----------------------------------------------------------------------------------


def test_other_graphs_over_the_transformer_stay_as_they_are() -> None:
    model = model_of()
    signature = full_signature(FACTS, 12, TEXT, refined=2)
    inputs = example(signature, REFINED)
    plain, given = FullGraph(model), list(inputs.values())[:-2]
    (before,) = plain(*given)
    aligned = graph_from_signature(model, signature)
    aligned(*inputs.values())
    assert torch.equal(plain(*given)[0], before)
    mine, others = dict(aligned.named_parameters()), dict(plain.named_parameters())
    assert mine.keys() == others.keys()
    assert all(mine[name] is others[name] for name in mine)


def test_exported_it_is_the_eager_graph_over_the_same_file_of_weights(tmp_path: Path) -> None:
    model = model_of()
    signatures = {
        "stage1.full": full_signature(FACTS, 6, TEXT),
        "stage2.full": full_signature(FACTS, 12, TEXT, refined=2),
    }
    graphs = [
        StageGraph(
            name=name,
            signature=signature,
            module=graph_from_signature(model, signature),
            onnx=None,
            weights=None,
            source=tmp_path,
            family="flux",
        )
        for name, signature in signatures.items()
    ]
    plain, aligned = export_stages(graphs, tmp_path / "both")
    assert aligned.weights is not None
    alone = export_stages(graphs[:1], tmp_path / "alone")[0].weights
    assert alone is not None
    assert aligned.weights == plain.weights
    assert aligned.weights.read_bytes() == alone.read_bytes()

    library, folder = backend("onnxruntime"), tmp_path / "bundle"
    folder.mkdir()
    files = library.build(aligned, BuildOptions(folder=folder))
    engine = Engine(
        name=aligned.name, family=aligned.family, files=files, signature=aligned.signature
    )
    inputs = example(aligned.signature, REFINED)
    with torch.no_grad(), library.load(folder, engine) as runner:
        found = runner(inputs)["velocity"]
        torch.testing.assert_close(found, aligned.module(*inputs.values())[0], atol=1e-4, rtol=0)
