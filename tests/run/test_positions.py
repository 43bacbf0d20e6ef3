"""Laws of mixed positions: whoever is refined, every token gets the row of its own place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.signatures import COARSE_ROPE
from fresco_trt.models.flux.tokens import FluxPatchifier, position_ids
from fresco_trt.models.qwen.facts import QWEN_IMAGE_EDIT
from fresco_trt.models.qwen.tokens import QwenPatchifier
from fresco_trt.plan.grid import Grid
from fresco_trt.run.mixed import Mixed
from fresco_trt.run.positions import mixed_tables, possible_positions, whole_tables
from tests.run.grids import child_indices

COARSE = Grid(height=6, width=8, scale=0.5)
FINE = Grid(height=12, width=16, scale=1.0)
TEXT = 5
PATCHIFIER = FluxPatchifier(FLUX_TINY, TEXT)

MASKS = st.lists(st.booleans(), min_size=COARSE.tokens, max_size=COARSE.tokens)


def mixed_of(mask: list[bool]) -> Mixed:
    return Mixed.from_mask(COARSE, FINE, torch.tensor(mask), sum(mask))


def places(units: str, mask: list[bool]) -> torch.Tensor:
    """Rows and columns of the engine's tokens, in words: the oracle."""
    rows = []
    for index, expanded in enumerate(mask):
        row, column = divmod(index, COARSE.columns)
        if not expanded:
            rows.append((2 * row + 0.5, 2 * column + 0.5) if units == "fine" else (row, column))
    for index, expanded in enumerate(mask):
        row, column = divmod(index, COARSE.columns)
        steps = [(0, 0), (0, 1), (1, 0), (1, 1)] if expanded else []
        for down, across in steps:
            fine = 2 * row + down, 2 * column + across
            rows.append(fine if units == "fine" else (fine[0] / 2, fine[1] / 2))
    return torch.tensor([(0.0, row, column) for row, column in rows])


def test_in_fine_units_children_keep_their_place_and_parents_are_at_their_centre() -> None:
    positions = possible_positions(PATCHIFIER, COARSE, FINE, "fine")
    parents, children = positions[: COARSE.tokens], positions[COARSE.tokens :]
    assert torch.equal(children, position_ids(FINE.rows, FINE.columns))
    families = children[torch.tensor(child_indices(COARSE, FINE))]
    assert torch.equal(parents, families.mean(dim=1))


def test_in_coarse_units_parents_keep_their_place_and_children_are_half_steps_on() -> None:
    positions = possible_positions(PATCHIFIER, COARSE, FINE, "coarse")
    parents, children = positions[: COARSE.tokens], positions[COARSE.tokens :]
    assert torch.equal(parents, position_ids(COARSE.rows, COARSE.columns))
    families = children[torch.tensor(child_indices(COARSE, FINE))]
    halves = torch.tensor([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]) / 2
    assert torch.equal(families, parents[:, None] + halves)


@pytest.mark.parametrize("units", ["fine", "coarse"])
@given(mask=MASKS)
def test_gathered_tables_are_those_of_the_tokens_places(units: Any, mask: list[bool]) -> None:
    gathered = mixed_tables(PATCHIFIER, mixed_of(mask), units)
    expected = PATCHIFIER.tables(places(units, mask))
    assert (
        gathered.keys() == expected.keys() == PATCHIFIER.tables(PATCHIFIER.positions(FINE)).keys()
    )
    for name, table in expected.items():
        assert torch.equal(gathered[name], table)


@given(mask=MASKS)
def test_aligned_tables_are_both_units_and_each_query_finds_its_own_grid(mask: list[bool]) -> None:
    """In fine units all tokens; in coarse ones the coarse tokens and one child of each four."""
    gathered = mixed_tables(PATCHIFIER, mixed_of(mask), "aligned")
    kept = mask.count(False)
    coarse = places("coarse", mask)
    seen = torch.cat([coarse[:kept], coarse[kept::4]])
    assert torch.equal(seen, seen.round())
    fine, own = PATCHIFIER.tables(places("fine", mask)), PATCHIFIER.tables(seen)
    expected = {**fine, **{f"{name}_coarse": table for name, table in own.items()}}
    assert gathered.keys() == expected.keys() == {*fine, *COARSE_ROPE}
    for name, table in expected.items():
        assert torch.equal(gathered[name], table)


def test_a_mixed_grid_that_is_all_fine_or_all_coarse_has_that_grids_tables() -> None:
    """In the units of that grid; the fine one's in the order of the children."""
    count = COARSE.tokens
    order = torch.tensor(child_indices(COARSE, FINE)).flatten() + TEXT
    text = torch.arange(TEXT)
    fine = mixed_tables(PATCHIFIER, mixed_of([True] * count), "fine")
    coarse = mixed_tables(PATCHIFIER, mixed_of([False] * count), "coarse")
    for name, table in PATCHIFIER.tables(PATCHIFIER.positions(FINE)).items():
        assert torch.equal(fine[name], table[torch.cat([text, order])])
    for name, table in PATCHIFIER.tables(PATCHIFIER.positions(COARSE)).items():
        assert torch.equal(coarse[name], table)


@pytest.mark.parametrize("patchifier", [PATCHIFIER, QwenPatchifier(QWEN_IMAGE_EDIT, TEXT)])
@pytest.mark.parametrize("rows", [3, 4])
def test_a_finer_reference_lies_where_the_picture_does(patchifier: Any, rows: int) -> None:
    seen: list[torch.Tensor] = []

    class Watching:
        positions = patchifier.positions

        def tables(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(positions)
            return {}

    picture = Grid(height=2 * rows, width=16, scale=0.25)
    reference = Grid(height=8 * rows, width=64, scale=1.0)
    whole_tables(Watching(), picture, 1, reference)  # type: ignore[arg-type]
    own, behind = seen[0].split([picture.tokens, reference.tokens])
    assert torch.equal(own, patchifier.positions(picture))
    blocks = behind.view(rows, 4, 8, 4, -1)
    assert torch.allclose(blocks.mean(dim=(1, 3)).view(-1, 3)[:, 1:], own[:, 1:]), "centred"
    assert torch.allclose(blocks[:, 1, :, :, 1] - blocks[:, 0, :, :, 1], torch.tensor(0.25))
    images = patchifier.positions(picture, 1)[0, 0]
    assert torch.all(behind[:, 0] == images), "and they are another picture's"
