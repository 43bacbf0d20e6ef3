"""Laws of the polynomial caches: what is continued exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.run.cache.differences import Differences
from fresco_trt.run.cache.reuse import ReusePredictor
from fresco_trt.run.cache.taylor import TaylorPredictor

STEPS = (0.0, 1.0, 2.0, 5.0, 7.0, 12.0)
SIGMAS = (1.0, 0.97, 0.9, 0.72, 0.6, 0.31)

Series = Callable[[float], torch.Tensor]


def polynomial(degree: int) -> Series:
    """A feature [1,6,4], float64, whose every entry is a polynomial of that degree."""
    coefficients = torch.randn(degree + 1, 1, 6, 4, dtype=torch.float64)

    def at(x: float) -> torch.Tensor:
        powers = torch.tensor([x**i for i in range(degree + 1)], dtype=torch.float64)
        value: torch.Tensor = torch.tensordot(powers, coefficients, dims=1)
        return value

    return at


def observed(predictor: TaylorPredictor, series: Series, steps: Sequence[float]) -> Differences:
    state = predictor.start()
    for at in steps:
        state = predictor.observe(state, series(at), at)
    return state


def gap(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max())


# --- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [STEPS, SIGMAS], ids=["steps", "sigmas"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_polynomial_of_the_order_is_continued_exactly(axis: Sequence[float], order: int) -> None:
    """From as few as order + 1 full steps and from more, at uneven spacing; a higher one is not."""
    predictor = TaylorPredictor(order=order)
    for count in range(order + 1, len(axis)):
        for degree in range(order + 1):
            series = polynomial(degree)
            state = observed(predictor, series, axis[:count])
            for at in axis[count:]:
                torch.testing.assert_close(predictor.predict(state, at), series(at))
        beyond = polynomial(order + 1)
        state = observed(predictor, beyond, axis[:count])
        assert gap(predictor.predict(state, axis[-1]), beyond(axis[-1])) > 1e-4


@given(
    start=st.floats(-5, 5),
    spacings=st.lists(st.floats(0.25, 3), min_size=4, max_size=7),
    falling=st.booleans(),
)
def test_the_polynomial_goes_through_the_last_observations(
    start: float, spacings: list[float], falling: bool
) -> None:
    """Any features: the continuation of order m meets the last m + 1 again, and no earlier one."""
    ats = [start]
    for spacing in spacings:
        ats.append(ats[-1] - spacing if falling else ats[-1] + spacing)
    features = dict(zip(ats, torch.randn(len(ats), 1, 3, 2, dtype=torch.float64), strict=True))
    predictor = TaylorPredictor(order=2)
    state = observed(predictor, features.__getitem__, ats)
    for at in ats[-3:]:
        torch.testing.assert_close(predictor.predict(state, at), features[at], rtol=0, atol=1e-8)
    assert gap(predictor.predict(state, ats[-4]), features[ats[-4]]) > 1e-8


def test_the_order_is_what_the_observations_allow() -> None:
    """One full step continues a constant, two a line, three a parabola; order 3 needs four."""
    predictor = TaylorPredictor(order=3)
    for count in (1, 2, 3, 4):
        for degree in range(4):
            series = polynomial(degree)
            state = observed(predictor, series, STEPS[:count])
            error = gap(predictor.predict(state, 12.0), series(12.0))
            assert (error < 1e-6) == (degree < count)


def test_at_the_last_full_step_it_is_its_feature() -> None:
    features = torch.randn(4, 2, 6, 4)
    predictor, reuse = TaylorPredictor(), ReusePredictor()
    state, kept = predictor.start(), reuse.start()
    for feature, at in zip(features, STEPS, strict=False):
        state, kept = predictor.observe(state, feature, at), reuse.observe(kept, feature, at)
        assert torch.equal(predictor.predict(state, at), feature)
        assert torch.equal(reuse.predict(kept, at + 3), feature)
