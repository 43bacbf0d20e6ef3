"""Laws of the bands: an orthonormal basis, which frequencies are low, and what becomes of each."""

from __future__ import annotations

import math

import pytest
import torch

from fresco_trt.run.cache.freqca import FreqCaPredictor, low_band, low_counts, split
from fresco_trt.run.resample import dct

GRIDS = [(32, 32), (24, 40), (1, 16), (64, 32), (1, 1), (8, 8)]
CPU = torch.device("cpu")


def band_of(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return low_band(rows, columns, dtype, CPU)


def wave(rows: int, columns: int, u: int, v: int) -> torch.Tensor:
    """One frequency of the DCT over the grid, as a feature [1,N,3], float64."""
    down = torch.cos(math.pi * u * (2 * torch.arange(rows).double() + 1) / (2 * rows))
    across = torch.cos(math.pi * v * (2 * torch.arange(columns).double() + 1) / (2 * columns))
    picture = down[:, None] * across
    return picture.reshape(1, -1, 1) * torch.randn(3, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_transform_is_orthonormal_and_ordered_by_frequency(size: int) -> None:
    matrix = dct(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    changes = [int((row.sign().diff() != 0).sum()) for row in matrix]
    assert changes == list(range(size))
    assert (matrix[:, 0] > 0).all()


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_the_bands_sum_to_the_feature(rows: int, columns: int) -> None:
    feature = torch.randn(2, rows * columns, 5)
    band = band_of(rows, columns, torch.float32)
    low, high = split(feature, band)
    torch.testing.assert_close(band.T @ low + high, feature)
    assert (band @ high).abs().max() < 1e-5


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_the_low_band_is_orthonormal_and_has_the_mean(rows: int, columns: int) -> None:
    band = band_of(rows, columns)
    torch.testing.assert_close(band @ band.T, torch.eye(len(band), dtype=torch.float64))
    assert len(band) == sum(low_counts(rows, columns))
    _, high = split(torch.ones(1, rows * columns, 1, dtype=torch.float64), band)
    assert high.abs().max() < 1e-12


@pytest.mark.parametrize("side", [8, 20, 32, 64])
def test_on_a_square_grid_the_radius_is_the_published(side: int) -> None:
    """``hypot(u, v) <= 0.1 * hypot(side - 1, side - 1)``, index by index."""
    rim = 0.1 * math.hypot(side - 1, side - 1) + 1e-9
    expected = tuple(sum(math.hypot(u, v) <= rim for v in range(side)) for u in range(side))
    assert low_counts(side, side) == expected


def test_the_rim_is_low() -> None:
    """On 11 x 11 the radius is that of (1, 1) exactly, where floating point might say otherwise."""
    assert low_counts(11, 11) == (2, 2, *[0] * 9)


def test_on_a_long_grid_low_is_slow_per_token() -> None:
    """Twice the columns hold twice the horizontal frequencies."""
    counts = low_counts(32, 64)
    assert counts[0] == 2 * sum(count > 0 for count in counts) - 1
    assert low_counts(64, 32)[0] == sum(count > 0 for count in counts)


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (24, 40)])
def test_low_frequencies_are_reused_and_high_ones_continued(rows: int, columns: int) -> None:
    """A line in the axis: kept in the low band, at ``2 s^2`` of its slope in the high band."""
    counts = low_counts(rows, columns)
    for u, v in [(0, 0), (0, counts[0] - 1), (0, counts[0]), (1, 1), (rows - 1, columns - 1)]:
        base, slope = (wave(rows, columns, u, v) for _ in range(2))
        predictor = FreqCaPredictor(rows=rows, columns=columns)
        state = predictor.start()
        for at in (0.0, 1.0, 4.0, 6.0):
            state = predictor.observe(state, base + at * slope, at)
        moved = predictor.predict(state, 9.0) - (base + 6.0 * slope)
        share = 0.0 if v < counts[u] else 2 * 0.71**2
        torch.testing.assert_close(moved, share * 3.0 * slope, rtol=1e-7, atol=1e-9)


def test_the_closed_form_of_the_high_band() -> None:
    """``F + sum_i D_i s^i H_i(s k) / i!``, over spacings 2, then 3, with s of 0.71."""
    rows, columns, s, k = 16, 24, 0.71, 4.0
    older, old, new = torch.randn(3, 1, rows * columns, 5, dtype=torch.float64)
    predictor = FreqCaPredictor(rows=rows, columns=columns)
    state = predictor.start()
    for feature, at in ((older, 1.0), (old, 3.0), (new, 6.0)):
        state = predictor.observe(state, feature, at)
    first = (new - old) / 3
    second = (first - (old - older) / 2) / 3
    y = s * k
    _, moved = split(s * 2 * y * first + s**2 * (4 * y**2 - 2) / 2 * second, band_of(rows, columns))
    torch.testing.assert_close(predictor.predict(state, 6.0 + k), new + moved)


@pytest.mark.parametrize("shape", [(1, 63, 4), (64, 4), (1, 8, 8, 4)])
def test_features_of_another_grid_are_refused(shape: tuple[int, ...]) -> None:
    predictor = FreqCaPredictor(rows=8, columns=8)
    with pytest.raises(ValueError, match="N of 1x8x8"):
        predictor.observe(predictor.start(), torch.randn(shape), 0.0)


def test_a_basis_is_not_made_within_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept for later requests, and a graph's memory is not."""
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="basis of a grid"):
        low_band(3, 5, torch.float16, torch.device("cuda"))
