"""A quantised model in torch: every product rounded as the engines round it, in float32.

Beside the exported graphs, from the same amax and the same codes. It stands in for engines that
this machine cannot run, and tells what one group of layers alone costs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fresco_trt.lower.quantize.attention import attention_scales
from fresco_trt.lower.quantize.qdq import encode, input_scale
from fresco_trt.models.fp8 import exchange, token_scale
from fresco_trt.models.registry import family_of, model_facts

if TYPE_CHECKING:
    from fresco_trt.bundle.amax import Amax, AttentionAmax, LayerAmax
    from fresco_trt.plan.recipes import Recipe

_LOWEST = -128.0  # the int8 that symmetric scales leave unused, and saturation still reaches


def simulate(
    transformer: nn.Module,
    amax: Amax,
    recipe: Recipe,
    parts: Collection[str] | None = None,
) -> nn.Module:
    """A copy of a float32 ``transformer`` with ``parts`` (None: all that have amax) rounded:
    paths of linear layers and of attentions.

    All else is shared with the original, which is not changed.
    """
    copied = shallow(transformer)
    for name, found in amax.layers.items():
        if parts is None or name in parts:
            exchange(copied, name, RoundedLinear(copied.get_submodule(name), found, recipe))
    family = family_of(model_facts(amax.record.model))
    put = family.graphs.attention(copied) if amax.attention else {}
    for name, attention in amax.attention.items():
        if parts is None or name in parts:
            put[name](RoundedProducts(attention, recipe))
    return copied


def shallow(module: nn.Module) -> nn.Module:
    """A copy whose layers may be replaced, over the same tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class RoundedLinear(nn.Module):
    """A linear layer of codes: inputs [...,in] are rounded in each call, the weight once."""

    def __init__(self, linear: Any, found: LayerAmax, recipe: Recipe) -> None:
        super().__init__()
        codes, scales = encode(linear.weight.detach().float().numpy().T, found, recipe)
        self.weight = torch.from_numpy(codes.astype("float32") * scales).T.contiguous()
        self.bias, self.smooth = linear.bias, found.smooth
        self.scale, self.recipe = input_scale(found, recipe), recipe

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` [...,in] to [...,out], float32."""
        smoothed = inputs if self.smooth is None else inputs * self.smooth
        scale = token_scale(smoothed) if self.recipe.tokens else self.scale
        codes = _rounded(smoothed / scale, self.recipe)
        return nn.functional.linear(codes * scale, self.weight, self.bias)


class RoundedProducts(nn.Module):
    """The two products of attention, every operand rounded to codes in each call."""

    def __init__(self, found: AttentionAmax, recipe: Recipe) -> None:
        super().__init__()
        self.scales, self.recipe = attention_scales(found, recipe), recipe

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As torch's ``scaled_dot_product_attention``, float32."""
        # Graphs scale query and key before they are rounded, and their amax likewise: the codes
        # are the same.
        scores = self._codes("query", query) @ self._codes("key", key).transpose(-1, -2)
        weights = torch.softmax(scores * query.shape[-1] ** -0.5, dim=-1)
        return self._codes("softmax", weights) @ self._codes("value", value)

    def _codes(self, kind: str, values: Tensor) -> Tensor:
        scale = self.scales[kind]
        return _rounded(values / scale, self.recipe) * scale


def _rounded(values: Tensor, recipe: Recipe) -> Tensor:
    if recipe.precision == "int8":
        return values.round().clamp(_LOWEST, recipe.top)
    return values.clamp(-recipe.top, recipe.top).to(torch.float8_e4m3fn).to(torch.float32)
