"""What lies where on two grids, said for one token at a time."""

from __future__ import annotations

from fresco_trt.plan.grid import Grid


def child_indices(coarse: Grid, fine: Grid) -> list[tuple[int, int, int, int]]:
    """For each coarse token, the raster indices of its four fine ones."""
    corners = (
        2 * row * fine.columns + 2 * column
        for row in range(coarse.rows)
        for column in range(coarse.columns)
    )
    return [(at, at + 1, at + fine.columns, at + fine.columns + 1) for at in corners]
