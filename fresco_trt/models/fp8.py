"""Linear layers of FP8 codes: inputs and weight rounded to E4M3 and multiplied in it, by torch.

What a transformer quantised by a recipe of FP8 has in place of its linear layers where its engines
are made by torch. Which of the two kinds a layer is, a safetensors file tells by the scale that no
other kind has: :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TOP = 448.0
"""Largest magnitude of E4M3."""

LEAST = 1e-12
"""Smallest magnitude that a token's codes reach up to: one of zeros alone has a scale, too."""


class CodedLinear(nn.Module):
    """A linear layer over ``weight`` float8_e4m3fn [out,in] and its ``weight_scale`` float32, what
    a code of 1 stands for. ``bias`` [out] has the dtype of the layer's inputs.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


class Fp8Linear(CodedLinear):
    """One scale of the weight, and one of all inputs: ``weight_scale`` and ``input_scale`` are
    float32 [].
    """

    input_scale: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, input_scale: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__(weight, weight_scale, bias)
        self.register_buffer("input_scale", input_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` [...,in] to [...,out], in their dtype; those over 448 scales saturate."""
        codes = _codes(inputs.flatten(0, -2).float() / self.input_scale)
        scales = (self.input_scale, self.weight_scale)
        product = _product(codes, self.weight, scales, inputs.dtype)
        product = product.reshape(*inputs.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


class RowwiseFp8Linear(CodedLinear):
    """One scale for every row: ``weight_scale`` is float32 [out], and each token is scaled by its
    own largest magnitude, found when it is rounded.

    The product itself knows no scales: a library that is given some for rows may multiply slower,
    most of all where tokens are few. They come after it with the bias, which a compiler makes one
    kernel with whatever follows. ``unit_scale`` is float32 [], 1: what the product is told.
    """

    unit_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, weight_scale, bias)
        # A tensor of the layer, for one that is made in each call is a kernel in each call.
        self.register_buffer("unit_scale", torch.ones((), device=weight_scale.device))

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` [...,in] to [...,out], in their dtype."""
        tokens = inputs.flatten(0, -2).float()
        scale = token_scale(tokens)
        # Sums of codes reach 448 * 448 for each input: bfloat16 holds those, float16 does not.
        dtype = torch.float32 if inputs.dtype == torch.float16 else inputs.dtype
        scales = (self.unit_scale, self.unit_scale)
        product = _product(_codes(tokens / scale), self.weight, scales, dtype)
        outputs = product.float() * scale * self.weight_scale
        if self.bias is not None:
            outputs = outputs + self.bias.float()
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], -1)


def token_scale(tokens: Tensor) -> Tensor:
    """Of each token of ``tokens`` [...,in], float32, its largest magnitude in codes: [...,1]."""
    return tokens.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST) / TOP


def _codes(units: Tensor) -> Tensor:
    return units.clamp(-TOP, TOP).to(torch.float8_e4m3fn)


def _product(
    codes: Tensor, weight: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """Codes [N,in] by a weight's [out,in], each with one scale, [N,out]."""
    if codes.device.type == "cpu":
        # No CPU multiplies codes, and torch's stand-in takes seconds where this takes
        # milliseconds. The products are those of the same numbers, added in float32 as well.
        return ((codes.float() * scales[0]) @ (weight.float() * scales[1]).t()).to(dtype)
    product: Tensor = torch._scaled_mm(
        codes,
        weight.t(),
        scale_a=scales[0],
        scale_b=scales[1],
        out_dtype=dtype,
        # Sums stay in the tensor cores' own precision, which is faster. What that costs in
        # exactness was not measured.
        use_fast_accum=True,
    )
    return product


# --- layers in a transformer ------------------------------------------------------------------


def exchange(transformer: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the transformer's layer ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(transformer.get_submodule(parent), child, layer)


def make_room(transformer: nn.Module, names: Iterable[str]) -> None:
    """Exchange the layers that have codes, by the ``names`` of stored tensors, for such that the
    tensors can be loaded into.
    """
    for name in names:
        path, _, kind = name.rpartition(".")
        if kind in KINDS:
            exchange(transformer, path, KINDS[kind](transformer.get_submodule(path)))


def _empty(linear: Any) -> Fp8Linear:
    scale = torch.empty((), dtype=torch.float32, device="meta")
    return Fp8Linear(_empty_codes(linear), scale, scale.clone(), linear.bias)


def _empty_rowwise(linear: Any) -> RowwiseFp8Linear:
    scales = torch.empty(linear.out_features, dtype=torch.float32, device="meta")
    return RowwiseFp8Linear(_empty_codes(linear), scales, linear.bias)


def _empty_codes(linear: Any) -> Tensor:
    return torch.empty_like(linear.weight, dtype=torch.float8_e4m3fn, device="meta")


KINDS: Mapping[str, Any] = {"input_scale": _empty, "unit_scale": _empty_rowwise}
"""What makes a layer without values, by the scale that only its kind has."""
