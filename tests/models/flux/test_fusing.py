"""Laws of fusing: the same numbers but for rounding, over the same memory, and only where it can.

The pieces compiled from fused blocks are held to eager in the tests of the backend inductor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fresco_trt.backends.inductor.build import shapes_of
from fresco_trt.backends.transformer import WEIGHTS
from fresco_trt.lower.weights import write_source
from fresco_trt.models.cutting import StageCut
from fresco_trt.models.flux.attention import attention_paths, put_products
from fresco_trt.models.flux.blocks import cut
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.fusing import NormedProjection, fused, join_weights
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.models.fp8 import TOP, Fp8Linear, RowwiseFp8Linear, exchange
from fresco_trt.plan.signature import GraphSignature

FACTS = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=2, single_blocks=2, text_tokens=5, text_dim=32
)
SIGNATURES = {
    "whole": full_signature(FACTS, 12, 5, batch=2),
    "mixed": full_signature(FACTS, 12, 5, refined=2, feature=True),
    "trunk": bypass_signature(FACTS, 12, 5, site="trunk"),
}
GROUPS = (
    ("transformer_blocks.0", "norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
    (
        "transformer_blocks.0",
        "norm1_context",
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ),
    ("single_transformer_blocks.0", "norm", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
)
"""Blocks, and in each a norm with the layers that take what it gives."""


class Products(nn.Module):
    """torch's own, put into every attention in place of diffusers' processor."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value)


def model_of(kind: str = "plain") -> Any:
    model = random_transformer(FACTS)
    for path in attention_paths(model) if kind == "products" else ():
        put_products(model.get_submodule(path), Products())
    for path, layer in [*model.named_modules()] if kind == "fp8" else ():
        if isinstance(layer, nn.Linear) and "blocks" in path:
            exchange(model, path, in_rows_of_codes(layer))
    return model


def in_rows_of_codes(layer: nn.Linear) -> RowwiseFp8Linear:
    scale = layer.weight.abs().amax(dim=1) / TOP
    codes = (layer.weight / scale[:, None]).to(torch.float8_e4m3fn)
    return RowwiseFp8Linear(codes, scale, layer.bias)


def cut_of(model: nn.Module, signature: GraphSignature, *, fuse: bool = True) -> StageCut:
    return cut(graph_from_signature(model, signature), signature, fuse=fuse)


def inputs_of(signature: GraphSignature) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {spec.name: torch.randn(spec.shape, generator=generator) for spec in signature.inputs}


def outputs_of(parts: StageCut) -> dict[str, Tensor]:
    layers = {part.kind: part.layers for part in parts.parts}
    with torch.no_grad():
        return parts.run(layers, inputs_of(parts.signature))


def norms_joined(layer: nn.Module) -> list[str]:
    """Where a layer has one product of several."""
    return [name for name, each in layer.named_modules() if isinstance(each, NormedProjection)]


def places(model: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in model.state_dict().items()}


