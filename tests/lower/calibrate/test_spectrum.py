"""Laws of the measured spectrum: its unit, its frequencies, what it does not see, and the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fresco_trt.errors import CalibrationError, IncompatibleOptions
from fresco_trt.lower.calibrate.spectrum import (
    PowerLaw,
    RadialSpectrum,
    Ring,
    cosine_power,
    fit_power_law,
    measure,
    radial_frequency,
)
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.spectrum import Spectrum

TINY = model_facts("flux-tiny")
SHAPES = [(16, 16), (32, 32), (16, 32), (48, 32)]


def spectrum_of(latents: Tensor) -> RadialSpectrum:
    """Of latents [B,C,h,w], two pictures at a time."""
    found = RadialSpectrum(latents.shape[-2], latents.shape[-1])
    for first in range(0, len(latents), 2):
        found.add(latents[first : first + 2])
    return found


def powers(latents: Tensor) -> list[float]:
    return [ring.power for ring in spectrum_of(latents).rings()]


def fitted(latents: Tensor, low: int = 1) -> PowerLaw:
    found = spectrum_of(latents)
    return fit_power_law(found.rings(), found.frequencies, low)


def cosines(side: int) -> Tensor:
    """The orthonormal cosines one by one, written apart from the code under test."""
    rows = [
        [math.cos(math.pi * k * (2 * j + 1) / (2 * side)) for j in range(side)] for k in range(side)
    ]
    found = torch.tensor(rows, dtype=torch.float64)
    return found / found.square().sum(dim=1, keepdim=True).sqrt()


def field(height: int, width: int, law: Spectrum, count: int = 2) -> Tensor:
    """Latents [count,3,h,w] that follow a law exactly, with signs drawn and means too."""
    down, across = torch.arange(height)[:, None], torch.arange(width)[None, :]
    shorter = min(height, width)
    cycles = shorter * torch.hypot(down / (2.0 * height), across / (2.0 * width)).double()
    cycles[0, 0] = 1.0
    size = (law.amplitude * cycles**-law.beta).sqrt()
    signs = torch.randint(0, 2, (count, 3, height, width)) * 2 - 1
    return cosines(height).mT @ (size * signs) @ cosines(width)


# --- unit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_white_noise_of_unit_variance_has_power_one_at_every_frequency(
    height: int, width: int
) -> None:
    rings = spectrum_of(torch.randn(96, 4, height, width)).rings()
    assert len(rings) == min(height, width) // 2
    for ring in rings:
        # A coefficient's square has the variance 2; five errors in some hundred draws is a fault.
        error = math.sqrt(2 / (96 * 4 * ring.coefficients))
        assert ring.power == pytest.approx(1.0, abs=5 * error)
        assert ring.error == pytest.approx(error, rel=0.4)


def test_signal_and_noise_add_in_proportion_to_their_squares() -> None:
    clean = field(32, 32, Spectrum(amplitude=40.0, beta=2.0, source="a test"), count=64)
    alone = powers(clean)
    noisy = powers(0.4 * clean + 0.6 * torch.randn_like(clean))
    for ring, before in zip(noisy, alone, strict=True):
        assert ring == pytest.approx(0.16 * before + 0.36, rel=0.25)


@given(factor=st.floats(0.01, 100.0))
def test_power_grows_with_the_square_of_the_latents(factor: float) -> None:
    latents = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    expected = [factor**2 * power for power in powers(latents)]
    assert powers(factor * latents) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_all_coefficients_together_are_the_sum_of_squares(height: int, width: int) -> None:
    latents = 3.0 + torch.randn(2, 3, height, width, dtype=torch.float64)
    total = latents.square().sum(dim=(-2, -1))
    assert torch.allclose(cosine_power(latents).sum(dim=(-2, -1)), total, rtol=1e-12)
    assert spectrum_of(latents).square == pytest.approx(latents.square().mean().item(), rel=1e-12)


# --- frequency --------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "across"), [(0, 2), (4, 0), (6, 8), (3, 3), (0, 31)])
def test_a_cosine_is_in_the_ring_of_its_cycles_and_in_no_other(down: int, across: int) -> None:
    wave = cosines(32)[down][:, None] * cosines(32)[across][None, :]
    rings = spectrum_of(wave.expand(2, 1, 32, 32)).rings()
    cycles = math.hypot(down, across) / 2
    for ring in rings:
        expected = 1.0 / ring.coefficients if ring.frequency == math.floor(cycles + 0.5) else 0.0
        assert ring.power == pytest.approx(expected, rel=1e-9, abs=1e-20)


def test_cycles_are_counted_over_the_shorter_side() -> None:
    tall, wide = radial_frequency(64, 32), radial_frequency(32, 64)
    assert torch.equal(tall, wide.mT)
    assert tall[0, 2] == 1.0  # one cycle across, where the side is the shorter one
    assert tall[4, 0] == 1.0  # two cycles down a side twice as long


def test_a_coarse_grid_of_half_the_side_holds_the_lower_half() -> None:
    fine, coarse = radial_frequency(32, 32), radial_frequency(16, 16)
    assert torch.equal(fine[:16, :16], coarse)


@pytest.mark.parametrize("turned", [lambda z: z.flip(-1), lambda z: z.flip(-2), lambda z: z.mT])
def test_a_turned_picture_has_the_same_spectrum(turned: Any) -> None:
    latents = torch.randn(4, 2, 32, 32, dtype=torch.float64)
    assert powers(turned(latents)) == pytest.approx(powers(latents), rel=1e-9)


def test_the_same_picture_at_twice_the_side_has_four_times_the_power() -> None:
    # A smooth picture sampled at two sizes: the amplitude belongs to a size.
    def sampled(side: int) -> Tensor:
        place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        waves = [torch.cos(math.pi * k * place) / k for k in range(1, 9)]
        return sum(waves, torch.zeros(side))[:, None] * waves[2][None, :]

    small, large = (powers(sampled(side).expand(2, 1, side, side)) for side in (32, 64))
    for before, after in zip(small[:4], large[:4], strict=True):
        assert after == pytest.approx(4 * before, rel=1e-9, abs=1e-18)


# --- what it does not see ---------------------------------------------------------------------


@given(mean=st.floats(-50.0, 50.0))
def test_the_mean_of_a_picture_changes_nothing(mean: float) -> None:
    latents = torch.randn(4, 3, 16, 32, dtype=torch.float64)
    means = mean * torch.randn(4, 3, 1, 1, dtype=torch.float64)  # of each channel of each picture
    assert powers(latents + means) == pytest.approx(powers(latents), rel=1e-9)


def test_how_pictures_are_batched_changes_nothing() -> None:
    latents = torch.randn(7, 2, 16, 16)
    whole = RadialSpectrum(16, 16)
    whole.add(latents)
    for one, other in zip(whole.rings(), spectrum_of(latents).rings(), strict=True):
        assert one.power == pytest.approx(other.power, rel=1e-12)
        assert one.error == pytest.approx(other.error, rel=1e-12)


def test_errors_are_those_of_pictures_not_of_coefficients() -> None:
    # Every picture twice: as many coefficients again, and no more independent pictures.
    latents = torch.randn(6, 1, 16, 16).repeat(1, 50, 1, 1)
    alone = spectrum_of(latents[:, :1]).rings()
    for ring, before in zip(spectrum_of(latents).rings(), alone, strict=True):
        assert ring.error == pytest.approx(before.error, rel=1e-9)


def test_one_picture_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="1 pictures"):
        spectrum_of(torch.randn(1, 1, 8, 8)).rings()


# --- power law --------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("low", [1, 2, 5])
@settings(max_examples=20)
@given(amplitude=st.floats(0.1, 1000.0), beta=st.floats(0.3, 4.0))
def test_an_exact_law_is_found_exactly(
    height: int, width: int, low: int, amplitude: float, beta: float
) -> None:
    law = Spectrum(amplitude=amplitude, beta=beta, source="a test")
    found = fitted(field(height, width, law), low)
    assert found.amplitude == pytest.approx(amplitude, rel=1e-7)
    assert found.beta == pytest.approx(beta, rel=1e-7)
    assert found.r2 == pytest.approx(1.0, abs=1e-9)
    assert found.factor == pytest.approx(1.0, abs=1e-6)
    assert (found.low, found.high) == (low, min(height, width) // 2)


@pytest.mark.parametrize("beta", [1.5, 2.0, 2.5])
def test_the_law_of_a_cutting_of_something_larger_is_found(beta: float) -> None:
    # Pictures are cut out of a scene that goes on beyond them: neither mirrored nor repeated. The
    # law of the whole is known; its amplitude for the cutting, of a quarter of the side, follows.
    side, cut = 256, 64
    cycles = torch.hypot(*(torch.fft.fftfreq(side, 1 / side).double()[shape] for shape in GRIDS))
    cycles[0, 0] = math.inf
    noise = torch.fft.fft2(torch.randn(24, 2, side, side, dtype=torch.float64), norm="ortho")
    whole = torch.fft.ifft2(noise * (100.0 * cycles**-beta).sqrt(), norm="ortho").real
    found = fitted(whole[..., :cut, :cut], low=4)
    assert found.beta == pytest.approx(beta, abs=0.12)
    expected = 100.0 * (side / cut) ** -beta
    assert found.amplitude / expected == pytest.approx(1.0, abs=0.35)


GRIDS = ((slice(None), None), (None, slice(None)))


def test_the_fit_tells_how_far_off_it_is() -> None:
    found = spectrum_of(field(32, 32, Spectrum(amplitude=9.0, beta=2.0, source="a test")))
    rings = list(found.rings())
    rings[7] = replace(rings[7], power=3.0 * rings[7].power)
    law = fit_power_law(rings, found.frequencies, 1)
    assert 0.8 < law.r2 < 1.0
    assert 2.0 < law.factor < 3.0


def test_the_law_is_the_least_squares_one() -> None:
    found = spectrum_of(torch.randn(4, 2, 32, 32))
    bent = [replace(ring, power=ring.power * ring.frequency**-2.0) for ring in found.rings()]
    law = fit_power_law(bent, found.frequencies, 1)

    def misfit(amplitude: float, beta: float) -> float:
        means = [amplitude * radii.pow(-beta).mean().item() for radii in found.frequencies]
        pairs = zip(bent, means, strict=True)
        return sum(math.log(ring.power / mean) ** 2 for ring, mean in pairs)

    best = misfit(law.amplitude, law.beta)
    for change in (0.97, 1.03):
        assert misfit(law.amplitude * change, law.beta) > best
        assert misfit(law.amplitude, law.beta * change) > best


def rings_of(power: Callable[[int], float], count: int = 8) -> tuple[list[Ring], list[Tensor]]:
    """Rings of one coefficient each, and their frequencies."""
    numbers = range(1, count + 1)
    rings = [Ring(frequency=n, coefficients=1, power=power(n), error=0.0) for n in numbers]
    return rings, [torch.tensor([float(n)], dtype=torch.float64) for n in numbers]


@pytest.mark.parametrize(
    ("power", "said"),
    [
        (lambda n: 1.0, "does not fall"),
        (lambda n: float(n), "does not fall .beta -"),
        (lambda n: 0.0, "without any power at 2 cycles"),
        (lambda n: 1.0 / n if n < 5 else 1e-20, "without any power at 5 cycles"),
        (lambda n: math.nan, "without any power"),
    ],
)
def test_what_falls_with_no_power_law_is_refused(power: Callable[[int], float], said: str) -> None:
    with pytest.raises(CalibrationError, match=said) as raised:
        fit_power_law(*rings_of(power))
    assert raised.value.exit_code == 2


def test_one_ring_makes_no_line() -> None:
    with pytest.raises(ValueError, match="a line needs two"):
        fit_power_law(*rings_of(lambda n: 1.0 / n, count=2))


# --- pictures ---------------------------------------------------------------------------------


class Codec:
    """An encoder that takes a picture's first channel, a quarter of its side, for its latents."""

    channels, scale, scaling, shift, digest = 4, 4, 1.0, 0.0, "0" * 64

    def __call__(self, pixels: Any) -> Tensor:
        latents = torch.from_numpy(pixels[:, ::4, ::4, 0]).double() / 255
        return latents[:, None].expand(-1, self.channels, -1, -1)


