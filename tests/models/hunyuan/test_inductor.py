"""A HunyuanVideo block of each kind, compiled by inductor, computes what torch does.

Both kinds are one piece here, though engines have one for each: that is half of the compiler's
work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fresco_trt.backends.inductor.backend import CompiledLayer
from fresco_trt.backends.inductor.build import compile_layer, weights_of
from fresco_trt.backends.inductor.unpacking import unpacked
from fresco_trt.models.hunyuan.blocks import cut
from fresco_trt.models.hunyuan.graph import graph_from_signature
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.signatures import full_signature
from tests.models.hunyuan.small import CLIP, SMALL
from tests.once import compiled_once, operators_once

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SIGNATURE = full_signature(SMALL, CLIP.tokens, SMALL.text_tokens)


class Both(nn.Module):
    """A double-stream block, then a single-stream one, of the same inputs."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(
        self, tokens: Tensor, context: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, by: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams = self.first(tokens, context, bias, cos, sin, by)
        found: tuple[Tensor, Tensor] = self.second(*streams, bias, cos, sin, by)
        return found


def test_a_compiled_block_of_each_kind_computes_what_torch_does(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph: Any = graph_from_signature(load_transformer("random", SMALL), SIGNATURE)
    parts = {part.kind: part for part in cut(graph, SIGNATURE, flex=True).parts}
    double, single = parts["double"], parts["single"]
    assert double.signature == single.signature
    blocks, path = Both(double.layers[0], single.layers[0]), tmp_path / "blocks.pt2"
    with compiled_once(tmp_path_factory), operators_once():
        compile_layer(blocks, double.signature, path, "cpu", 1)
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(spec.shape, generator=generator) for spec in double.signature.inputs]
    compiled = CompiledLayer(unpacked(path), weights_of(blocks))
    with torch.no_grad():
        expected = blocks(*inputs)
    for each, other in zip(compiled(*inputs), expected, strict=True):
        torch.testing.assert_close(each, other, atol=1e-4, rtol=1e-5)
