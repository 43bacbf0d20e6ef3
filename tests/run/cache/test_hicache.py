"""Laws of the Hermite basis: its closed forms, what is exact, and that any direction will do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.run.cache.differences import Differences
from fresco_trt.run.cache.hicache import HiCachePredictor, hermite
from fresco_trt.run.cache.taylor import TaylorPredictor

STEPS = (0.0, 1.0, 2.0, 5.0, 7.0)


def observed(
    predictor: HiCachePredictor,
    features: Sequence[torch.Tensor] | torch.Tensor,
    steps: Sequence[float] = STEPS,
) -> Differences:
    state = predictor.start()
    for feature, at in zip(features, steps, strict=False):
        state = predictor.observe(state, feature, at)
    return state


@given(x=st.floats(-10, 10), scale=st.floats(0.1, 1))
def test_the_scaled_polynomials(x: float, scale: float) -> None:
    """``s^n H_n(s x)`` with H_2 = 4 y^2 - 2, H_3 = 8 y^3 - 12 y."""
    y = scale * x
    written = [1, scale * 2 * y, scale**2 * (4 * y**2 - 2), scale**3 * (8 * y**3 - 12 * y)]
    for order in range(4):
        assert hermite(order, x, scale) == pytest.approx(written[: order + 1], abs=1e-9)


def test_the_closed_form_at_the_default_scale() -> None:
    """``F + 0.5 k D_1 + (0.125 k^2 - 0.25) D_2``, here over spacings 1, then 3."""
    older, old, new = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    predictor = HiCachePredictor()
    state = observed(predictor, (older, old, new), (1.0, 2.0, 5.0))
    first = (new - old) / 3
    second = (first - (old - older)) / 3
    for k in (0.0, 1.0, 2.0, 6.0):
        expected = new + 0.5 * k * first + (0.125 * k**2 - 0.25) * second
        torch.testing.assert_close(predictor.predict(state, 5.0 + k), expected)


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
def test_a_line_is_continued_at_a_damped_slope(scale: float) -> None:
    """By ``2 s^2`` of it at any order, and as it is at sqrt(1/2)."""
    base, slope = torch.randn(2, 1, 6, 4, dtype=torch.float64)
    line = [base + at * slope for at in STEPS]
    for order in (1, 2, 3):
        damped = HiCachePredictor(order=order, scale=scale)
        exact = HiCachePredictor(order=order, scale=math.sqrt(0.5))
        for k in (0.0, 1.0, 4.0):
            got = damped.predict(observed(damped, line), 7.0 + k)
            torch.testing.assert_close(got, line[-1] + 2 * scale**2 * k * slope)
            got = exact.predict(observed(exact, line), 7.0 + k)
            torch.testing.assert_close(got, base + (7.0 + k) * slope)


def test_order_one_at_the_exact_scale_is_taylors() -> None:
    features = torch.randn(5, 1, 6, 4)
    predictor, taylor = HiCachePredictor(order=1, scale=math.sqrt(0.5)), TaylorPredictor(order=1)
    state, other = observed(predictor, features), taylor.start()
    for feature, at in zip(features, STEPS, strict=True):
        other = taylor.observe(other, feature, at)
    torch.testing.assert_close(predictor.predict(state, 9.0), taylor.predict(other, 9.0))


def test_at_the_last_full_step_a_constant_is_left() -> None:
    """``- s^2 D_2`` from order 2 on; none at order 1."""
    older, old, new = torch.randn(3, 1, 6, 4, dtype=torch.float64)
    second = (new - 2 * old + older) / 2**2
    for scale in (0.3, 0.5):
        predictor = HiCachePredictor(scale=scale)
        state = observed(predictor, (older, old, new), (0.0, 2.0, 4.0))
        torch.testing.assert_close(predictor.predict(state, 4.0), new - scale**2 * second)
    first_order = HiCachePredictor(order=1)
    assert torch.equal(first_order.predict(observed(first_order, (old, new)), 1.0), new)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_falling_axis_gives_the_same_bit_for_bit(order: int) -> None:
    """Odd differences and odd polynomials turn together: counting down is counting up."""
    features = torch.randn(5, 2, 6, 4)
    predictor = HiCachePredictor(order=order)
    rising, falling = predictor.start(), predictor.start()
    for feature, at in zip(features, STEPS, strict=True):
        rising = predictor.observe(rising, feature, at)
        falling = predictor.observe(falling, feature, 50.0 - at)
        for k in (0.0, 1.0, 3.0):
            up, down = predictor.predict(rising, at + k), predictor.predict(falling, 50.0 - at - k)
            assert torch.equal(up, down)


def test_it_extrapolates_forwards() -> None:
    """The published ``-k`` on forward differences would go back to where the feature was."""
    grown = [torch.full((1, 2, 2), at) for at in STEPS]
    predictor = HiCachePredictor()
    assert predictor.predict(observed(predictor, grown), 9.0).min() > grown[-1].max()


def test_the_unit_of_the_axis_matters() -> None:
    """Why sigmas are refused: the same full steps in other units, another forecast."""
    features = torch.randn(3, 1, 6, 4, dtype=torch.float64)
    predictor = HiCachePredictor()
    steps = observed(predictor, features, (0.0, 1.0, 2.0))
    sigmas = observed(predictor, features, (0.0, 0.1, 0.2))
    moved = predictor.predict(sigmas, 0.3) - predictor.predict(steps, 3.0)
    second = features[2] - 2 * features[1] + features[0]
    torch.testing.assert_close(moved, -0.25 * (100 - 1) * second)
