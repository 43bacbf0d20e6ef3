"""From one resolution to another: pooling, lifting, Haar levels, cosines, and places on a token
grid.

Under every part of ``run/`` that knows two resolutions at once. Latents are [B,C,H,W], or
[B,C,F,H,W] of a clip: only height and width change, and every latent frame is treated alike. Pure
functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from fresco_trt.plan.grid import Grid

Details: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Detail bands (column, row, diagonal differences) of one Haar level, each [B,C,(F),H/2,W/2]."""


# --- down -------------------------------------------------------------------------------------


def block_mean(latents: Tensor, ratio: int) -> Tensor:
    """Means of blocks of ``ratio`` x ``ratio`` latent pixels: [B,C,(F),H/r,W/r]."""
    if latents.ndim == 4:
        pooled: Tensor = functional.avg_pool2d(latents, ratio)
        return pooled
    means = functional.avg_pool2d(latents.flatten(1, -3), ratio)
    return means.reshape(*latents.shape[:-2], *means.shape[-2:])


# --- up ---------------------------------------------------------------------------------------


def lift_nearest(x0: Tensor, ratio: int) -> Tensor:
    """Repeat every latent pixel ``ratio`` times per side; its block mean gives ``x0`` back."""
    return x0.repeat_interleave(ratio, dim=-2).repeat_interleave(ratio, dim=-1)


def lift_bilinear(x0: Tensor, ratio: int) -> Tensor:
    """Bilinear interpolation between pixel centres, edges repeated.

    Keeps constants, but is *not* undone by the block mean: at ratio 2 the mean of the children is
    ``x0`` blurred by (1/8, 3/4, 1/8) per axis, which is the softness seen at low switch sigmas.
    """
    if ratio == 1:
        return x0
    flat = x0 if x0.ndim == 4 else x0.flatten(1, -3)
    lifted = functional.interpolate(flat, scale_factor=ratio, mode="bilinear", align_corners=False)
    return lifted.reshape(*x0.shape[:-2], *lifted.shape[-2:])


def lift_haar(x0: Tensor, ratio: int) -> Tensor:
    """Orthonormal Haar expansion with zero details, amplitude restored.

    An orthonormal expansion spreads a pixel p over its 2x2 block as p/2; times 2 per doubling, a
    constant picture keeps its amplitude. That is pixel repetition: the result equals
    :func:`lift_nearest` bit for bit (halving and doubling are exact). It is a name of its own
    because it is the clean half of :func:`fresco_trt.run.transition.rewind`, whose amplitude is
    restored by sigma instead.
    """
    for _ in range(ratio.bit_length() - 1):
        zeros = torch.zeros_like(x0)
        x0 = 2.0 * haar_merge(x0, (zeros, zeros, zeros))
    return x0


LIFTS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "nearest": lift_nearest,
    "bilinear": lift_bilinear,
    "haar": lift_haar,
}
"""Lifts of a clean estimate by name: ``(x0, ratio)`` with ratio 1, 2, 4, ... per side."""


def cropped(latents: Tensor, like: Tensor) -> Tensor:
    """The rows and columns of ``latents`` that ``like`` has, too: without a margin; a view."""
    height, width = like.shape[-2:]
    return latents[..., :height, :width]


# --- Haar levels ------------------------------------------------------------------------------


def haar_split(fine: Tensor) -> tuple[Tensor, Details]:
    """Split latents [B,C,(F),H,W] into the LL band [B,C,(F),H/2,W/2] and three detail bands.

    With the 2x2 block ``a b / c d``: ``LL = (a+b+c+d)/2`` and details ``(a-b+c-d)/2``,
    ``(a+b-c-d)/2``, ``(a-b-c+d)/2``: an orthonormal transform, so white noise gives four
    independent white bands of the same variance. Raises ``ValueError`` if a side is odd.
    """
    height, width = fine.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"cannot halve a {height}x{width} field; both sides must be even")
    a, b = fine[..., 0::2, 0::2], fine[..., 0::2, 1::2]
    c, d = fine[..., 1::2, 0::2], fine[..., 1::2, 1::2]
    top, bottom, top_step, bottom_step = a + b, c + d, a - b, c - d
    details = (top_step + bottom_step) / 2, (top - bottom) / 2, (top_step - bottom_step) / 2
    return (top + bottom) / 2, details


def haar_merge(low: Tensor, details: Details) -> Tensor:
    """Rebuild latents [B,C,(F),2H,2W] from the LL band and details of :func:`haar_split`."""
    column, row, diagonal = details
    *outer, height, width = low.shape
    fine = low.new_empty((*outer, 2 * height, 2 * width))
    top, bottom = low + row, low - row
    top_step, bottom_step = column + diagonal, column - diagonal
    fine[..., 0::2, 0::2] = (top + top_step) / 2
    fine[..., 0::2, 1::2] = (top - top_step) / 2
    fine[..., 1::2, 0::2] = (bottom + bottom_step) / 2
    fine[..., 1::2, 1::2] = (bottom - bottom_step) / 2
    return fine


# --- cosines ----------------------------------------------------------------------------------


def dct(size: int, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix [size,size], float64: one frequency a row."""
    position = torch.arange(size, dtype=torch.float64, device=device)
    angles = torch.outer(position, 2 * position + 1).mul_(math.pi / (2 * size))
    matrix = angles.cos_().mul_(math.sqrt(2 / size))
    matrix[0] *= math.sqrt(0.5)
    return matrix


# --- places on a token grid -------------------------------------------------------------------


def children_of(parents: Tensor, coarse: Grid, fine: Grid) -> Tensor:
    """Raster indices [4P], four in a row, of the fine tokens that coarse ``parents`` [P] cover.

    int64, on the device of ``parents``: top left, top right, bottom left, bottom right. ``fine``
    doubles ``coarse``, frame by frame.
    """
    wide, each = fine.columns, coarse.rows * coarse.columns
    frame = parents // each
    inside = parents - each * frame
    row = inside // coarse.columns
    corner = 4 * each * frame + 2 * wide * row + 2 * (inside - coarse.columns * row)
    return torch.stack([corner, corner + 1, corner + wide, corner + wide + 1], dim=-1).flatten()
