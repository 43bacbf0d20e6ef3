"""Laws of token grids: counts, and parents and children that undo one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.grid import (
    Grid,
    halved,
    is_doubling,
    is_finer,
)

LAW = settings(deadline=None, max_examples=40, database=None)

SCALES = st.sampled_from([1.0, 0.5, 0.25])


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    patch = draw(st.integers(1, 3))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return Grid(height=rows * patch, width=columns * patch, scale=draw(SCALES), patch=patch)


def doubled(grid: Grid) -> Grid:
    return replace(grid, height=2 * grid.height, width=2 * grid.width, scale=2 * grid.scale)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Grid, Grid]:
    coarse = replace(draw(grids()), scale=draw(st.sampled_from([0.5, 0.25])))
    return coarse, doubled(coarse)


@LAW
@given(grids())
def test_tokens_cover_the_latent_exactly(grid: Grid) -> None:
    assert grid.tokens == grid.rows * grid.columns
    assert grid.tokens * grid.patch**2 == grid.height * grid.width


@LAW
@given(pairs())
def test_a_doubling_has_four_times_the_tokens(pair: tuple[Grid, Grid]) -> None:
    coarse, fine = pair
    assert is_doubling(coarse, fine)
    assert fine.tokens == 4 * coarse.tokens


@LAW
@given(grids())
def test_a_half_covers_the_grid_and_stands_out_by_less_than_a_token(grid: Grid) -> None:
    half = halved(grid)
    assert is_finer(half, grid)
    assert is_finer(halved(half), grid)
    assert 0 <= 2 * half.rows - grid.rows <= 1
    assert 0 <= 2 * half.columns - grid.columns <= 1
    assert is_doubling(half, grid) == (grid.rows % 2 == grid.columns % 2 == 0)


@LAW
@given(grids(), grids())
def test_refinement_is_an_order(one: Grid, other: Grid) -> None:
    assert is_finer(one, one)
    assert not is_doubling(one, one)
    if is_finer(one, other) and is_finer(other, one):
        assert one == other
    if is_doubling(one, other):
        assert is_finer(one, other)
        assert not is_finer(other, one)


@pytest.mark.parametrize(
    "change", [{"height": 12}, {"width": 12}, {"scale": 0.5}, {"patch": 1}, {"scale": 0.25}]
)
def test_anything_else_is_no_doubling(change: dict[str, float]) -> None:
    coarse = Grid(height=4, width=4, scale=0.5)
    fine = replace(Grid(height=8, width=8, scale=1.0), **change)  # type: ignore[arg-type]
    assert not is_doubling(coarse, fine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 0}, "positive"),
        ({"width": -2}, "positive"),
        ({"patch": 0}, "positive"),
        ({"height": 7}, "divisible"),
        ({"width": 9}, "divisible"),
        ({"scale": 0.0}, "1/2"),
        ({"scale": 0.75}, "1/2"),
        ({"scale": 1 / 3}, "1/2"),
        ({"scale": 2.0}, "1/2"),
        ({"scale": float("nan")}, "1/2"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidPlan, match=said):
        replace(Grid(height=8, width=8, scale=1.0), **change)  # type: ignore[arg-type]


@LAW
@given(grids())
def test_json_gives_the_grid_back(grid: Grid) -> None:
    assert Grid.from_json(grid.to_json()) == grid
