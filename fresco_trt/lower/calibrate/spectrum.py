"""The radial power spectrum of a model's latents, and the power law that is fitted to it.

Beside the build: measured once for a VAE, stored in `calibration/`, and written into the model's
facts, from which :func:`fresco_trt.plan.changes.spectral_switches` places switches.

What is measured is the square of each channel's orthonormal cosine transform (DCT-II), averaged
over channels and pictures, of latents normalised as the sampler sees them. So

- white noise of unit variance has ``P = 1`` at every frequency: P and the noise share their unit;
- the powers of all coefficients add up to the latent's sum of squares, and a coarse grid of half
  the side holds the first half of the frequencies along each side: SPEED expands in this basis;
- a picture's mean is in the coefficient (0, 0) alone, which is left out, channel by channel;
- there is no window. A window is what a Fourier transform needs, whose picture jumps at its
  borders; the cosines' picture is mirrored there. It would also count the middle of a picture for
  more than its sides, where pictures have less in them: on the demo's, Hann's doubles the power.

Frequency is radial, in cycles over the latent's shorter side of n pixels: the cosine number k along
a side has k/2 of them, and n/2 is the highest that the grid holds. It counts cycles of a picture,
so one and the same picture at twice the side has four times the power at the same frequency: the
amplitude belongs to the size that it was measured at.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.errors import CalibrationError, IncompatibleOptions
from fresco_trt.run.resample import dct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from fresco_trt.models.family import Encoder
    from fresco_trt.plan.facts import ModelFacts

FIT_FROM = 2
"""First ring of a fit: below two cycles power follows how pictures are composed, not a law."""

_ROUNDS = 50  # of the fit, which settles in about ten
_NOTHING = 1e-12  # power that is rounding error in latents of variance one


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """Mean ``power`` of the ``coefficients`` whose frequency rounds to ``frequency`` cycles.

    ``error`` is the standard error of the mean over pictures: they are independent of one another,
    the coefficients of one picture are not.
    """

    frequency: int
    coefficients: int
    power: float
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """``P(w) = amplitude * w**-beta``, fitted to the rings from ``low`` to ``high`` cycles.

    ``r2`` is the share of the variance of log P that the law explains over these rings, ``factor``
    the largest ratio, taken above 1, between a ring's power and the law.
    """

    amplitude: float
    beta: float
    low: int
    high: int
    r2: float
    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a set of pictures gave.

    ``square`` is the mean square of the normalised latents, ``digest`` the SHA-256 of the pictures'
    pixels as they were encoded.
    """

    rings: tuple[Ring, ...]
    law: PowerLaw
    square: float
    pictures: int
    digest: str


def measure(
    encoder: Encoder, batches: Iterable[npt.NDArray[np.uint8]], facts: ModelFacts
) -> Measured:
    """Encode pictures uint8 [B,H,W,3], all of one size, and measure their latents.

    Raises IncompatibleOptions for a VAE that is not the model's, and CalibrationError as
    :func:`fit_power_law` does or for fewer than two pictures.
    """
    _check_codec(encoder, facts)
    digest = hashlib.sha256()
    spectrum: RadialSpectrum | None = None
    for pixels in batches:
        digest.update(pixels.tobytes())
        latents = encoder(pixels)
        spectrum = spectrum or RadialSpectrum(latents.shape[-2], latents.shape[-1])
        spectrum.add(latents)
    if spectrum is None or spectrum.pictures < 2:
        raise CalibrationError(
            f"{0 if spectrum is None else spectrum.pictures} pictures",
            expected="two or more: a standard error needs them",
            fix="add pictures; some hundreds make the errors small",
        )
    rings = spectrum.rings()
    return Measured(
        rings=rings,
        law=fit_power_law(rings, spectrum.frequencies),
        square=spectrum.square,
        pictures=spectrum.pictures,
        digest=digest.hexdigest(),
    )


# --- spectrum ---------------------------------------------------------------------------------


