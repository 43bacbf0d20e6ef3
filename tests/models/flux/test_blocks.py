"""Laws of the cut: the parts make up the graph bit for bit, over the graph's own weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.models.cutting import StageCut
from fresco_trt.models.flux.blocks import cut
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.plan.signature import GraphSignature

FACTS = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=2, single_blocks=3, text_tokens=5, text_dim=32
)
TOKENS = 12

SIGNATURES = {
    "full": full_signature(FACTS, TOKENS, 5, batch=2),
    "feature": full_signature(FACTS, TOKENS, 5, feature=True),
    "residual": full_signature(FACTS, TOKENS, 5, feature=True, site="trunk"),
    "bypass": bypass_signature(FACTS, TOKENS, 5),
    "trunk bypass": bypass_signature(FACTS, TOKENS, 5, site="trunk"),
    "aligned": full_signature(FACTS, TOKENS, 5, refined=2, feature=True),
    "references": full_signature(FACTS, TOKENS, 5, references=7, feature=True, batch=2),
    "references, residual": full_signature(
        FACTS, TOKENS, 5, references=7, feature=True, site="trunk"
    ),
    "references, trunk bypass": bypass_signature(FACTS, TOKENS, 5, references=7, site="trunk"),
}


def inputs_of(signature: GraphSignature) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}


def cut_of(model: Any, signature: GraphSignature) -> tuple[Any, StageCut]:
    graph = graph_from_signature(model, signature)
    return graph, cut(graph, signature)


def layers_of(parts: StageCut) -> dict[str, Any]:
    return {part.kind: part.layers for part in parts.parts}


@pytest.mark.parametrize("kind", SIGNATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_make_up_the_graph_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    signature = SIGNATURES[kind]
    graph, parts = cut_of(random_transformer(FACTS, dtype=dtype), signature)
    inputs = inputs_of(signature)
    with torch.no_grad():
        expected = graph(*inputs.values())
        found = parts.run(layers_of(parts), inputs)
    assert list(found) == [spec.name for spec in signature.outputs]
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))


def test_a_model_of_single_stream_blocks_alone_is_cut_too() -> None:
    signature = SIGNATURES["residual"]
    model = random_transformer(FACTS, layers=(0, 2))
    graph, parts = cut_of(model, signature)
    inputs = inputs_of(signature)
    with torch.no_grad():
        expected = graph(*inputs.values())
        found = parts.run(layers_of(parts), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_every_layer_keeps_to_its_signature(kind: str, dtype: str) -> None:
    model = random_transformer(FACTS, dtype=getattr(torch, dtype))
    for part in cut_of(model, SIGNATURES[kind])[1].parts:
        inputs = [
            torch.ones(spec.shape, dtype=getattr(torch, spec.dtype))
            for spec in part.signature.inputs
        ]
        for layer in part.layers:
            with torch.no_grad():
                outputs = layer(*inputs)
            found = [(tuple(each.shape), str(each.dtype)) for each in outputs]
            wanted = [(spec.shape, f"torch.{spec.dtype}") for spec in part.signature.outputs]
            assert found == wanted
            assert all(each.is_contiguous() for each in outputs)


def test_a_part_serves_every_block_of_its_kind() -> None:
    model = random_transformer(FACTS)
    wanted = {"condition": 1, "enter": 1, "double": 2, "single": 3, "leave": 1}
    found = cut_of(model, SIGNATURES["full"])[1].parts
    assert {part.kind: len(part.layers) for part in found} == wanted
    bypass = cut_of(model, SIGNATURES["bypass"])[1].parts
    assert [part.kind for part in bypass] == ["condition", "leave"]
    trunk = {
        part.kind: len(part.layers) for part in cut_of(model, SIGNATURES["trunk bypass"])[1].parts
    }
    assert trunk == {"condition": 1, "enter": 1, "double": 1, "leave": 1}


def test_only_what_differs_has_another_name_or_signature() -> None:
    """What two graphs of one size have in common is the same part, to be compiled once."""
    model = random_transformer(FACTS)
    known: dict[str, GraphSignature] = {}
    for kind in ("feature", "residual", "bypass", "trunk bypass", "aligned"):
        for part in cut_of(model, SIGNATURES[kind])[1].parts:
            assert known.setdefault(part.name, part.signature) == part.signature
    aligned = {"double-aligned-12", "single-aligned-12"}
    assert set(known) == {"condition", "enter-12", "double-12", "single-12", "leave-12"} | aligned


@pytest.mark.parametrize("kind", SIGNATURES)
def test_weights_are_the_transformers_own(kind: str) -> None:
    model = random_transformer(FACTS)
    own = {value.data_ptr() for value in model.state_dict().values()}
    parts = cut_of(model, SIGNATURES[kind])[1].parts
    used = [v.data_ptr() for p in parts for layer in p.layers for v in layer.state_dict().values()]
    assert set(used) <= own
    assert len(set(used)) == len(used)
    if kind in ("full", "aligned"):
        assert set(used) == own