def noise(count: int) -> Any:
    """Pictures uint8 [count,64,64,3] whose spectrum falls."""
    latents = field(16, 16, Spectrum(amplitude=1.0, beta=2.0, source="a test"), count)
    pixels = (latents[:, 0] * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
    return np.repeat(np.repeat(pixels, 4, axis=1), 4, axis=2)[..., None].repeat(3, axis=3)


def test_a_measurement_knows_its_pictures() -> None:
    codec: Any = Codec()
    pictures = noise(6)
    whole = measure(codec, [pictures], TINY)
    parts = measure(codec, [pictures[:5], pictures[5:]], TINY)
    other = measure(codec, [pictures[::-1].copy()], TINY)
    assert (whole.pictures, len(whole.rings), whole.law.low, whole.law.high) == (6, 8, 2, 8)
    assert parts.digest == whole.digest != other.digest
    assert parts.law.beta == pytest.approx(whole.law.beta, rel=1e-9)
    assert whole.law.beta == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_are_refused(count: int) -> None:
    codec: Any = Codec()
    with pytest.raises(CalibrationError, match=f"{count} pictures"):
        measure(codec, [noise(2)[:count]] if count else [], TINY)


@pytest.mark.parametrize("name", ["flux", "flux-schnell"])
def test_another_models_codec_is_refused(name: str) -> None:
    codec: Any = Codec()
    with pytest.raises(IncompatibleOptions, match="16 channels at 1/8"):
        measure(codec, [noise(2)], model_facts(name))
