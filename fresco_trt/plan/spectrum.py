"""Power spectra of latents: what SPEED's criterion needs to know of a model's VAE.

Beside the schedule: :func:`fresco_trt.plan.schedule.spectral_switch` turns a spectrum and a
frequency into a sigma, :func:`fresco_trt.plan.changes.spectral_switches` does it for every switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fresco_trt.plan.schedule import spectral_switch


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum:
    """Radial power spectrum of a VAE's latents, ``P(w) = amplitude * w**-beta``.

    ``w`` in cycles across the latent picture; ``source`` says where the two numbers come from.
    ``side`` is the shorter side, in latent pixels, of the pictures it was measured on; None where
    the source applies one law at every size, as SPEED does. Raises ValueError unless the numbers
    are positive and finite and the source is named.
    """

    amplitude: float
    beta: float
    source: str
    side: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.amplitude, self.beta, self.side if self.side is not None else 1)
        if not (all(0.0 < number < math.inf for number in numbers) and self.source):
            raise ValueError(f"a spectrum needs positive numbers and a source, not {self}")

    def at(self, side: int) -> Spectrum:
        """The spectrum of the same pictures at another shorter ``side``, in latent pixels.

        Twice the side spreads a picture's wave over four times the pixels: at the same cycles
        across the picture it has four times the power beside white noise.
        """
        if self.side is None:
            return self
        return replace(self, amplitude=self.amplitude * (side / self.side) ** 2, side=side)

    def power(self, frequency: float) -> float:
        """``P`` at a positive ``frequency``."""
        return float(self.amplitude * frequency**-self.beta)

    def switch(self, frequency: float, delta: float) -> float:
        """Sigma at which ``frequency`` starts to carry signal; ValueError as spectral_switch."""
        return spectral_switch(self.amplitude, self.beta, delta, frequency)


FLUX_1 = Spectrum(
    amplitude=203.615097,
    beta=1.915461,
    source="SPEED, arXiv 2605.18736, code: 105k pictures of Aesthetics-Train-V2",
)
"""The VAE of FLUX.1, which FLUX.1-schnell, FLUX.1-Kontext and Z-Image share."""

WAN_2_1 = Spectrum(
    amplitude=219.484718,
    beta=2.422687,
    source="SPEED, arXiv 2605.18736, code: the spatial spectrum of 9050 videos of VChitect",
)
"""The VAE of Wan 2.1."""