class RadialSpectrum:
    """Adds up the spectra of latents of ``height`` x ``width``, both even, picture by picture."""

    def __init__(self, height: int, width: int) -> None:
        radius = radial_frequency(height, width)
        ring = torch.floor(radius + 0.5).long()
        masks = [ring == number for number in range(1, min(height, width) // 2 + 1)]
        self.frequencies = tuple(radius[mask] for mask in masks)
        """Of each ring, counted from 1 cycle: the frequencies of its coefficients, float64 [n]."""
        self._masks = masks
        self._powers: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, latents: Tensor) -> None:
        """Count in normalised latents [B,C,height,width]."""
        power = cosine_power(latents).mean(dim=1)
        self._powers.append(torch.stack([power[:, mask].mean(-1) for mask in self._masks], dim=-1))
        self._squares.append(power.mean(dim=(-2, -1)))

    @property
    def pictures(self) -> int:
        """How many were counted in."""
        return sum(len(each) for each in self._powers)

    @property
    def square(self) -> float:
        """Mean square of all latents, their means included."""
        return torch.cat(self._squares).mean().item()

    def rings(self) -> tuple[Ring, ...]:
        """The spectrum from 1 cycle to half the shorter side. ValueError before two pictures."""
        if self.pictures < 2:
            raise ValueError(f"{self.pictures} pictures; a standard error needs two")
        powers = torch.cat(self._powers)
        means, deviations = powers.mean(dim=0), powers.std(dim=0)
        return tuple(
            Ring(
                frequency=number,
                coefficients=len(radii),
                power=mean,
                error=deviation / math.sqrt(self.pictures),
            )
            for number, (radii, mean, deviation) in enumerate(
                zip(self.frequencies, means.tolist(), deviations.tolist(), strict=True), start=1
            )
        )


def cosine_power(latents: Tensor) -> Tensor:
    """Squared coefficients of the orthonormal DCT-II over the last two axes; float64, same shape.

    ``[..., i, j]`` belongs to the cosine with i/2 cycles down the picture and j/2 across it.
    """
    height, width = latents.shape[-2:]
    return (dct(height) @ latents.double() @ dct(width).mT).square()


def radial_frequency(height: int, width: int) -> Tensor:
    """Cycles over the shorter side of every coefficient of :func:`cosine_power`, float64 [h,w]."""
    down, across = (
        torch.arange(side, dtype=torch.float64) / (2 * side) for side in (height, width)
    )
    return min(height, width) * torch.hypot(down[:, None], across[None, :])


# --- power law --------------------------------------------------------------------------------


def fit_power_law(
    rings: Sequence[Ring], frequencies: Sequence[Tensor], low: int = FIT_FROM
) -> PowerLaw:
    """The least-squares line through log power over log frequency, every ring from ``low`` alike.

    ``frequencies`` are those of each ring's coefficients. A ring's power is a mean over them, which
    is the law's value at no frequency that is known beforehand: it is where the law itself has its
    mean over the ring, so line and frequencies are found in turn, and an exact law is found
    exactly. Raises CalibrationError for a ring without power or powers that do not fall, ValueError
    for fewer than two rings.
    """
    pairs = list(zip(rings, frequencies, strict=True))[low - 1 :]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} rings from {low} cycles; a line needs two")
    for ring, _ in pairs:
        if not ring.power > _NOTHING:
            raise _unfit(f"latents without any power at {ring.frequency} cycles")
    powers = torch.tensor([ring.power for ring, _ in pairs], dtype=torch.float64).log()
    beta = 2.0
    for _ in range(_ROUNDS):
        places = torch.stack([_effective(radii, beta) for _, radii in pairs])
        slope, start = _line(places, powers)
        beta = -slope
        if not beta > 1e-6:
            raise _unfit(f"a spectrum that does not fall (beta {beta:.3g})")
    residuals = powers - start - slope * places
    scatter = (powers - powers.mean()).square().sum()
    return PowerLaw(
        amplitude=math.exp(start),
        beta=beta,
        low=pairs[0][0].frequency,
        high=pairs[-1][0].frequency,
        r2=1.0 - (residuals.square().sum() / scatter).item(),
        factor=math.exp(residuals.abs().max().item()),
    )


def _effective(radii: Tensor, beta: float) -> Tensor:
    """Logarithm of the frequency at which ``w**-beta`` has its mean over ``radii``."""
    return radii.pow(-beta).mean().log() / -beta


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and value at 0 of the least-squares line."""
    away = x - x.mean()
    slope = ((away * y).sum() / away.square().sum()).item()
    return slope, (y.mean() - slope * x.mean()).item()


def _unfit(given: str) -> CalibrationError:
    return CalibrationError(
        given,
        expected="pictures with detail of every size, more of it the coarser it is",
        fix="measure on pictures like those that the model is to draw",
    )


def _check_codec(encoder: Encoder, facts: ModelFacts) -> None:
    given, wanted = (encoder.channels, encoder.scale), (facts.latent_channels, facts.vae_scale)
    if given != wanted:
        raise IncompatibleOptions(
            f"a VAE of {given[0]} channels at 1/{given[1]} of each side",
            expected=f"{wanted[0]} channels at 1/{wanted[1]}, those of {facts.name}",
            fix="pass the --weights that belong to --model, or the --model they belong to",
        )
