"""The solvers: how one velocity moves the latents from a sigma to the next.

Called by :mod:`fresco_trt.run.sampler` once a step, after the engine. A solver belongs to one stage
of one request: entering a stage makes a new one, which is how history is dropped at a transition.
Neither calls the model more than once a step, and neither allocates while it steps.
"""

from __future__ import annotations

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


SOLVERS: Mapping[str, Callable[[Tensor], StageSolver]] = {"euler": Euler, "multistep": Multistep}
"""A new solver, with no history, for a stage's tokens: by the plan's name for it."""
