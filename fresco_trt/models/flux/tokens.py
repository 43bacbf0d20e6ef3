"""FLUX's tokens: 2x2 latent pixels each, and where they are; and how many are a prompt's own.

Read at request time. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.models.packing import pack as pack
from fresco_trt.models.packing import raster
from fresco_trt.models.packing import unpack as unpack
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

THETA = 10_000.0


def position_ids(rows: int, columns: int, image: int = 0) -> Tensor:
    """Positions (image, row, column) of a raster of tokens, float32 [rows*columns, 3]."""
    import torch

    places = raster(rows, columns)
    return torch.cat([torch.full_like(places[:, :1], image), places], dim=1)


def own_tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> int:
    """How many of ``length`` token ids are the longest prompt's own: up to the last that is no
    padding, wherever a tokenizer pads.
    """
    masks = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
    ).attention_mask
    places = (place for mask in masks for place, own in enumerate(mask, start=1) if own)
    return max(places, default=0)


def rotary_tables(facts: ModelFacts, text_tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin [T+N, head_dim], float32, of T text tokens at (0,0,0) and N image tokens.

    ``positions`` [N,3] may be fractional. Bit-equal to diffusers' ``FluxPosEmbed``: angles in
    float64, one frequency ``theta^(-2i/d)`` per pair of channels, cast to float32 at the end.
    Raises ValueError for positions of another shape.
    """
    import torch

    if positions.ndim != 2 or positions.shape[1] != len(facts.rope_axes):
        raise ValueError(f"positions {tuple(positions.shape)}; expected [N,{len(facts.rope_axes)}]")
    ids = positions.to(device="cpu", dtype=torch.float32)
    ids = torch.cat([torch.zeros(text_tokens, ids.shape[1]), ids])
    axes = zip(facts.rope_axes, ids.unbind(1), strict=True)
    angles = torch.cat([_angles(width, values) for width, values in axes], dim=1)
    return angles.cos().float(), angles.sin().float()


def _angles(width: int, values: Tensor) -> Tensor:
    """Angles of one axis, float64 [S, width], each repeated for its pair of channels."""
    import torch

    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    return torch.outer(values, 1.0 / THETA**exponents).repeat_interleave(2, dim=1)


@dataclass(frozen=True, slots=True)
class FluxPatchifier:
    """Packing and rotary tables of one FLUX model: a
    :class:`~fresco_trt.models.family.Patchifier`.
    """

    facts: ModelFacts
    text_tokens: int

    def pack(self, latents: Tensor) -> Tensor:
        """As :func:`pack`."""
        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As :func:`unpack`, for the rows and columns of ``grid``."""
        return unpack(tokens, grid.rows, grid.columns)

    def positions(self, grid: Grid, image: int = 0) -> Tensor:
        """As :func:`position_ids`: FLUX.1-Kontext numbers its references on the first axis."""
        return position_ids(grid.rows, grid.columns, image)

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        """``rope_cos`` and ``rope_sin`` [T+N, head_dim]; raises as :func:`rotary_tables`."""
        cos, sin = rotary_tables(self.facts, self.text_tokens, positions)
        return {"rope_cos": cos, "rope_sin": sin}
