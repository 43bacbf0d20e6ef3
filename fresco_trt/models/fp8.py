"""Linear layers of FP8 codes: inputs and weight rounded to E4M3 and multiplied in it, by torch.

What a transformer quantised by the recipe "fp8" has in place of its linear layers where its engines
are made by torch: the weight's codes with one scale, and one scale for the inputs. In a safetensors
file such a layer is told by the scale of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

TOP = 448.0
"""Largest magnitude of E4M3."""

_MARK = ".input_scale"


class Fp8Linear(nn.Module):
    """A linear layer over ``weight`` float8_e4m3fn [out,in].

    ``weight_scale`` and ``input_scale`` are float32 [], what a code of 1 stands for; ``bias`` [out]
    has the dtype of the layer's inputs.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, input_scale: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("input_scale", input_scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` [...,in] to [...,out], in their dtype; those over 448 scales saturate."""
        units = inputs.flatten(0, -2).float() / self.input_scale
        codes = units.clamp(-TOP, TOP).to(torch.float8_e4m3fn)
        product = self._product(codes, inputs.dtype)
        product = product.reshape(*inputs.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def _product(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes [N,in] by the weight's, [N,out]."""
        if codes.device.type == "cpu":
            # No CPU multiplies codes, and torch's stand-in takes seconds where this takes
            # milliseconds. The products are those of the same numbers, added in float32 as well.
            weight = self.weight.float() * self.weight_scale
            return ((codes.float() * self.input_scale) @ weight.t()).to(dtype)
        product: Tensor = torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            out_dtype=dtype,
        )
        return product


def exchange(transformer: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the transformer's layer ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(transformer.get_submodule(parent), child, layer)


def make_room(transformer: nn.Module, names: Iterable[str]) -> None:
    """Exchange the layers that have codes, by the ``names`` of stored tensors, for such that the
    tensors can be loaded into.
    """
    for name in names:
        if name.endswith(_MARK):
            path = name.removesuffix(_MARK)
            exchange(transformer, path, _empty(transformer.get_submodule(path)))


def _empty(linear: Any) -> Fp8Linear:
    scale = torch.empty((), dtype=torch.float32, device="meta")
    codes = torch.empty_like(linear.weight, dtype=torch.float8_e4m3fn, device="meta")
    return Fp8Linear(codes, scale, scale.clone(), linear.bias)
