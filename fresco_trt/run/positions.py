"""Positions of the tokens of a mixed grid, and their rotary tables without a look at the device.

Which tokens a mixed stage holds is known only to the device. So the tables of every token that it
could hold are made once, coarse grid first and then the fine one, and their rows gathered there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import Positions
    from fresco_trt.run.layout import Layout
    from fresco_trt.run.mixed import Mixed

Units = Literal["fine", "coarse"]


def raster(grid: Grid) -> Tensor:
    """Positions (0, row, column) of a grid's tokens, float32 [N,3]."""
    row, column = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
    ids = torch.stack([torch.zeros_like(row), row, column], dim=-1)
    return ids.reshape(-1, 3).to(torch.float32)


def possible_positions(coarse: Grid, fine: Grid, units: Units) -> Tensor:
    """Positions of all coarse tokens, then of all fine ones: float32 [5N,3] on the CPU.

    In "fine" units the fine tokens keep the places that they have on their own grid, and a coarse
    token is at the centre of its four. In "coarse" units the coarse tokens keep theirs, and the
    four are at their parent's place plus 0 and 1/2 along each axis (RALU, arXiv 2507.08422, code).
    """
    if units == "fine":
        centre = torch.tensor([0.0, 0.5, 0.5])
        return torch.cat([2 * raster(coarse) + centre, raster(fine)])
    return torch.cat([raster(coarse), raster(fine) / 2])


def mixed_tables(layout: Layout, mixed: Mixed, scheme: Positions) -> dict[str, Tensor]:
    """The layout's tables for the tokens of a mixed stage, in their order, text rows in front.

    By the scheme "aligned" (PMA, arXiv 2511.19778) those in fine units, for the queries that are
    fine, and with ``_coarse`` behind their names those of the keys that coarse queries see: the
    kept tokens and, at its place on the coarse grid, one child of each refined one.
    """
    if scheme != "aligned":
        return _mixed_tables(layout, mixed, scheme)
    # The first of four is at twice its parent's row and column: halved, at its parent's place.
    whole, rows = layout.tables(mixed.coarse), torch.cat([mixed.kept, mixed.refined])
    own = {f"{name}_coarse": _gathered(table, rows, len(rows)) for name, table in whole.items()}
    return _mixed_tables(layout, mixed, "fine") | own


def _mixed_tables(layout: Layout, mixed: Mixed, units: Units) -> dict[str, Tensor]:
    positions = possible_positions(mixed.coarse, mixed.fine, units)
    rows = torch.cat([mixed.kept, mixed.coarse.tokens + mixed.children])
    tables = layout.tables_at(positions)
    return {name: _gathered(table, rows, len(positions)) for name, table in tables.items()}


def _gathered(table: Tensor, rows: Tensor, possible: int) -> Tensor:
    """The rows of the text, and of the ``possible`` tokens behind them those in ``rows``."""
    text = len(table) - possible
    chosen = [torch.arange(text, device=table.device), text + rows.to(table.device)]
    return table.index_select(0, torch.cat(chosen))
