"""The sampler: one loop over neighbouring sigma pairs, across every stage of a plan.

Sits between the runners and the pipeline: engines, constant conditioning and a noise pyramid go
in, one small :class:`Step` record per engine call comes out. Progress bars, previews, cancelling
and timing are the caller's. Nothing is kept between requests and nothing random is drawn here, so
any number of samplers may be interleaved over the same plan, pyramid and layout.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fresco_trt.errors import SignatureMismatch, error_context
from fresco_trt.run.transition import (
    SIGMA_TOLERANCE,
    apply_transition,
    check_generator,
    check_transition,
)

if TYPE_CHECKING:
    from fresco_trt.backends.base import Runner
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import Stage, StagePlan
    from fresco_trt.run.noise import NoisePyramid


class Layout(Protocol):
    """How one model family turns latents into tokens, and where those tokens are."""

    def pack(self, latents: Tensor) -> Tensor:
        """Tokens [B,N,4C] from latents [B,C,H,W]; may be a view."""
        ...

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Latents [B,C,H,W] of ``grid`` from tokens [B,N,4C]; may be a view."""
        ...

    def tables(self, grid: Grid) -> Mapping[str, Tensor]:
        """Named engine inputs that depend on the grid alone: ``rope_cos`` and ``rope_sin``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """One engine call and the Euler step it paid for.

    ``stage`` and ``step`` count from 0, ``step`` over the whole run of ``steps_total``. ``tokens``
    [B,N,4C] float32, at ``sigma_next`` on this stage's grid, is the sampler's own buffer: it may
    be read until the next step is asked for, and be kept only as a clone. ``velocity``, of the
    same shape, at ``sigma``, belongs to the runner and is valid until that runner's next call.
    The last step's ``tokens`` are never overwritten.

    ``engine_seconds`` is the wall clock around the runner's call (for a runner that returns before
    its device is done: the launch); ``host_seconds`` is everything else the sampler did since the
    caller asked for this step, a transition after it included.
    """

    stage: int
    step: int
    steps_total: int
    sigma: float
    sigma_next: float
    action: str
    tokens: Tensor
    velocity: Tensor
    engine_seconds: float
    host_seconds: float


def engine_name(stage: int, action: str) -> str:
    """Name of the engine that carries out ``action`` in the stage counted from 0."""
    return f"stage{stage + 1}.{action}"


def sample(
    plan: StagePlan,
    runners: Mapping[str, Runner],
    inputs: Mapping[str, Tensor],
    pyramid: NoisePyramid,
    layout: Layout,
    *,
    fresh: torch.Generator | None = None,
) -> Generator[Step, None, None]:
    """Check the request, then yield one :class:`Step` per sigma pair of ``plan``.

    ``runners`` are entered by the caller and named by :func:`engine_name`. ``inputs`` are the
    engine inputs that stay constant over the run (``text``, ``pooled``, and ``guidance`` where the
    model has it); latents, timestep and the layout's tables are added here. Batch and device are
    the pyramid's. ``fresh`` is for plans whose transitions draw fresh noise, and only for them.

    The picture is ``layout.unpack(step.tokens, plan.stages[-1].grid)`` of the last step. A caller
    may stop at any step; ``close()`` or dropping the generator frees its buffers.

    Each step is ``x + (sigma_next - sigma) * v`` in float32, in the order of operations of
    diffusers' ``FlowMatchEulerDiscreteScheduler``: a one-stage plan is that sampler, bit for bit.

    Raises ``ValueError``, before any engine runs, for a plan that does not start at sigma 1, an
    action other than ``full``, a missing runner, a pyramid that lacks a grid, or a transition that
    cannot be applied. While running, ``SignatureMismatch`` if an engine's velocity does not match
    its latents, and whatever a runner raises, with the stage and step in front.
    """
    _check_engines(plan, runners)
    _check_noise(plan, pyramid, fresh)
    return _steps(plan, runners, inputs, pyramid, layout, fresh)


def _steps(
    plan: StagePlan,
    runners: Mapping[str, Runner],
    inputs: Mapping[str, Tensor],
    pyramid: NoisePyramid,
    layout: Layout,
    fresh: torch.Generator | None,
) -> Generator[Step, None, None]:
    done, total = 0, plan.nfe
    began = perf_counter()
    latents = pyramid.field(plan.stages[0].grid.scale)
    for index, stage in enumerate(plan.stages):
        state = _StageState.enter(latents, inputs, layout, stage.grid)
        for left, sigma, sigma_next, action in _sigma_pairs(stage):
            state.timestep.fill_(sigma)
            with error_context(_where(plan, index, done, total)):
                called = perf_counter()
                velocity = _call(runners[engine_name(index, action)], state)
                engine_seconds = perf_counter() - called
            euler_step_(state.tokens, velocity, sigma_next - sigma, state.scratch)
            done += 1
            if left == 0 and index + 1 < len(plan.stages):
                # Before the yield: a caller may run other work on the runner that owns `velocity`.
                latents = _cross(plan, index, state.tokens, velocity, pyramid, layout, fresh)
            yield Step(
                stage=index,
                step=done - 1,
                steps_total=total,
                sigma=sigma,
                sigma_next=sigma_next,
                action=action,
                tokens=state.tokens,
                velocity=velocity,
                engine_seconds=engine_seconds,
                host_seconds=perf_counter() - began - engine_seconds,
            )
            began = perf_counter()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _StageState:
    """A stage's buffers, allocated when it starts; ``inputs`` holds the first two by name."""

    tokens: Tensor
    timestep: Tensor
    scratch: Tensor
    inputs: Mapping[str, Tensor]

    @classmethod
    def enter(
        cls, latents: Tensor, inputs: Mapping[str, Tensor], layout: Layout, grid: Grid
    ) -> _StageState:
        # A copy, because packing may be a view and the pyramid must not be stepped in place.
        tokens = layout.pack(latents).clone(memory_format=torch.contiguous_format)
        timestep = tokens.new_empty(tokens.shape[0])
        named = {"latents": tokens, "timestep": timestep, **layout.tables(grid)}
        twice = sorted(named.keys() & inputs.keys())
        if twice:
            raise ValueError(f"constant inputs {twice} are set by the sampler; expected others")
        return cls(
            tokens=tokens,
            timestep=timestep,
            scratch=torch.empty_like(tokens),
            inputs={**named, **inputs},
        )


