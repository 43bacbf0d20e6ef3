"""How good a picture is beside the 50-step one of its seed, and how sure that is: pure functions.

Pictures are float32 [B,3,H,W] in [-1,1]. Intervals are two-sided at 95%; those that resample do so
from a fixed seed, so a stored figure can be computed again from the stored measurements.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

RANGE = 2.0
"""Largest minus smallest value of a picture in [-1,1]."""

DECIBELS = 60.0
"""The most that a picture's closeness counts as: from here up, rounding to 8 bits is what differs.
Without a bound one picture that equals its reference would outweigh all others in a mean."""

Z95 = 1.96

_TAPS, _SPREAD, _K1, _K2 = 11, 1.5, 0.01, 0.03


def psnr(ours: Tensor, theirs: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture [B]; infinite where two are the same."""
    error = (ours - theirs).double().square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error)


def ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean structural similarity of each picture [B], 1 where two are the same.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, with the constants published there: an 11x11
    Gaussian window of standard deviation 1.5, K1 0.01, K2 0.03; every colour channel on its own,
    windows wholly inside the picture. Raises ValueError for a side shorter than the window.
    """
    if min(ours.shape[-2:]) < _TAPS:
        raise ValueError(f"pictures of {tuple(ours.shape[-2:])} pixels; expected {_TAPS} or more")
    a, b = ours.double(), theirs.double()
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * RANGE) ** 2, (_K2 * RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian-weighted local means, valid windows only: one tap vector along each axis."""
    at = torch.arange(_TAPS, dtype=pictures.dtype, device=pictures.device) - _TAPS // 2
    taps = torch.exp(-(at**2) / (2 * _SPREAD**2))
    channels = pictures.shape[1]
    kernel = (taps / taps.sum()).expand(channels, 1, 1, _TAPS)
    rows = functional.conv2d(pictures, kernel, groups=channels)
    return functional.conv2d(rows, kernel.mT, groups=channels)


# --- intervals --------------------------------------------------------------------------------


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the 95% interval of the true one, whatever the distribution.

    Between the k-th smallest and the k-th largest value, k from the binomial distribution: each
    value lies below the true median with probability one half. Under six values no interval has
    95%, and the whole range is given.
    """
    ordered, count = sorted(values), len(values)
    below = 0.0
    rank = 0
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    rank = max(rank - 1, 0)
    return statistics.median(ordered), ordered[rank], ordered[count - 1 - rank]


def mean_interval(values: Sequence[float], most: float = math.inf) -> tuple[float, float, float]:
    """Mean and its 95% interval by the normal approximation; a single value has no spread.

    ``most`` is what no value can exceed, nor the interval.
    """
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = Z95 * spread / math.sqrt(len(values))
    return mean, mean - half, min(mean + half, most)


def distance_interval(
    features: Tensor, real: Tensor, draws: int = 20
) -> tuple[float, float, float]:
    """Frechet distance of feature sets [N,D] and its 95% interval.

    The standard error is that of the distance over ``draws`` resamples of the pictures
    (bootstrap); their own mean is not used, a resample being further away than the sample. No
    distance is below 0. Raises ValueError for fewer than two pictures, which have no covariance.
    """
    from fresco_trt.demo.score import frechet_distance

    count = len(features)
    if count < 2:
        raise ValueError(f"{count} pictures; expected two or more for a distance")
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(count, (count,), generator=generator) for _ in range(draws)]
    spread = statistics.stdev(frechet_distance(features[pick], real) for pick in picks)
    distance = frechet_distance(features, real)
    return distance, max(distance - Z95 * spread, 0.0), distance + Z95 * spread