def bytes_of(*models: nn.Module) -> int:
    """Of the memory that their weights are in, each once."""
    memory = [v.untyped_storage() for model in models for v in model.state_dict().values()]
    return sum({each.data_ptr(): each.nbytes() for each in memory}.values())


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "products", "fp8"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_fused_graph_gives_the_same_but_for_rounding(kind: str, model: str) -> None:
    signature = SIGNATURES[kind]
    wanted = outputs_of(cut_of(model_of(model), signature, fuse=False))
    parts = cut_of(model_of(model), signature)
    found = {part.kind: norms_joined(part.layers[0]) for part in parts.parts}
    assert found.get("double") == ["block.norm1", "block.norm1_context"]
    assert kind == "trunk" or found["single"] == ["block.norm"]
    torch.testing.assert_close(outputs_of(parts), wanted, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("model_kind", ["plain", "fp8"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_the_graph_itself_gives_what_it_gave_bit_for_bit(kind: str, model_kind: str) -> None:
    signature = SIGNATURES[kind]
    model = model_of(model_kind)
    graph, inputs = graph_from_signature(model, signature), inputs_of(signature).values()
    with torch.no_grad():
        before = graph(*inputs)
        cut(graph, signature, fuse=True)
        assert all(map(torch.equal, graph(*inputs), before))


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_the_layers_weights_are_rows_of_the_fused_one(kind: str) -> None:
    model = model_of(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    size = bytes_of(model)
    parts = cut_of(model, SIGNATURES["whole"])
    layers = [layer for part in parts.parts for layer in part.layers]
    assert bytes_of(model) == bytes_of(model, *layers) == size
    assert kind == "fp8" or bytes_of(*layers) == size  # each layer of codes has a unit of its own
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for path, norm, names in GROUPS:
        block = model.get_submodule(path)
        one = fused(block).get_submodule(f"{norm}.projection")
        for each, whole in one.state_dict().items():
            rows = 0
            for name in names if whole.ndim > 0 else ():
                part = block.get_submodule(name).state_dict()[each]
                assert part.data_ptr() == whole[rows:].data_ptr()
                assert part.is_contiguous()
                rows += len(part)
            assert whole.ndim == 0 or rows == len(whole)
            assert whole.untyped_storage().nbytes() == whole.nbytes


def test_a_weight_changed_in_place_is_changed_for_both() -> None:
    model, other = model_of(), model_of()
    parts = cut_of(model, SIGNATURES["whole"])
    before = outputs_of(parts)["velocity"]
    for each in (model, other):
        each.transformer_blocks[1].attn.add_k_proj.weight.mul_(3.0)
        each.single_transformer_blocks[0].proj_mlp.bias.add_(1.0)
    wanted = outputs_of(cut_of(other, SIGNATURES["whole"], fuse=False))["velocity"]
    found = outputs_of(parts)["velocity"]
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-5)


def test_weights_are_moved_once() -> None:
    """A graph captured over them holds their addresses when the next stage is opened."""
    model = model_of()
    join_weights(model, "cpu")
    joined = places(model)
    for signature in SIGNATURES.values():
        cut_of(model, signature)
        assert places(model) == joined
    join_weights(model.to("cpu"), "cpu")
    assert places(model) == joined
    model.single_transformer_blocks[0].proj_mlp.weight.data = torch.ones(256, 64)
    parts = cut_of(model, SIGNATURES["whole"])
    single = next(part.layers[0] for part in parts.parts if part.kind == "single")
    assert single.get_parameter("block.norm.projection.weight")[-256:].eq(1.0).all()


@pytest.mark.parametrize(("names", "rows"), [("qkv", 193), ("kqv", 192), ("qkk", 192)])
def test_weights_that_lie_together_otherwise_are_moved_too(names: str, rows: int) -> None:
    """In a file they may follow one another by chance, in any order and with others behind."""
    model, memory = model_of(), torch.randn(rows, 64)
    attn = model.transformer_blocks[0].attn
    for index, name in enumerate(names):
        attn.get_submodule(f"to_{name}").weight.data = memory[64 * index :][:64]
    wanted = outputs_of(cut_of(model, SIGNATURES["trunk"], fuse=False))
    parts = cut_of(model, SIGNATURES["trunk"])
    weight = fused(model.transformer_blocks[0]).get_parameter("norm1.projection.weight")
    assert weight.untyped_storage().nbytes() == 192 * weight[0].nbytes
    torch.testing.assert_close(outputs_of(parts), wanted, atol=2e-6, rtol=2e-5)


def test_only_one_fused_layer_is_in_memory_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, empty = model_of(), torch.empty
    size, peaks = bytes_of(model), list[int]()
    largest = max(
        sum(model.get_submodule(f"{path}.{name}").weight.nbytes for name in names)
        for path, _, names in GROUPS
    )

    def watched(*shape: Any, **options: Any) -> Tensor:
        whole = empty(*shape, **options)
        peaks.append(bytes_of(model) + whole.nbytes)
        return whole

    monkeypatch.setattr(torch, "empty", watched)
    join_weights(model, "cpu")
    assert len(peaks) == 2 * (2 * FACTS.double_blocks + FACTS.single_blocks)
    assert max(peaks) == size + largest
    assert bytes_of(model) == size


def test_a_fused_transformer_is_stored_as_it_was(tmp_path: Path) -> None:
    model = model_of()
    names = ("config.json", WEIGHTS)
    before = [(write_source(model, tmp_path / "one") / name).read_bytes() for name in names]
    cut_of(model, SIGNATURES["whole"])
    after = [(write_source(model, tmp_path / "two") / name).read_bytes() for name in names]
    assert after == before


def test_a_layer_without_memory_is_fused_as_one_with_weights() -> None:
    """What is compiled from shapes alone takes the weights of the real layers."""
    parts = {
        kind: cut_of(model, SIGNATURES["whole"]).parts
        for kind, model in {"real": model_of(), "meta": model_of().to("meta")}.items()
    }
    for real, meta in zip(parts["real"], parts["meta"], strict=True):
        assert shapes_of(real.layers[-1]) == shapes_of(meta.layers[-1])


# --- layers that are left alone ---------------------------------------------------------------


class Adapted(nn.Linear):
    """As an adapter's layer is."""


def hooked(layer: Any) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


def coded(layer: Any) -> nn.Module:
    scale = torch.tensor(0.01)
    return Fp8Linear(layer.weight.to(torch.float8_e4m3fn), scale, scale.clone(), layer.bias)


class Wrapped(Tensor):
    """As a tensor that is stored in another form."""


def of_wrapped_weight(layer: Any) -> nn.Module:
    layer.weight = nn.Parameter(layer.weight.as_subclass(Wrapped), requires_grad=False)
    return layer


OTHERS: dict[str, Callable[[Any], nn.Module]] = {
    "hook": hooked,
    "codes": coded,
    "rows of codes": in_rows_of_codes,
    "adapter": lambda layer: Adapted(layer.in_features, layer.out_features),
    "no bias": lambda layer: nn.Linear(layer.in_features, layer.out_features, bias=False),
    "other dtype": lambda layer: layer.to(torch.float64),
    "other form": of_wrapped_weight,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_stay_as_they_are_and_those_beside_them(kind: str) -> None:
    model = model_of()
    for path, _, names in GROUPS[1:]:
        name = f"{path}.{names[1]}"
        exchange(model, name, OTHERS[kind](model.get_submodule(name)))
    before = places(model)
    double, single = (model.get_submodule(path) for path, *_ in GROUPS[1:])
    assert norms_joined(fused(double)) == ["norm1"]  # the picture's, not the text's
    assert fused(single) is single
    moved = {name for name, place in places(model).items() if place != before[name]}
    path, _, names = GROUPS[0]
    assert moved == {f"{path}.{name}.{each}" for name in names for each in ("weight", "bias")}
