"""Positions of the tokens of a mixed grid, and their rotary tables without a look at the device.

Which tokens a mixed stage holds is known only to the device. So the tables of every token that it
could hold are made once, coarse grid first and then the fine one, and their rows gathered there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import Positions
    from fresco_trt.run.mixed import Mixed

Units = Literal["fine", "coarse"]


def possible_positions(
    patchifier: Patchifier, coarse: Grid, fine: Grid, units: Units, image: int = 0
) -> Tensor:
    """Positions of all coarse tokens, then of all fine ones: float32 [5N,A] on the CPU; of the
    picture that is drawn, or of a reference ``image`` from 1 on.

    In "fine" units the fine tokens keep the places that they have on their own grid, and a coarse
    token is at the centre of its four. In "coarse" units the coarse tokens keep theirs, and the
    four are at their parent's place plus 0 and 1/2 along each axis (RALU, arXiv 2507.08422, code).
    """
    own, finer = patchifier.positions(coarse, image), patchifier.positions(fine, image)
    apart = _apart(patchifier, coarse, fine)
    if units == "fine":
        return torch.cat([_spaced(own, 2.0, apart + 0.5), finer])
    return torch.cat([own, _spaced(finer, 0.5, -apart / 2)])


def _apart(patchifier: Patchifier, coarse: Grid, fine: Grid) -> Tensor:
    """Row and column [2] of the first fine token less twice those of its parent: not 0 where a grid
    counts from its middle and the coarse one has an odd number.
    """
    return patchifier.positions(fine)[0, -2:] - 2.0 * patchifier.positions(coarse)[0, -2:]


def _spaced(positions: Tensor, factor: float, offset: Tensor) -> Tensor:
    """Rows and columns times ``factor`` plus ``offset`` [2]; the axes before them stay."""
    places = positions.clone()
    places[:, -2:] = places[:, -2:] * factor + offset
    return places


def whole_tables(
    patchifier: Patchifier, grid: Grid, references: int, behind: Grid | None = None
) -> dict[str, Tensor]:
    """The tables of a whole grid's tokens and, after them, of so many references: on that grid or,
    ``behind``, on a finer one, in the units of ``grid`` and each token at its own centre.
    """
    own, behind = patchifier.positions(grid), behind or grid
    images = [patchifier.positions(behind, image) for image in range(1, references + 1)]
    if behind != grid:
        ratio = behind.rows // grid.rows
        first = own[0, -2:] - patchifier.positions(behind)[0, -2:] / ratio
        offset = first - (ratio - 1) / (2 * ratio)
        images = [_spaced(each, 1 / ratio, offset) for each in images]
    return dict(patchifier.tables(torch.cat([own, *images])))


def mixed_tables(
    patchifier: Patchifier,
    mixed: Mixed,
    scheme: Positions,
    references: int = 0,
    *,
    mirrored: bool = False,
) -> dict[str, Tensor]:
    """The tables for the tokens of a mixed stage, in their order, text rows in front and so many
    ``references`` behind: whole, on the fine grid, or ``mirrored``, of the same tokens.

    By the scheme "aligned" (PMA, arXiv 2511.19778) those in fine units, for the queries that are
    fine, and with ``_coarse`` behind their names those of the keys that coarse queries see: the
    kept tokens and, at its place on the coarse grid, one child of each refined one.
    """
    if scheme != "aligned":
        return _mixed_tables(patchifier, mixed, scheme, references, mirrored)
    # The first of four is at twice its parent's row and column: halved, at its parent's place.
    whole = patchifier.tables(patchifier.positions(mixed.coarse))
    rows = torch.cat([mixed.kept, mixed.refined])
    own = {f"{name}_coarse": _gathered(table, rows, len(rows)) for name, table in whole.items()}
    return _mixed_tables(patchifier, mixed, "fine", references, mirrored) | own


def _mixed_tables(
    patchifier: Patchifier, mixed: Mixed, units: Units, references: int, mirrored: bool
) -> dict[str, Tensor]:
    coarse, fine = mixed.coarse, mixed.fine
    own = possible_positions(patchifier, coarse, fine, units)
    target = torch.cat([mixed.kept, coarse.tokens + mixed.children])
    images = range(1, references + 1)
    if mirrored:
        behind = [possible_positions(patchifier, coarse, fine, units, image) for image in images]
        rows = torch.cat([target + len(own) * image for image in range(references + 1)])
    else:
        behind = [patchifier.positions(fine, image) for image in images]
        if units == "coarse":
            offset = -_apart(patchifier, coarse, fine) / 2
            behind = [_spaced(each, 0.5, offset) for each in behind]
        whole = torch.arange(references * fine.tokens, device=mixed.kept.device)
        rows = torch.cat([target, len(own) + whole])
    positions = torch.cat([own, *behind])
    tables = patchifier.tables(positions)
    return {name: _gathered(table, rows, len(positions)) for name, table in tables.items()}


def _gathered(table: Tensor, rows: Tensor, possible: int) -> Tensor:
    """The rows of the text, and of the ``possible`` tokens behind them those in ``rows``."""
    text = len(table) - possible
    chosen = [torch.arange(text, device=table.device), text + rows.to(table.device)]
    return table.index_select(0, torch.cat(chosen))
