"""How sure a figure of quality is: pure functions.

Intervals are two-sided at 95%; those that resample do so
from a fixed seed, so a stored figure can be computed again from the stored measurements.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DECIBELS = 60.0
"""The most that a picture's closeness counts as: from here up, rounding to 8 bits is what differs.
Without a bound one picture that equals its reference would outweigh all others in a mean."""

Z95 = 1.96


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


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927)."""
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - spread) / scale, (centre + spread) / scale


def lost_interval(
    ours: Sequence[float], theirs: Sequence[float], draws: int = 1000
) -> tuple[float, float, float]:
    """Share of their score that ours lost, and its 95% interval; negative where ours is higher.

    The scores of each scene are a pair, and the interval is that of ``draws`` resamples of the
    pairs (bootstrap). Raises ValueError where theirs is 0 in all scenes: nothing can be lost.
    """
    if not any(theirs):
        raise ValueError("a reference that scores 0 in all scenes; expected some score to lose")
    pairs = torch.tensor([ours, theirs], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(theirs), (draws, len(theirs)), generator=generator)
    kept, whole = pairs[:, picks].sum(dim=2)
    spread = 1 - kept[whole > 0] / whole[whole > 0]
    ends = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64))
    lost = 1 - float(pairs[0].sum() / pairs[1].sum())
    return lost, min(float(ends[0]), lost), max(float(ends[1]), lost)


def distance_interval(
    features: Tensor, real: Tensor, draws: int = 20
) -> tuple[float, float, float]:
    """Frechet distance of feature sets [N,D] and its 95% interval.

    The standard error is that of the distance over ``draws`` resamples of the pictures
    (bootstrap); their own mean is not used, a resample being further away than the sample. No
    distance is below 0. Raises ValueError for fewer than two pictures, which have no covariance.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"{count} pictures; expected two or more for a distance")
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(count, (count,), generator=generator) for _ in range(draws)]
    goal = _fitted(real)
    spread = statistics.stdev(_distance_to(features[pick], *goal) for pick in picks)
    distance = _distance_to(features, *goal)
    return distance, max(distance - Z95 * spread, 0.0), distance + Z95 * spread


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between Gaussians fitted to feature sets [N,D] (Dowson & Landau 1982)."""
    return _distance_to(first, *_fitted(second))


def _fitted(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D,D] of features [N,D]."""
    values = features.double()
    return values.mean(0), torch.cov(values.T)


def _distance_to(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    values = features.double()
    own = values.mean(0)
    # R^T R is their covariance A. R B R^T has the eigenvalues of A B other than 0, and no more rows
    # than there are pictures, which may be far fewer than features.
    root = torch.linalg.qr((values - own) / (len(values) - 1) ** 0.5, mode="r").R
    cross = torch.linalg.eigvalsh(root @ covariance @ root.T).clamp(min=0).sqrt().sum()
    traces = root.square().sum() + covariance.trace()
    return float((own - mean).square().sum() + traces - 2 * cross)
