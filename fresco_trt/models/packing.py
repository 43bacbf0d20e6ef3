"""Latents of pictures as tokens of 2x2 latent pixels, and back: FLUX's packing, and Qwen-Image's.

Importing this file imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """``latents`` [B,C,H,W] to tokens [B, H/2 * W/2, 4C]; channels ordered (c, dy, dx).

    Raises ValueError for an odd height or width.
    """
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents are {height}x{width}; both sides must be even")
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of :func:`pack`: tokens [B, rows*columns, 4C] to latents [B, C, 2 rows, 2 columns].

    Raises ValueError if the token or channel count does not fit.
    """
    batch, count, channels = tokens.shape
    if count != rows * columns or channels % 4:
        raise ValueError(f"tokens [{count},{channels}] are no {rows}x{columns} grid of 2x2 cells")
    cells = tokens.reshape(batch, rows, columns, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, 2 * rows, 2 * columns)


def raster(rows: int, columns: int) -> Tensor:
    """Row and column of each token of a raster, float32 [rows*columns, 2]."""
    import torch

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([row, column], dim=-1).reshape(-1, 2).to(torch.float32)
