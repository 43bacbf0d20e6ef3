"""Coarse steps: the full grid's last velocity, corrected by what a small grid says has changed.

Between full steps on the grid of full resolution, the velocity is

    v(x, s) = v(x0, s0) + lift(c(x, s) - c(x0, s0))

where ``x0`` at ``s0`` is where the last full step began, and ``c`` what the same network says of
the pooled latents, on a grid of a quarter of each side: a control variate, or a two-grid step.
Where things are, which early steps decide, is in the pooled latents; what the small grid cannot see
stays as the last full step left it. ``lift`` repeats each value, so that pooling what was lifted
gives it back, and where the small grid sees no change the step is the last full one's, as FORA's
reuse is.

Averaging ``k x k`` latent pixels of ``(1 - s) z + s n`` leaves the clean part and divides the noise
by ``k``. Scaled by ``g = 1 / (1 - s + s / k)`` that is the sample of the small grid at

    s_k = g s / k

which the network is asked at. Its answer gives the clean estimate and the noise of the small grid,
and from these the pooled velocity of the large one. This is one noise field on two grids again:
nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Self

from fresco_trt.plan.caching import CacheTraits
from fresco_trt.plan.grid import VELOCITY_RATIO
from fresco_trt.run.trace import BYPASS, span

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.grid import Grid
    from fresco_trt.run.request import Request

TRAITS = CacheTraits(
    name="coarse_velocity",
    orders=(0,),
    default_order=0,
    predicts="velocity",
    sites=("velocity",),
    interval=2,  # after every full step a coarse one, whatever the stages
    warmup_steps=1,
)


def pooled_sample(latents: Tensor, sigma: float, ratio: int) -> tuple[Tensor, float]:
    """Latents [B,C,(F),H/r,W/r] on the straight path of the small grid, and their sigma there."""
    from fresco_trt.run.resample import block_mean

    gain = 1.0 / (1.0 - sigma + sigma / ratio)
    return block_mean(latents, ratio) * gain, gain * sigma / ratio


def pooled_velocity(sample: Tensor, velocity: Tensor, sigma: float, ratio: int) -> Tensor:
    """The large grid's velocity, pooled, from the small one's ``velocity`` at ``sample``."""
    from fresco_trt.run.transition import estimate_noise, estimate_x0

    clean = estimate_x0(sample, velocity, sigma)
    return estimate_noise(sample, velocity, sigma) / ratio - clean


@dataclass(slots=True, kw_only=True, eq=False)
class CoarseVelocity:
    """The coarse velocities of one stage of one request. ``inputs`` are the small grid's, latents
    and timestep by name; ``kept`` is the velocity of the last full step [B,C,(F),H,W] and what the
    small grid said of it, None before the first.
    """

    runner: Runner
    patchifier: Patchifier
    grid: Grid
    small: Grid
    tokens: Tensor
    timestep: Tensor
    inputs: Mapping[str, Tensor]
    kept: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        index: int,
        runner: Runner,
        tokens: Tensor,
        inputs: Mapping[str, Tensor],
    ) -> Self:
        """For the stage counted from 0 with ``tokens`` [B,N,4C]; ``runner`` is the small
        grid's, ``inputs`` the constant ones of a branch, as the stage takes them.
        """
        grid, small = request.plan.stages[index].grid, request.plan.velocity_grid
        if small is None:
            raise ValueError("a plan without coarse velocities; expected one with that cache")
        from fresco_trt.run.positions import whole_tables
        from fresco_trt.run.text import stage_tables

        own = tokens.new_empty(tokens.shape[0], small.tokens, tokens.shape[2])
        timestep = tokens.new_empty(tokens.shape[0])
        tables = stage_tables(request, index, whole_tables(request.patchifier, small, 0))
        named = {"latents": own, "timestep": timestep, **tables}
        return cls(
            runner=runner,
            patchifier=request.patchifier,
            grid=grid,
            small=small,
            tokens=own,
            timestep=timestep,
            inputs={**named, **inputs},
        )

    def observe(self, tokens: Tensor, velocity: Tensor, sigma: float) -> float:
        """Keep a full step's velocity [B,N,4C] and the coarse one; seconds inside the engine."""
        import torch

        with torch.no_grad():
            pooled, seconds = self._ask(tokens, sigma)
            # Copies: both belong to runners that will be called again.
            self.kept = self.patchifier.unpack(velocity, self.grid).clone(), pooled
        return seconds

    def predict(self, tokens: Tensor, sigma: float) -> tuple[Tensor, float]:
        """The velocity [B,N,4C] of a coarse step, and the seconds inside the engine."""
        import torch

        from fresco_trt.run.resample import lift_nearest

        if self.kept is None:
            raise ValueError("a coarse step before any full one; expected a full step first")
        velocity, before = self.kept
        with torch.no_grad():
            pooled, seconds = self._ask(tokens, sigma)
            changed = lift_nearest(pooled - before, VELOCITY_RATIO)
            return self.patchifier.pack(velocity + changed).contiguous(), seconds

    def _ask(self, tokens: Tensor, sigma: float) -> tuple[Tensor, float]:
        """The pooled velocity [B,C,(F),H/r,W/r] at ``tokens``, by the small grid's engine."""
        latents = self.patchifier.unpack(tokens, self.grid)
        sample, level = pooled_sample(latents, sigma, VELOCITY_RATIO)
        self.tokens.copy_(self.patchifier.pack(sample))
        self.timestep.fill_(level)
        began = perf_counter()
        with span(BYPASS):
            outputs = self.runner(self.inputs)
        seconds = perf_counter() - began
        velocity = self.patchifier.unpack(outputs["velocity"], self.small)
        return pooled_velocity(sample, velocity, level, VELOCITY_RATIO), seconds
