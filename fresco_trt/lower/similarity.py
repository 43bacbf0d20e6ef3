"""How close two pictures are: pure functions on float32 [B,3,H,W] in [-1,1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

RANGE = 2.0
"""Largest minus smallest value of a picture in [-1,1]."""

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
