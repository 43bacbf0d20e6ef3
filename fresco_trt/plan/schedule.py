"""Sigma lists as plain tuples: the resolution shift, its inverse, and where a stage may end.

First step of the data path. The shift is applied here, once; nothing downstream shifts again.
Sigma is the noise level of flow matching, ``x_sigma = (1 - sigma) * x0 + sigma * noise``: 1 is pure
noise, 0 the clean latent. ``u`` is the same axis before the shift and ``h`` the shift factor
(``h = e^mu`` in FLUX's terms; ``h = 1`` leaves the axis alone).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

MAX_STEPS = 1000  # diffusers' training schedule has no more levels than this

SIGMA_TOLERANCE = 1e-6
"""Sigmas this close are one sigma: they were computed along two routes in double precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftRule:
    """Resolution-dependent shift: mu grows linearly from ``base_shift`` at ``base_tokens`` image
    tokens to ``max_shift`` at ``max_tokens``, and beyond. Where ``terminal`` is not 0, the last
    sigma before 0 is brought to it. Raises ValueError for equal token counts, and for a terminal
    outside [0, 1).
    """

    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    terminal: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.terminal < 1.0:
            raise ValueError("the shift rule needs a terminal sigma within [0, 1)")
        if not 0 < self.base_tokens < self.max_tokens:
            raise ValueError("the shift rule needs 0 < base_tokens < max_tokens")


def shift_sigma(u: float, h: float) -> float:
    """``h*u / (1 + (h-1)*u)``, written so that 0 and 1 are fixed points to the last bit.

    Raises ValueError when ``u`` is outside [0, 1] or ``h`` is not positive.
    """
    _check_unit(u, "u")
    _check_factor(h)
    return h * u / (h * u + (1.0 - u))


def unshift_sigma(sigma: float, h: float) -> float:
    """Inverse of :func:`shift_sigma`: ``sigma / (h - (h-1)*sigma)``; same errors."""
    _check_unit(sigma, "sigma")
    _check_factor(h)
    return sigma / (sigma + h * (1.0 - sigma))


def dynamic_mu(tokens: int, rule: ShiftRule) -> float:
    """FLUX's resolution-dependent shift exponent for a picture of ``tokens`` image tokens.

    The order of operations is that of diffusers' ``calculate_shift``, so the result is the same
    double; a different order differs in the last bit and would move every sigma.
    """
    slope = (rule.max_shift - rule.base_shift) / (rule.max_tokens - rule.base_tokens)
    offset = rule.base_shift - slope * rule.base_tokens
    return tokens * slope + offset


def stage_sigmas(start: float, end: float, steps: int, h: float) -> tuple[float, ...]:
    """``steps + 1`` sigmas from exactly ``start`` down to exactly ``end``.

    Evenly spaced on the un-shifted axis between the two ends, as RALU spaces a stage
    (arXiv 2507.08422, code). Raises ValueError unless ``0 <= end < start <= 1`` and ``steps >= 1``.
    """
    _check_steps(steps)
    if not end < start:
        raise ValueError(f"a stage runs downwards, not from {start} to {end}")
    first, last = unshift_sigma(start, h), unshift_sigma(end, h)
    inner = (first + (last - first) * step / steps for step in range(1, steps))
    return (start, *(shift_sigma(u, h) for u in inner), end)


def stretched(sigmas: tuple[float, ...], terminal: float) -> tuple[float, ...]:
    """A falling list that ends at 0, its last sigma before that brought to ``terminal`` and those
    before it in proportion; the first stays. As it is where ``terminal`` is 0, and for one step.

    diffusers' ``shift_terminal`` does this to a list from 1 (:func:`plain_sigmas`).
    """
    if terminal == 0.0 or len(sigmas) < 3:
        return sigmas
    first, *inner, last = sigmas
    scale = (first - terminal) / (first - inner[-1])
    moved = (first - (first - sigma) * scale for sigma in inner[:-1])
    return (first, *moved, terminal, last)


