"""Laws of picture sizes: what fits is accepted, and what does not gets its neighbours told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_trt.errors import UnsupportedSize
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.sizes import (
    check_size,
    format_size,
    nearest_sizes,
    parse_size,
    parse_sizes,
    size_multiple,
    stage_grids,
)

LAW = settings(deadline=None, max_examples=100, database=None)

SIDES = st.integers(-100, 5000)
TINY = model_facts("flux-tiny")


def fits(size: tuple[int, int], multiple: int, max_pixels: int) -> bool:
    in_step = all(side > 0 and side % multiple == 0 for side in size)
    return in_step and size[0] * size[1] <= max_pixels


@LAW
@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_reading_undoes_writing(width: int, height: int) -> None:
    assert parse_size(format_size((width, height))) == (width, height)


@pytest.mark.parametrize("text", ["512X384", "512\u00d7384", " 512x384 "])
def test_other_spellings_of_a_size(text: str) -> None:
    assert parse_size(text) == (512, 384)


@pytest.mark.parametrize(
    "text",
    [
        *("", "512", "x", "512x", "x384", "512x384x3x1", "-512x384", "5.5x4", "512 384"),
        *("512x384\nx", "\u0665\u0661\u0662x384", "1e3x1e3", "9" * 5000 + "x1"),
    ],
    ids=range(13),
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnsupportedSize, match="--size 512x384") as raised:
        parse_size(text)
    assert len(str(raised.value)) < 300


@LAW
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=8))
def test_buckets_are_each_size_once_largest_first(sizes: list[tuple[int, int]]) -> None:
    buckets = parse_sizes(format_size(size) for size in sizes)
    assert set(buckets) == set(sizes)
    assert len(buckets) == len(set(buckets))
    areas = [width * height for width, height in buckets]
    assert areas == sorted(areas, reverse=True)
    assert parse_sizes(format_size(size) for size in reversed(sizes)) == buckets


@LAW
@given(SIDES, SIDES, st.sampled_from([8, 32, 64]), st.integers(64**2, 3000**2))
def test_the_neighbours_of_any_size_fit(
    width: int, height: int, multiple: int, max_pixels: int
) -> None:
    neighbours = nearest_sizes((width, height), multiple, max_pixels)
    assert 1 <= len(neighbours) <= 2
    assert all(fits(each, multiple, max_pixels) for each in neighbours)


@LAW
@given(st.integers(64, 1000), st.integers(64, 1000), st.sampled_from([8, 32, 64]))
def test_the_neighbours_lie_below_and_above(width: int, height: int, multiple: int) -> None:
    neighbours = nearest_sizes((width, height), multiple, 10**8)
    below, above = neighbours[0], neighbours[-1]
    for side, low, high in zip((width, height), below, above, strict=True):
        assert low <= side <= high
        assert high - low == (0 if side % multiple == 0 else multiple)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("stages", [1, 2, 3])
@LAW
@given(width=SIDES, height=SIDES)
def test_a_size_is_accepted_exactly_when_it_fits(
    name: str, stages: int, width: int, height: int
) -> None:
    facts = model_facts(name)
    multiple = size_multiple(facts, stages)
    if fits((width, height), multiple, facts.max_pixels):
        check_size(facts, (width, height), stages)
        assert len(stage_grids(facts, (width, height), stages)) == stages
        return
    with pytest.raises(UnsupportedSize) as raised:
        check_size(facts, (width, height), stages)
    told = [parse_size(text) for text in re.findall(r"[0-9]+x[0-9]+", raised.value.fix)]
    assert told
    for size in told:
        check_size(facts, size, stages)


@pytest.mark.parametrize("size", [(10**9 - 1, 1), (10**9 - 1, 10**9 - 1), (0, 0), (-5, 10**6)])
def test_absurd_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedSize, match="--size"):
        check_size(TINY, size, 1)


def test_too_large_a_size_is_told_the_limit() -> None:
    with pytest.raises(UnsupportedSize, match=str(TINY.max_pixels)):
        check_size(TINY, (1024, 1024), 3)


@pytest.mark.parametrize("size", [(256.0, 256), (True, 256), ("256", 256)])
def test_a_side_is_an_int(size: tuple[int, int]) -> None:
    with pytest.raises(TypeError):
        check_size(TINY, size, 1)
