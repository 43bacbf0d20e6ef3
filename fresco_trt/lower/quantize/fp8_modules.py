"""A quantised transformer for engines that torch makes: FP8 codes in place of linear layers.

Beside ``quantize.py``, which does the same to exported graphs, with the same codes and scales.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.lower.quantize.qdq import input_scale, weight_scale
from fresco_trt.lower.quantize.simulation import shallow
from fresco_trt.models.fp8 import CodedLinear, Fp8Linear, RowwiseFp8Linear, exchange
from fresco_trt.models.registry import family_named

if TYPE_CHECKING:
    from torch import nn

    from fresco_trt.backends.base import StageGraph
    from fresco_trt.bundle.amax import LayerAmax
    from fresco_trt.lower.quantize.qdq import Quantizer
    from fresco_trt.plan.recipes import Recipe


def with_fp8_modules(transformer: nn.Module, quantizer: Quantizer) -> nn.Module:
    """A copy of ``transformer`` with codes in every layer that has amax; all else is shared.

    The quantiser's account is given the bytes of each. Its recipe must be one of FP8 codes. Raises
    ValueError for one with attention, which torch runs as a single function.
    """
    if quantizer.recipe.attention:
        raise ValueError(f"{quantizer.recipe.name} quantises attention; torch multiplies no codes")
    copied, account = shallow(transformer), quantizer.account
    for name, found in quantizer.amax.layers.items():
        layer = _fp8_module(transformer.get_submodule(name), found, quantizer.recipe)
        exchange(copied, name, layer)
        account.stored[name] = layer.weight.nbytes + layer.weight_scale.nbytes
        account.float32[name] = 4 * layer.weight.numel()
    return copied


def products_of(graph: StageGraph) -> Counter[str]:
    """Linear layers that a graph runs, by what they multiply in; attention's products aside."""
    kinds: Counter[str] = Counter()
    graphs = family_named(graph.family).graphs
    for part in graphs.cut(graph.module, graph.signature).parts:
        for layer in part.layers:
            for module in layer.modules():
                if isinstance(module, CodedLinear):
                    kinds["fp8"] += 1
                elif isinstance(module, torch.nn.Linear):
                    kinds["float"] += 1
    return kinds


def _fp8_module(linear: Any, found: LayerAmax, recipe: Recipe) -> CodedLinear:
    """The codes of :func:`fresco_trt.lower.quantize.qdq.encode`, made where the weight is."""
    weight = linear.weight.detach()
    scale = weight_scale(found, recipe).to(weight.device)
    units = weight.float() / (scale[:, None] if recipe.channels else scale)
    codes = units.clamp(-recipe.top, recipe.top).to(torch.float8_e4m3fn)
    if recipe.tokens:
        return RowwiseFp8Linear(codes, scale, linear.bias)
    entering = torch.full_like(scale, input_scale(found, recipe))
    return Fp8Linear(codes, scale, entering, linear.bias)
