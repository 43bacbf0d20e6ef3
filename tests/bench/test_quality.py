"""The bench's measures: laws of closeness, and intervals that hold what they promise."""

from __future__ import annotations

import math

import pytest
import torch

from fresco_trt.bench.quality import (
    distance_interval,
    frechet_distance,
    lost_interval,
    mean_interval,
    median_interval,
    wilson_interval,
)
from fresco_trt.lower.similarity import psnr, ssim


def pictures(count: int = 2, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side) * 2 - 1


def test_closeness_is_highest_for_the_picture_itself() -> None:
    first, second = pictures(), pictures()
    assert torch.equal(ssim(first, first), torch.ones(2, dtype=torch.float64))
    assert psnr(first, first).tolist() == [math.inf, math.inf]
    assert bool((ssim(first, second) < 0.9).all())
    assert bool((psnr(first, second) < 20).all())


def test_closeness_is_symmetric() -> None:
    first, second = pictures(), pictures()
    torch.testing.assert_close(ssim(first, second), ssim(second, first))
    torch.testing.assert_close(psnr(first, second), psnr(second, first))


def test_signal_to_noise_counts_a_range_of_two() -> None:
    first = torch.zeros(1, 3, 16, 16)
    assert psnr(first, first + 0.2).item() == pytest.approx(20.0, abs=1e-4)  # 10 log10(2^2/0.2^2)


def test_flat_pictures_differ_in_luminance_alone() -> None:
    # Without variance the structure term is 1: (2ab + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 2)^2.
    a, b, c1 = 0.5, -0.25, 0.0004
    found = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b)).item()
    assert found == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_one_window_follows_the_published_formula() -> None:
    # A picture as large as the window has one value, which is written out here.
    a, b = pictures(1, 11).double(), pictures(1, 11).double()
    at = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-(at**2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2
    assert window.sum().item() == pytest.approx(1)
    values = []
    for x, y in zip(a[0], b[0], strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        top = (2 * mx * my + c1) * (2 * cov + c2)
        values.append(top / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b).item() == pytest.approx(torch.stack(values).mean().item())


def test_a_negative_has_negative_structure() -> None:
    rows = torch.arange(24) % 2 * 2.0 - 1
    board = (rows[:, None] * rows[None, :]).expand(1, 3, 24, 24)
    assert ssim(board, -board).item() < -0.95


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="11 or more"):
        ssim(pictures(side=8), pictures(side=8))


# --- intervals --------------------------------------------------------------------------------


def test_the_interval_of_a_median_holds_the_true_one_as_often_as_promised() -> None:
    draws = torch.randn(2000, 25).exp()  # skewed; its true median is 1
    hits = sum(low <= 1 <= high for _, low, high in (median_interval(d.tolist()) for d in draws))
    assert 0.94 < hits / 2000 <= 0.99


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (9, 1), (64, 23)])
def test_the_interval_of_a_median_has_the_ranks_of_the_binomial_table(
    count: int, rank: int
) -> None:
    _, low, high = median_interval([float(value) for value in range(count)])
    assert (low, high) == (rank, count - 1 - rank)


def test_a_mean_of_more_values_is_surer() -> None:
    few, many = mean_interval([1.0, 2.0] * 4), mean_interval([1.0, 2.0] * 64)
    assert few[0] == many[0] == 1.5
    assert few[1] < many[1] < 1.5 < many[2] < few[2]
    assert mean_interval([3.0]) == (3.0, 3.0, 3.0)
    assert mean_interval([0.9, 1.0], most=1.0)[2] == 1.0


def test_a_distance_grows_with_the_shift_and_its_interval_surrounds_it() -> None:
    real = torch.randn(400, 4)
    near = distance_interval(torch.randn(200, 4), real)
    far = distance_interval(torch.randn(200, 4) + 1, real)
    assert 0 <= near[1] < near[0] < near[2] < far[1] < far[0] < far[2]
    assert far[0] == pytest.approx(4, rel=0.3)  # a unit shift in each of four directions
    with pytest.raises(ValueError, match="two or more"):
        distance_interval(torch.randn(1, 4), real)


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    torch.manual_seed(0)
    base = torch.randn(4000, 5, dtype=torch.float64)
    whitened = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    shifted = 3 * whitened + torch.tensor([2.0, 0, 0, 0, 0])
    # Unit against 3x unit covariance, means 2 apart: 2^2 + 5 * (1 - 3)^2.
    assert frechet_distance(whitened, shifted) == pytest.approx(4 + 5 * 4, rel=1e-6)
    assert frechet_distance(whitened, whitened) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [3, 40])
def test_the_distance_is_the_published_one_of_however_few_pictures(count: int) -> None:
    first = torch.randn(count, 6, dtype=torch.float64)
    second = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    a, b = torch.cov(first.T), torch.cov(second.T)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    wanted = apart + a.trace() + b.trace() - 2 * roots.sum()
    assert frechet_distance(first, second) == pytest.approx(wanted.item(), rel=1e-5)


def test_the_interval_holds_the_share_and_narrows_with_evidence() -> None:
    few, many = wilson_interval(8, 10), wilson_interval(800, 1000)
    assert few[0] < many[0] < 0.8 < many[1] < few[1]
    # Wilson's published example: 10 of 10 leaves 0.722 possible.
    assert wilson_interval(10, 10)[0] == pytest.approx(0.722, abs=1e-3)


def test_what_is_lost_is_lost_by_the_same_scenes() -> None:
    theirs = [1, 0] * 50
    lost, low, high = lost_interval(theirs, theirs)
    assert (lost, low, high) == (0, 0, 0)  # though each set alone is unsure by a fifth
    fewer = [1, 0] * 40 + [0, 0] * 10
    lost, low, high = lost_interval(fewer, theirs)
    assert lost == pytest.approx(0.2)
    assert 0.05 < low < 0.2 < high < 0.35
    assert lost_interval(theirs, fewer)[0] == pytest.approx(-0.25)
    with pytest.raises(ValueError, match="scores 0"):
        lost_interval(theirs, [0] * 100)
