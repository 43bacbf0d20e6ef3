"""The solvers: how one velocity moves the latents from a sigma to the next.

Called by :mod:`fresco_trt.run.sampler` once a step, after the engine. A solver belongs to one stage
of one request: entering a stage makes a new one, which is how history is dropped at a transition.
None calls the model more than once a step, and none allocates while it steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor


class StageSolver(Protocol):
    """The solver of one stage, with the buffers that it needs."""

    def step_(
        self,
        tokens: Tensor,
        velocity: Tensor,
        sigma: float,
        sigma_next: float,
        *,
        predicted: bool = False,
    ) -> None:
        """Move ``tokens`` (any shape) in place; ``velocity``, at ``sigma`` and elsewhere in memory,
        is only read. ``predicted`` says that a cache had part in it.
        """
        ...


def euler_step_(tokens: Tensor, velocity: Tensor, delta: float, scratch: Tensor) -> None:
    """``tokens += delta * velocity`` in place, without allocating; ``delta = sigma_next - sigma``.

    Rounded to float32 after the difference, the product and the sum, as diffusers rounds (torch
    takes ``delta`` in the tensors' precision); a fused multiply-add would differ.
    """
    with torch.no_grad():
        torch.mul(velocity, delta, out=scratch)
        tokens.add_(scratch)


class Euler:
    """First order; the sampler of diffusers' ``FlowMatchEulerDiscreteScheduler``, bit for bit."""

    def __init__(self, tokens: Tensor) -> None:
        """For a stage's tokens, of which only shape, dtype and device are read."""
        self._scratch = torch.empty_like(tokens)

    def step_(
        self,
        tokens: Tensor,
        velocity: Tensor,
        sigma: float,
        sigma_next: float,
        *,
        predicted: bool = False,
    ) -> None:
        """As :class:`StageSolver`; a step is the same whether ``predicted`` or not."""
        euler_step_(tokens, velocity, sigma_next - sigma, self._scratch)


class Multistep:
    """Second order: Adams-Bashforth of two steps, on sigmas of any spacing.

    The velocity is continued linearly to the middle of the step: with ``h`` this step's length and
    ``h_prev`` the one before's, ``x += h * (v + h / (2 h_prev) * (v - v_prev))``. The first step
    has nothing to continue and is Euler's.

    So is a step of which either velocity is predicted: a prediction is continued from earlier
    steps already, and the difference of two velocities, one of them predicted, is more of the
    predictor's error than of the path's curvature; continuing it once more has lost the picture.
    """

    def __init__(self, tokens: Tensor) -> None:
        """For a stage's tokens, of which only shape, dtype and device are read."""
        self._previous = torch.empty_like(tokens)
        self._delta: float | None = None

    def step_(
        self,
        tokens: Tensor,
        velocity: Tensor,
        sigma: float,
        sigma_next: float,
        *,
        predicted: bool = False,
    ) -> None:
        """As :class:`StageSolver`."""
        delta, before = sigma_next - sigma, self._delta
        previous, self._delta = self._previous, None if predicted else delta
        with torch.no_grad():
            if predicted or before is None:
                euler_step_(tokens, velocity, delta, previous)
            else:
                previous.sub_(velocity).mul_(-delta / (2 * before)).add_(velocity).mul_(delta)
                tokens.add_(previous)
            previous.copy_(velocity)


class DPMSolver2M:
    """Second order in the log-SNR ``l = log((1-sigma)/sigma)``: DPM-Solver++(2M), arXiv 2211.01095.

    The clean estimate ``m = x - sigma*v`` is continued, and not the velocity: a step is Euler's
    plus ``(1 - sigma_next/sigma)/2 * h/h_prev * (m - m_prev)``, with ``h`` and ``h_prev`` the
    lengths of this step and the one before in ``l``. That is ``DPMSolverMultistepScheduler`` of
    diffusers with ``use_flow_sigmas``, in its default order and type. As there, a stage's first
    step is Euler's, and so is the one to sigma 0, where ``l`` has no end. A prediction is not
    continued, as in :class:`Multistep`.
    """

    def __init__(self, tokens: Tensor) -> None:
        """For a stage's tokens, of which only shape, dtype and device are read."""
        self._clean, self._previous, self._change = (torch.empty_like(tokens) for _ in range(3))
        self._sigmas: tuple[float, ...] = ()

    def step_(
        self,
        tokens: Tensor,
        velocity: Tensor,
        sigma: float,
        sigma_next: float,
        *,
        predicted: bool = False,
    ) -> None:
        """As :class:`StageSolver`."""
        weights = () if predicted else self._weights(sigma_next, sigma, *self._sigmas)
        clean, previous, change = self._clean, self._previous, self._change
        with torch.no_grad():
            torch.mul(velocity, -sigma, out=clean).add_(tokens)
            if len(weights) > 1:
                tokens.add_(change, alpha=weights[1])
            if weights:
                torch.sub(clean, previous, out=change)
                tokens.add_(change, alpha=weights[0])
            euler_step_(tokens, velocity, sigma_next - sigma, previous)
        self._clean, self._previous = previous, clean
        self._sigmas = () if predicted else (sigma, *self._sigmas)[:2]

    def _weights(self, sigma_next: float, sigma: float, *before: float) -> tuple[float, ...]:
        """What is added to Euler's step of the last change of the clean estimate, and of the one
        before; () where that is nothing. ``before`` are the sigmas of the steps that are continued,
        the latest first.
        """
        if not before or sigma_next == 0.0:
            return ()
        return (_continued(sigma_next, sigma, before[0]),)


class UniPC(DPMSolver2M):
    """The same step and UniPC's corrector: arXiv 2302.04867, of order 2 with ``B(h) = e^h - 1``.

    A step of which the end's velocity is known is taken again with it, and what that changes in the
    tokens is carried into the step that starts there. It costs no call of the model. It is
    diffusers' ``UniPCMultistepScheduler`` with ``use_flow_sigmas`` (its defaults, ``bh2``), but
    that what a caller wrote to the tokens stays in them.
    """

    def _weights(self, sigma_next: float, sigma: float, *before: float) -> tuple[float, ...]:
        if not before or sigma_next == 0.0:
            return ()  # a step to 0 ends at the clean estimate, whatever the tokens were
        carried = sigma_next / sigma * (1.0 - sigma / before[0])
        continued = _continued(sigma_next, sigma, before[0])
        if len(before) == 1:
            return (continued + carried / 2.0,)
        length = _log_snr(sigma) - _log_snr(before[0])
        ratio = (_log_snr(before[0]) - _log_snr(before[1])) / length
        grown = math.expm1(-length)
        first = -1.0 / length - 1.0 / grown
        second = 2.0 * (first / -length - 0.5 / grown)
        older = (first - second) / (1.0 + ratio)
        return (continued + carried * (first - older), carried * (older - 0.5) / ratio)


_NEAREST = 1e-6
"""How near to pure noise the log-SNR is still told apart: diffusers starts its sigmas there."""


def _log_snr(sigma: float) -> float:
    return math.log(max(1.0 - sigma, _NEAREST) / sigma)


def _continued(sigma_next: float, sigma: float, before: float) -> float:
    """The weight of the last change of the clean estimate in a step of second order."""
    length, last = _log_snr(sigma_next) - _log_snr(sigma), _log_snr(sigma) - _log_snr(before)
    return (1.0 - sigma_next / sigma) / 2.0 * length / last


SOLVERS: Mapping[str, Callable[[Tensor], StageSolver]] = {
    "euler": Euler,
    "multistep": Multistep,
    "dpmpp_2m": DPMSolver2M,
    "unipc": UniPC,
}
"""A new solver, with no history, for a stage's tokens: by the plan's name for it."""
