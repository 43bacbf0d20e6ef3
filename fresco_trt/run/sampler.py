"""The sampler: one loop over neighbouring sigma pairs, across every stage of a plan.

Sits between the runners and the pipeline: engines, constant conditioning and a noise pyramid go
in, one small :class:`Step` record per engine call comes out. Progress bars, previews, cancelling
and timing are the caller's. Nothing is kept between requests and nothing random is drawn here, so
any number of samplers may be interleaved over the same plan, pyramid and patchifier.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from fresco_trt.errors import error_context
from fresco_trt.run.finite import FiniteCheck
from fresco_trt.run.request import Conditioning, Request, engine_name
from fresco_trt.run.selection import Choice, select
from fresco_trt.run.stage import StageState
from fresco_trt.run.trace import STAGE, STEP, TRANSITION, span

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.stages import Stage, StagePlan
    from fresco_trt.run.mixed import Mixed
    from fresco_trt.run.noise import NoisePyramid

__all__ = ["Conditioning", "Step", "engine_name", "sample", "steps_of", "steps_of_stage"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """One engine call and the step it paid for.

    ``stage`` and ``step`` count from 0, ``step`` over the whole run of ``steps_total``. ``tokens``
    [B,N,C] float32, at ``sigma_next`` on this stage's grid, is the sampler's own buffer: it may
    be read until the next step is asked for, and be kept only as a clone. What a caller writes to
    it by then is what the sampler goes on from. ``velocity``, of the same shape, at
    ``sigma``, belongs to the runner and is valid until that runner's next call. ``mixed`` says
    where the tokens of a mixed stage are; on a whole grid, where they are in raster order, it is
    None. ``edited`` says, behind the draft of an edit, which tokens of the draft's grid it touches,
    bool [N]; ``steps_total`` then is of one of the plan's paths. The last step's ``tokens`` are
    never overwritten.

    ``engine_seconds`` is the wall clock around the runner's call (for a runner that returns before
    its device is done: the launch); ``host_seconds`` is everything else the sampler did since the
    caller asked for this step, a transition before it included.
    """

    stage: int
    step: int
    steps_total: int
    sigma: float
    sigma_next: float
    action: str
    tokens: Tensor
    velocity: Tensor
    mixed: Mixed | None
    edited: Tensor | None
    engine_seconds: float
    host_seconds: float


def sample(
    plan: StagePlan,
    runners: Mapping[str, Runner],
    conditioning: Conditioning,
    pyramid: NoisePyramid,
    patchifier: Patchifier,
    *,
    fresh: torch.Generator | None = None,
    choice: Choice = select,
    basis: Tensor | None = None,
) -> Generator[Step, None, None]:
    """Check the request, then yield one :class:`Step` per sigma pair of ``plan``.

    ``runners`` are entered by the caller and named by :func:`engine_name`. ``conditioning`` has the
    engine inputs that stay constant over the run (``text``, ``pooled``, and ``guidance`` where the
    model has it); latents, timestep and the patchifier's tables are added here. Batch and device
    are the pyramid's. ``fresh`` is for plans whose transitions draw fresh noise or choose tokens at
    random, and only for them. ``choice`` chooses the tokens, by the plan's rules unless told
    otherwise. ``basis`` [H,k] is the SVD basis that a plan with the cache "svd" needs.

    The picture is ``patchifier.unpack(step.tokens, plan.stages[-1].grid)`` of the last step. A
    caller may stop at any step; ``close()`` or dropping the generator frees its buffers.

    With the solver "euler" each step is ``x + (sigma_next - sigma) * v`` in float32, in the order
    of operations of diffusers' ``FlowMatchEulerDiscreteScheduler``: a one-stage plan is that
    sampler, bit for bit.

    Raises ``ValueError``, before any engine runs, for a plan that does not start at sigma 1, a
    missing runner, a pyramid that lacks a grid, more than one picture where a stage is mixed,
    references of another size, or a transition that cannot be applied, and ``PromptTooLong`` for a
    prompt that a stage takes less of. While running,
    ``SignatureMismatch`` if an engine's velocity does not match its latents, ``NonFiniteValues`` if
    it is not finite (on the CPU at that step, on another device when all steps were taken), and
    whatever a runner raises, with the stage and step in front.
    """
    return steps_of(
        Request(
            plan=plan,
            runners=runners,
            conditioning=conditioning,
            pyramid=pyramid,
            patchifier=patchifier,
            generator=fresh,
            choice=choice,
            basis=basis,
        )
    )


def steps_of(request: Request) -> Generator[Step, None, None]:
    """One :class:`Step` per sigma pair of a request that is checked already, as :func:`sample`."""
    finite, began = FiniteCheck(), perf_counter()
    state: StageState | None = StageState.first(request)
    while state is not None:
        with span(STAGE, state.index + 1):
            velocity, began = yield from steps_of_stage(request, state, finite, began)
            if state.is_last(request):
                break
            with span(TRANSITION, state.index + 1):
                state = state.leave(request, velocity)
    finite.require()


def steps_of_stage(
    request: Request, state: StageState, finite: FiniteCheck, began: float
) -> Generator[Step, None, tuple[Tensor, float]]:
    """The steps of the stage that was entered since ``began``, or as many as come before an edit is
    looked at again.

    Returns the last one's velocity, which is the caller's unless the stage is the plan's last, and
    when the caller was done with that step.
    """
    plan, index, window = request.plan, state.index, state.window.steps
    stage, done = plan.stages[index], plan.steps_before(index) + state.start
    pairs = list(_sigma_pairs(stage))
    for left, sigma, sigma_next, listed in pairs[state.start : state.until(request)]:
        where, step = _where(plan, index, done), stage.steps - 1 - left
        action = "full" if step == state.empty_at else listed
        with span(STEP, done + 1):
            with error_context(where):
                called = state.call(request, action, step, sigma)
            finite.watch(called.velocity, engine=engine_name(index, action), where=where)
            velocity, engine_seconds = called.velocity, called.engine_seconds
            predicted = action == "bypass"
            state.solver.step_(state.tokens, velocity, sigma, sigma_next, predicted=predicted)
            done += 1
            ends = step + 1 == state.until(request) and not state.is_last(request)
            if ends or left < window:
                # A caller may run other work on the runner that owns it.
                velocity = velocity.clone()
        yield Step(
            stage=index,
            step=done - 1,
            steps_total=plan.nfe,
            sigma=sigma,
            sigma_next=sigma_next,
            action=action,
            tokens=state.tokens,
            velocity=velocity,
            mixed=state.mixed,
            edited=state.edited,
            engine_seconds=engine_seconds,
            host_seconds=perf_counter() - began - engine_seconds,
        )
        began = perf_counter()
        # After the caller, who may have written to the tokens.
        state.record(request, left, velocity, sigma_next)
    return velocity, began


def _sigma_pairs(stage: Stage) -> Iterator[tuple[int, float, float, str]]:
    """Steps left in the stage after this one, neighbouring sigmas, and the action."""
    left = range(stage.steps - 1, -1, -1)
    return zip(left, stage.sigmas[:-1], stage.sigmas[1:], stage.actions, strict=True)


def _where(plan: StagePlan, index: int, done: int) -> str:
    grid = plan.stages[index].grid
    places = f"{grid.rows}x{grid.columns} tokens"
    if plan.refined[index]:
        places = f"{plan.tokens[index]} tokens on a mixed grid of {grid.rows}x{grid.columns}"
    return f"stage {index + 1} of {len(plan.stages)} ({places}), step {done + 1} of {plan.nfe}"
