"""HunyuanVideo's tokens: 2x2 latent pixels of one latent frame each, and where they are.

Read at request time. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.models.hunyuan.config import THETA
from fresco_trt.models.packing import pack, raster, unpack
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor


def position_ids(grid: Grid) -> Tensor:
    """Positions (frame, row, column) of a grid's tokens, float32 [N,3]."""
    import torch

    places = raster(grid.rows, grid.columns)
    frames = torch.arange(grid.frames, dtype=torch.float32).repeat_interleave(len(places))
    return torch.cat([frames[:, None], places.repeat(grid.frames, 1)], dim=1)


def rotary_tables(facts: ModelFacts, text_tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin [T+N, head_dim], float32, of T text tokens, which are not turned, and of N image
    tokens.

    ``positions`` [N,3] may be fractional. Equal to diffusers' ``HunyuanVideoRotaryPosEmbed``:
    angles in float32, one frequency ``theta^(-2i/d)`` per pair of channels, each value repeated for
    its pair. Raises ValueError for positions of another shape.
    """
    import torch

    if positions.ndim != 2 or positions.shape[1] != len(facts.rope_axes):
        raise ValueError(f"positions {tuple(positions.shape)}; expected [N,{len(facts.rope_axes)}]")
    ids = positions.to(device="cpu", dtype=torch.float32)
    axes = zip(facts.rope_axes, ids.unbind(1), strict=True)
    angles = torch.cat([_angles(width, values) for width, values in axes], dim=1)
    still = angles.new_zeros(text_tokens, facts.head_dim)
    return torch.cat([still.cos(), angles.cos()]), torch.cat([still, angles.sin()])


def _angles(width: int, values: Tensor) -> Tensor:
    """Angles of one axis, float32 [N, width], each repeated for its pair of channels."""
    import torch

    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    return torch.outer(values, 1.0 / THETA**exponents).repeat_interleave(2, dim=1)


def pack_clip(latents: Tensor) -> Tensor:
    """Tokens [B,N,4C] of latents [B,C,F,H,W]; channels ordered (c, dy, dx) as in
    :func:`~fresco_trt.models.packing.pack`.
    """
    batch = len(latents)
    tokens = pack(latents.transpose(1, 2).flatten(0, 1))
    return tokens.reshape(batch, -1, tokens.shape[-1])


def unpack_clip(tokens: Tensor, grid: Grid) -> Tensor:
    """Latents [B,C,F,H,W] of a whole ``grid``: inverse of :func:`pack_clip`."""
    batch, _, channels = tokens.shape
    frames = tokens.reshape(batch * grid.frames, -1, channels)
    latents = unpack(frames, grid.rows, grid.columns)
    return latents.reshape(batch, grid.frames, *latents.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class HunyuanPatchifier:
    """Packing and rotary tables of one model: a :class:`~fresco_trt.models.family.Patchifier`."""

    facts: ModelFacts
    text_tokens: int

    def pack(self, latents: Tensor) -> Tensor:
        """As :func:`pack_clip`, or tokens of a picture's latents [B,C,H,W]."""
        return pack(latents) if latents.ndim == 4 else pack_clip(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As :func:`unpack_clip`, or latents [B,C,H,W] where ``grid`` has one latent frame."""
        if grid.frames == 1:
            return unpack(tokens, grid.rows, grid.columns)
        return unpack_clip(tokens, grid)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """As :func:`position_ids`. Raises ValueError for a reference: no model here has one."""
        if image:
            raise ValueError(f"positions of the reference {image}; expected those of the clip, 0")
        return position_ids(grid)

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """``rope_cos`` and ``rope_sin`` [T+N, head_dim]; raises as :func:`rotary_tables`."""
        cos, sin = rotary_tables(self.facts, self.text_tokens, positions)
        return {"rope_cos": cos, "rope_sin": sin}
