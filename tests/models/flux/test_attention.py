"""Attention put together from its pieces: diffusers' own, whatever the products are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.gpu.engines import example_inputs
from fresco_trt.models.flux.attention import attention_paths, products_of, put_products
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import full_signature

TEXT = 5
FACTS = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=TEXT)
PATHS = ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")
GRIDS: list[dict[str, Any]] = [{}, {"refined": 2}]
"""Of a whole grid, where diffusers' processor is the other way, and of a mixed one."""


class Products(nn.Module):
    """torch's own, times ``factor``; keeps the shape of each call's queries, for copies too."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.calls: list[torch.Size] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.calls.append(query.shape)
        return self.factor * functional.scaled_dot_product_attention(query, key, value)


def velocity(model: nn.Module, grid: dict[str, Any]) -> Tensor:
    signature = full_signature(FACTS, 12, TEXT, **grid)
    with torch.no_grad():
        inputs = example_inputs(signature, "cpu").values()
        found: Tensor = graph_from_signature(model, signature)(*inputs)[0]
    return found


def model_of(products: Products | None = None) -> Any:
    model = random_transformer(FACTS, seed=0)
    for path in PATHS if products is not None else ():
        put_products(model.get_submodule(path), products)
    return model


def test_every_block_has_one_attention() -> None:
    assert set(attention_paths(model_of())) == set(PATHS)


@pytest.mark.parametrize("grid", GRIDS)
def test_torchs_products_put_in_change_nothing(grid: dict[str, Any]) -> None:
    products = Products()
    got = velocity(model_of(products), grid)
    assert len(products.calls) == len(PATHS) * (2 if grid else 1)
    torch.testing.assert_close(got, velocity(model_of(), grid), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_other_products_are_taken(grid: dict[str, Any]) -> None:
    doubled = velocity(model_of(Products(2.0)), grid)
    assert not torch.allclose(doubled, velocity(model_of(), grid), atol=1e-3)


def test_an_attention_has_torchs_products_until_others_are_put_in() -> None:
    attn, products = model_of().get_submodule(PATHS[0]), Products()
    assert products_of(attn) is functional.scaled_dot_product_attention
    put_products(attn, products)
    assert products_of(attn) is products
