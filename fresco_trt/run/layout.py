"""What the sampler asks of a model family: packing, and the tables of token positions.

The seam between ``run/``, which knows grids and sigmas, and ``models/``, which knows its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.grid import Grid


class Layout(Protocol):
    """How one model family turns latents into tokens, and where those tokens are."""

    def pack(self, latents: Tensor) -> Tensor:
        """Tokens [B,N,4C] from latents [B,C,H,W], in raster order; may be a view."""
        ...

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Latents [B,C,H,W] of ``grid`` from tokens [B,N,4C]; may be a view."""
        ...

    def tables(self, grid: Grid) -> Mapping[str, Tensor]:
        """Named engine inputs that depend on the grid alone: ``rope_cos`` and ``rope_sin``.

        Each has one row a token, behind the rows of the text.
        """
        ...

    def tables_at(self, positions: Tensor) -> Mapping[str, Tensor]:
        """The same for tokens at any ``positions``, float32 [N,3] of (0, row, column) on the CPU.

        ``tables(grid)`` is this at the integer raster positions of ``grid``.
        """
        ...