def euler_step_(tokens: Tensor, velocity: Tensor, delta: float, scratch: Tensor) -> None:
    """``tokens += delta * velocity`` in place, without allocating; ``delta = sigma_next - sigma``.

    Rounded to float32 after the difference, the product and the sum, as diffusers rounds (torch
    takes ``delta`` in the tensors' precision); a fused multiply-add would differ.
    """
    with torch.no_grad():
        torch.mul(velocity, delta, out=scratch)
        tokens.add_(scratch)


def _sigma_pairs(stage: Stage) -> Iterator[tuple[int, float, float, str]]:
    """Steps left in the stage after this one, neighbouring sigmas, and the action."""
    left = range(stage.steps - 1, -1, -1)
    return zip(left, stage.sigmas[:-1], stage.sigmas[1:], stage.actions, strict=True)


def _call(runner: Runner, state: _StageState) -> Tensor:
    with torch.no_grad():
        outputs = runner(state.inputs)
    velocity = outputs.get("velocity")
    if velocity is None or _kind(velocity) != _kind(state.tokens):
        raise SignatureMismatch(
            f"the engine gave {'nothing' if velocity is None else _kind(velocity)} for velocity",
            expected=f"{_kind(state.tokens)}, as its latents are",
            fix="put the noise pyramid on the engine's device, or build engines from this plan",
        )
    return velocity


def _kind(tensor: Tensor) -> str:
    shape = ",".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape}] on {tensor.device.type}"


def _cross(
    plan: StagePlan,
    index: int,
    tokens: Tensor,
    velocity: Tensor,
    pyramid: NoisePyramid,
    layout: Layout,
    fresh: torch.Generator | None,
) -> Tensor:
    """Latents that start stage ``index + 1`` from what ended stage ``index``."""
    transition = plan.transitions[index]
    grid, grid_next = plan.stages[index].grid, plan.stages[index + 1].grid
    with torch.no_grad():
        return apply_transition(
            transition,
            layout.unpack(tokens, grid),
            layout.unpack(velocity, grid),
            pyramid,
            scale=grid.scale,
            scale_next=grid_next.scale,
            generator=fresh if transition.noise == "fresh" else None,
        )


def _where(plan: StagePlan, index: int, done: int, total: int) -> str:
    grid = plan.stages[index].grid
    stage = f"stage {index + 1} of {len(plan.stages)} ({grid.rows}x{grid.columns} tokens)"
    return f"{stage}, step {done + 1} of {total}"


def _check_engines(plan: StagePlan, runners: Mapping[str, Runner]) -> None:
    actions = [(index, act) for index, stage in enumerate(plan.stages) for act in stage.actions]
    for index, action in actions:
        if action != "full":
            raise ValueError(
                f"action {action!r} in stage {index + 1}; expected 'full':"
                " feature caching is not implemented in this sampler. Plan without a cache"
            )
        if engine_name(index, action) not in runners:
            raise ValueError(
                f"no runner named {engine_name(index, action)!r} among {sorted(runners)};"
                " expected one per stage and action of the plan"
            )


def _check_noise(plan: StagePlan, pyramid: NoisePyramid, fresh: torch.Generator | None) -> None:
    start = plan.stages[0].sigmas[0]
    if abs(start - 1.0) > SIGMA_TOLERANCE:
        raise ValueError(
            f"plan starts at sigma {start:g}; expected 1: below it there is a picture to start from"
        )
    for stage in plan.stages:
        side = tuple(pyramid.field(stage.grid.scale).shape[-2:])
        if side != (stage.grid.height, stage.grid.width):
            raise ValueError(
                f"noise of {side} latent pixels at scale {stage.grid.scale:g};"
                f" expected the grid's {(stage.grid.height, stage.grid.width)}"
            )
    scales = [stage.grid.scale for stage in plan.stages]
    for transition, scale, scale_next in zip(
        plan.transitions, scales[:-1], scales[1:], strict=True
    ):
        check_transition(transition, scale=scale, scale_next=scale_next)
    check_generator(fresh, wanted=any(step.noise == "fresh" for step in plan.transitions))
