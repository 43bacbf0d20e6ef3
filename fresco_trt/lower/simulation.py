"""A quantised model in torch: every product rounded as the engines round it, in float32.

Beside the exported graphs, from the same ranges and the same codes. It stands in for engines that
this machine cannot run, and tells what one group of layers alone costs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fresco_trt.lower.quantize import encode, input_scale
from fresco_trt.models.fp8 import exchange

if TYPE_CHECKING:
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.ranges import LayerRange, Ranges

_LOWEST = -128.0  # the int8 that symmetric scales leave unused, and saturation still reaches


def simulate(
    transformer: nn.Module,
    ranges: Ranges,
    recipe: Recipe,
    layers: Collection[str] | None = None,
) -> nn.Module:
    """A copy of a float32 ``transformer`` with ``layers`` (None: all that have ranges) rounded.

    All else is shared with the original, which is not changed.
    """
    copied = shallow(transformer)
    for name, found in ranges.layers.items():
        if layers is None or name in layers:
            exchange(copied, name, RoundedLinear(copied.get_submodule(name), found, recipe))
    return copied


def shallow(module: nn.Module) -> nn.Module:
    """A copy whose layers may be replaced, over the same tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class RoundedLinear(nn.Module):
    """A linear layer of codes: inputs [...,in] are rounded in each call, the weight once."""

    def __init__(self, linear: Any, found: LayerRange, recipe: Recipe) -> None:
        super().__init__()
        codes, scales = encode(linear.weight.detach().float().numpy().T, found, recipe)
        self.weight = torch.from_numpy(codes.astype("float32") * scales).T.contiguous()
        self.bias, self.smooth = linear.bias, found.smooth
        self.scale, self.recipe = input_scale(found, recipe), recipe

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` [...,in] to [...,out], float32."""
        smoothed = inputs if self.smooth is None else inputs * self.smooth
        codes = _rounded(smoothed / self.scale, self.recipe)
        return nn.functional.linear(codes * self.scale, self.weight, self.bias)


def _rounded(values: Tensor, recipe: Recipe) -> Tensor:
    if recipe.precision == "int8":
        return values.round().clamp(_LOWEST, recipe.top)
    return values.clamp(-recipe.top, recipe.top).to(torch.float8_e4m3fn).to(torch.float32)
