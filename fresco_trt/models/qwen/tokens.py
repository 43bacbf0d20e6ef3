"""Qwen-Image's tokens: 2x2 latent pixels each, and where they are, counted from the middle.

Read at request time. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.models.packing import pack, raster, unpack
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

THETA = 10_000.0


def position_ids(rows: int, columns: int, image: int = 0) -> Tensor:
    """Positions (image, row, column) of a raster of tokens, float32 [rows*columns, 3].

    Rows and columns are counted from the middle, as diffusers' ``QwenEmbedRope`` does with
    ``scale_rope``: of an odd number the middle one is -1.
    """
    import torch

    places = raster(rows, columns)
    places -= torch.tensor([rows - rows // 2, columns - columns // 2])
    return torch.cat([torch.full_like(places[:, :1], image), places], dim=1)


def rotary_tables(facts: ModelFacts, text_tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin [T+N, head_dim], float32, of T text tokens and of N image tokens.

    ``positions`` [N,3] may be fractional. The text's stand on the diagonal of all three axes, from
    the first whole place that no picture has in any row or column. Equal to diffusers'
    ``QwenEmbedRope``: angles in float32, one frequency ``theta^(-2i/d)`` per pair of channels, each
    value repeated for its pair. Raises ValueError for positions of another shape.
    """
    import torch

    if positions.ndim != 2 or positions.shape[1] != len(facts.rope_axes):
        raise ValueError(f"positions {tuple(positions.shape)}; expected [N,{len(facts.rope_axes)}]")
    ids = positions.to(device="cpu", dtype=torch.float32)
    first = ids[:, -2:].max().floor() + 1
    text = (first + torch.arange(text_tokens))[:, None].expand(-1, ids.shape[1])
    axes = zip(facts.rope_axes, torch.cat([text, ids]).unbind(1), strict=True)
    angles = torch.cat([_angles(width, values) for width, values in axes], dim=1)
    return angles.cos(), angles.sin()


def _angles(width: int, values: Tensor) -> Tensor:
    """Angles of one axis, float32 [S, width], each repeated for its pair of channels."""
    import torch

    exponents = torch.arange(0, width, 2, dtype=torch.float32).div(width)
    return torch.outer(values, 1.0 / torch.pow(THETA, exponents)).repeat_interleave(2, dim=1)


@dataclass(frozen=True, slots=True)
class QwenPatchifier:
    """Packing and rotary tables of one model: a :class:`~fresco_trt.models.family.Patchifier`."""

    facts: ModelFacts
    text_tokens: int

    def pack(self, latents: Tensor) -> Tensor:
        """As :func:`~fresco_trt.models.packing.pack`."""
        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As :func:`~fresco_trt.models.packing.unpack`, for the rows and columns of ``grid``."""
        return unpack(tokens, grid.rows, grid.columns)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """As :func:`position_ids`: references are numbered on the first axis."""
        return position_ids(grid.rows, grid.columns, image)

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """``rope_cos`` and ``rope_sin`` [T+N, head_dim]; raises as :func:`rotary_tables`."""
        cos, sin = rotary_tables(self.facts, self.text_tokens, positions)
        return {"rope_cos": cos, "rope_sin": sin}