def plain_sigmas(
    steps: int, h: float, *, fixed: bool = False, terminal: float = 0.0
) -> tuple[float, ...]:
    """The full-resolution list of the unmodified pipeline: ``steps + 1`` sigmas from 1 to 0.

    Equal bit for bit to ``FlowMatchEulerDiscreteScheduler`` under ``FluxPipeline``: that computes
    in float32, so every operation here is rounded to float32 too. Without it a one-stage plan
    would be the plain sampler only approximately. That scheduler has a formula of its own for a
    factor that is ``fixed`` whatever the size, which rounds in another way; where it rounds to a
    little more than 1, this is 1. With a ``terminal`` the last of them before 0 is that one, and
    the others follow (``shift_terminal``), unless there is one step only, for which that scheduler
    has no numbers. Raises ValueError for ``steps < 1``, ``h <= 0``.
    """
    _check_steps(steps)
    _check_factor(h)
    gap = (1.0 / steps - 1.0) / max(steps - 1, 1)
    inner = [_float32(index * gap + 1.0) for index in range(steps - 1)]
    unshifted = [*inner, _float32(1.0 / steps)]
    shift = _fixed_float32 if fixed else _shift_float32
    sigmas = [shift(u, h) for u in unshifted]
    if terminal and steps > 1:
        sigmas = _stretched_float32(sigmas, terminal)
    return (*sigmas, 0.0)


def rewind_sigma(sigma: float, r: float = 2.0) -> float:
    """Level at which a latent at ``sigma`` is white again after an ``r``-fold expansion.

    ``r*sigma / (1 + (r-1)*sigma)``, for an orthonormal expansion of each side by ``r`` (SPEED,
    arXiv 2605.18736): the same map as a shift by ``r``. Raises ValueError as that does.
    """
    return shift_sigma(sigma, r)


def spectral_switch(amplitude: float, beta: float, delta: float, frequency: float) -> float:
    """Sigma at which spatial ``frequency`` (latent cycles, radial) starts to carry signal.

    ``1 / (1 + sqrt(delta / (P * (1 + P - delta))))`` with the latents' power spectrum
    ``P = amplitude * frequency**-beta`` and tolerance ``delta`` (SPEED, arXiv 2605.18736). Above it
    a grid that cannot hold the frequency loses nothing that matters. Raises ValueError when an
    argument is not positive or ``delta`` reaches ``1 + P``, where the formula ends.
    """
    if min(amplitude, beta, delta, frequency) <= 0:
        raise ValueError("amplitude, beta, delta and frequency must be positive")
    power = amplitude * frequency**-beta
    if delta >= 1.0 + power:
        raise ValueError(f"delta {delta} must stay below 1 + P = {1.0 + power}")
    return 1.0 / (1.0 + math.sqrt(delta / (power * (1.0 + power - delta))))


def _shift_float32(u: float, h: float) -> float:
    if h == 1.0:
        return u
    factor = _float32(h)
    return _float32(factor / _float32(factor + _float32(_float32(1.0 / u) - 1.0)))


def _fixed_float32(u: float, h: float) -> float:
    factor, excess = _float32(h), _float32(h - 1.0)
    return min(_float32(_float32(factor * u) / _float32(1.0 + _float32(excess * u))), 1.0)


def _stretched_float32(sigmas: list[float], terminal: float) -> list[float]:
    """:func:`stretched` in diffusers' own order of operations, for a list from 1."""
    clean = [_float32(1.0 - sigma) for sigma in sigmas]
    scale = _float32(clean[-1] / _float32(1.0 - terminal))
    return [_float32(1.0 - _float32(each / scale)) for each in clean]


def _float32(value: float) -> float:
    """``value`` rounded to the nearest float32. One double operation rounded so equals the float32
    operation: a double has more than twice the digits, so rounding twice does no harm."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _check_unit(value: float, name: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")


def _check_factor(h: float) -> None:
    if not 0.0 < h < math.inf:
        raise ValueError(f"the shift factor must be positive and finite, not {h}")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, not {steps}")
