"""What the sampler holds while it is in one stage, and how it gets to the next.

Between the loop of :mod:`fresco_trt.run.sampler` and the functions it stands on: buffers, solver
and window are made when a stage is entered and dropped with it, so that nothing of one grid is ever
read on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fresco_trt.run.cache.coarse_velocity import CoarseVelocity
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.mixed import Mixed, cross_mixed
from fresco_trt.run.positions import mixed_tables, whole_tables
from fresco_trt.run.request import engine_name, velocity_of
from fresco_trt.run.resample import block_mean
from fresco_trt.run.selection import Window
from fresco_trt.run.solver import SOLVERS, StageSolver
from fresco_trt.run.text import stage_inputs, stage_tables
from fresco_trt.run.trace import span
from fresco_trt.run.transition import apply_transition, estimate_x0, ratio_of

if TYPE_CHECKING:
    from fresco_trt.plan.stages import Transition
    from fresco_trt.run.editing import Decision
    from fresco_trt.run.request import Request


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Called:
    """An engine's velocity [B,N,4C], which belongs to its runner, and the wall clock around it."""

    velocity: Tensor
    engine_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branch:
    """One pass of the network through a stage: with the prompt, without it, or both stacked.

    ``inputs`` holds all that a full engine takes, by name. ``cache``, empty on entry, is None where
    no step is a bypass, and so is ``coarse_velocity``, which answers them in its place.
    """

    inputs: Mapping[str, Tensor]
    cache: StageCache | None
    coarse_velocity: CoarseVelocity | None

    def call(
        self, request: Request, state: StageState, action: str, step: int, sigma: float
    ) -> Called:
        """Run the engine of ``action``; ``step`` counts from the stage's first.

        A full step leaves its feature in the cache, a bypass starts from what the cache predicts.
        Raises ``SignatureMismatch`` if the velocity does not match the latents.
        """
        if action == "bypass" and self.coarse_velocity is not None:
            velocity, seconds = self.coarse_velocity.predict(state.tokens, sigma)
            return Called(velocity=velocity, engine_seconds=seconds)
        runner, inputs = request.runners[engine_name(state.index, action)], self.inputs
        if action == "bypass":
            if self.cache is None:
                raise ValueError("a bypass in a stage without a cache; expected a plan with one")
            predicted = {self.cache.feature: self.cache.predict(step), **inputs}
            # A bypass graph asks for some of the inputs only.
            inputs = {spec.name: predicted[spec.name] for spec in runner.signature.inputs}
        began = perf_counter()
        with span(action):
            outputs = runner(inputs)
        seconds = perf_counter() - began
        velocity = velocity_of(outputs, state.tokens, len(state.timestep))
        if self.cache is not None and action == "full":
            self.cache.observe(outputs[self.cache.feature], step)
        actions = request.plan.stages[state.index].actions
        if self.coarse_velocity is not None and actions[step + 1 : step + 2] == ("bypass",):
            seconds += self.coarse_velocity.observe(state.tokens, velocity, sigma)
        return Called(velocity=velocity, engine_seconds=seconds)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageState:
    """One stage's places, buffers and history.

    ``mixed`` is None on a whole grid. ``targets`` is where the tokens go in the engines' input if
    that is another tensor: with reference tokens behind them, or once for each of two stacked
    branches. ``window`` records only where rules look back over the stage, and has no room
    otherwise. ``edited`` says of a stage behind a draft which of its tokens the edit touches, bool
    [N]. ``start`` is the stage's step, from 0, that comes next, and ``empty_at`` the one at which
    its cache was empty and which so is a full one.
    """

    index: int
    mixed: Mixed | None
    tokens: Tensor
    targets: Tensor | None
    timestep: Tensor
    branches: tuple[Branch, ...]
    solver: StageSolver
    window: Window
    edited: Tensor | None = None
    start: int = 0
    empty_at: int = 0

    @classmethod
    def first(cls, request: Request) -> Self:
        """The first stage, at pure noise."""
        scale = request.plan.stages[0].grid.scale
        return cls.enter(request, 0, request.patchifier.pack(request.pyramid.field(scale)), None)

    @classmethod
    def enter(
        cls,
        request: Request,
        index: int,
        tokens: Tensor,
        mixed: Mixed | None,
        edited: Tensor | None = None,
    ) -> Self:
        """The stage ``index`` from the tokens [B,N,C] that it starts with, which are copied.

        Raises ``ValueError`` for a constant input that has the name of one set here.
        """
        # A copy, because packing may be a view and the pyramid must not be stepped in place.
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        given, stacked = request.conditioning, _is_stacked(request, index, tokens)
        latents, targets = _latents(request, index, tokens, stacked, mixed)
        timestep = tokens.new_empty(len(latents))
        named = {"latents": latents, "timestep": timestep, **_tables(request, index, mixed)}
        twice = sorted(named.keys() & given.inputs.keys())
        if twice:
            raise ValueError(f"constant inputs {twice} are set by the sampler; expected others")
        inputs = tuple(stage_inputs(request, index, each) for each in given.branches)
        if stacked:
            first, second = inputs
            inputs = ({name: torch.cat([first[name], second[name]]) for name in first},)
        return cls(
            index=index,
            mixed=mixed,
            tokens=tokens,
            targets=targets,
            timestep=timestep,
            branches=tuple(
                Branch(
                    inputs={**named, **each},
                    cache=StageCache.of(request.plan, index, request.basis),
                    coarse_velocity=_coarse_velocity(request, index, tokens, each),
                )
                for each in inputs
            ),
            solver=SOLVERS[request.plan.solver](tokens),
            window=_window(request, index, tokens, mixed),
            edited=edited,
        )

    def call(self, request: Request, action: str, step: int, sigma: float) -> Called:
        """The velocity at ``sigma``, the start of a step; ``step`` counts from the stage's first.

        With an unconditional branch both are run, one after the other or, where the engine was
        built for twice the batch, in one call, and guided. Raises as :meth:`Branch.call`.
        """
        self.timestep.fill_(sigma)
        with torch.no_grad():
            if self.targets is not None:
                self.targets.copy_(self.tokens)
            if request.conditioning.negative is None:
                return self.branches[0].call(request, self, action, step, sigma)
            velocities, seconds = [], 0.0
            for branch in self.branches:
                called = branch.call(request, self, action, step, sigma)
                velocities.append(called.velocity.clone())  # the next call may overwrite it
                seconds += called.engine_seconds
            given, negative = torch.cat(velocities).chunk(2)
            guided = request.guide(given, negative, request.conditioning.true_cfg_scale)
        return Called(velocity=guided, engine_seconds=seconds)

    def record(self, request: Request, left: int, velocity: Tensor, sigma: float) -> None:
        """Keep the latents at ``sigma``, a step's end, for the rules, if they look back so far."""
        if left >= self.window.steps:
            return
        with torch.no_grad():
            latents, clean = self.tokens, estimate_x0(self.tokens, velocity, sigma)
            if self.mixed is not None:
                latents = self.mixed.dense(latents, request.patchifier)
                clean = self.mixed.dense(clean, request.patchifier)
            self.window.record_(left, latents, clean)

    def until(self, request: Request) -> int:
        """Steps of the stage, from its first, after which something else than a step follows: all
        of them, or those before an edit is looked at again.
        """
        edit, steps = request.plan.edit, request.plan.stages[self.index].steps
        if edit is None or self.mixed is None or request.conditioning.mask is not None:
            return steps
        return edit.recheck if self.start < edit.recheck else steps

    def is_last(self, request: Request) -> bool:
        """Whether the request ends where :meth:`until` says."""
        if self.until(request) < request.plan.stages[self.index].steps:
            return False
        is_path = request.plan.edit is not None and self.index > 0
        return is_path or self.index + 1 == len(request.plan.stages)

    def leave(self, request: Request, velocity: Tensor) -> Self | None:
        """The stage after this one, entered over the transition between both, or this one further
        on; None after the draft of an edit that touches nothing.
        """
        if request.plan.edit is None:
            return self.enter(request, self.index + 1, *self.cross(request, velocity))
        if self.index == 0:
            return self._leave_draft(request, velocity)
        return self._look_again(request, velocity)

    def _leave_draft(self, request: Request, velocity: Tensor) -> Self | None:
        """The stage that has room for what the edit touches."""
        plan, patchifier = request.plan, request.patchifier
        grid, fine = plan.stages[0].grid, plan.stages[-1].grid
        transition = plan.transitions[0]
        with torch.no_grad():
            clean = estimate_x0(self.tokens, velocity, transition.sigma)
            decision = request.decide(patchifier.unpack(clean, grid))
            if decision.stage is None:
                return None
            before = Mixed.whole(grid, fine, self.tokens.device)
            places = self._expand(request, transition, velocity, before, decision)
        return self.enter(request, decision.stage, *places, decision.edited)

    def _look_again(self, request: Request, velocity: Tensor) -> Self:
        """This stage with what it is now seen to edit, or a larger one at the same step."""
        plan, patchifier, mixed = request.plan, request.patchifier, self.mixed
        if mixed is None or self.edited is None:
            raise ValueError("a whole grid looked at again; expected a mixed one")
        at = self.until(request)
        sigma = plan.stages[self.index].sigmas[at]
        with torch.no_grad():
            clean = mixed.dense(estimate_x0(self.tokens, velocity, sigma), patchifier)
            refined = mixed.candidates().logical_not()
            decision = request.decide_again(
                patchifier.unpack(clean, mixed.coarse), self.edited, refined
            )
            if decision.stage is None or decision.stage == self.index:
                return replace(self, edited=decision.edited, start=at)
            # The parents' own noise: what is expanded already goes on from exactly where it is.
            onward = replace(plan.transitions[0], sigma=sigma, restart=sigma, noise="parent")
            places = self._expand(request, onward, velocity, mixed, decision)
        entered = self.enter(request, decision.stage, *places, decision.edited)
        return replace(entered, start=at, empty_at=at)

    def _expand(
        self,
        request: Request,
        transition: Transition,
        velocity: Tensor,
        before: Mixed,
        decision: Decision,
    ) -> tuple[Tensor, Mixed | None]:
        """The tokens of the stage that was decided on, and where they are."""
        patchifier = request.patchifier
        coarse, fine = cross_mixed(
            transition, self.tokens, velocity, before, request.pyramid, patchifier
        )
        if decision.refined is None or decision.stage is None:
            return patchifier.pack(fine), None
        count = request.plan.refined[decision.stage]
        after = Mixed.from_mask(before.coarse, before.fine, decision.refined, count)
        return after.join(coarse, fine, patchifier), after

    def cross(self, request: Request, velocity: Tensor) -> tuple[Tensor, Mixed | None]:
        """What the stage after this one is entered with: its tokens, and where they are."""
        transition = request.plan.transitions[self.index]
        crosses_mixed = self.mixed is not None or transition.is_partial
        cross = self._cross_mixed if crosses_mixed else self._cross_whole
        with torch.no_grad():
            return cross(request, transition, velocity)

    def _cross_whole(
        self, request: Request, transition: Transition, velocity: Tensor
    ) -> tuple[Tensor, None]:
        patchifier = request.patchifier
        grid, grid_next = (stage.grid for stage in request.plan.stages[self.index :][:2])
        latents = apply_transition(
            transition,
            patchifier.unpack(self.tokens, grid),
            patchifier.unpack(velocity, grid),
            request.pyramid,
            scale=grid.scale,
            scale_next=grid_next.scale,
            generator=_noise_generator(request, transition),
        )
        return patchifier.pack(latents), None

    def _cross_mixed(
        self, request: Request, transition: Transition, velocity: Tensor
    ) -> tuple[Tensor, Mixed | None]:
        patchifier = request.patchifier
        grid, grid_next = (stage.grid for stage in request.plan.stages[self.index :][:2])
        before = self.mixed or Mixed.whole(grid, grid_next, self.tokens.device)
        coarse, fine = cross_mixed(
            transition,
            self.tokens,
            velocity,
            before,
            request.pyramid,
            patchifier,
            generator=_noise_generator(request, transition),
        )
        if not transition.is_partial:
            return patchifier.pack(fine), None
        after = self._refine(request, transition, before)
        return after.join(coarse, fine, patchifier), after

    def _refine(self, request: Request, transition: Transition, before: Mixed) -> Mixed:
        """The places of the next stage: those of ``before`` and what the rules choose."""
        candidates = before.candidates()
        chosen = request.choice(transition.refinements, self.window, candidates, request.generator)
        expanded = chosen.logical_or(candidates.logical_not())
        count = request.plan.refined[self.index + 1]
        return Mixed.from_mask(before.coarse, before.fine, expanded, count)


def _is_stacked(request: Request, index: int, tokens: Tensor) -> bool:
    """Whether the stage's engine takes both branches in one call."""
    if request.conditioning.negative is None:
        return False
    signature = request.runners[engine_name(index, "full")].signature
    stacked = signature.input("latents").shape[0] == 2 * len(tokens)
    if stacked and request.plan.velocity_grid is not None:
        raise ValueError("coarse velocities of two stacked branches; expected engines of one each")
    return stacked


def _latents(
    request: Request, index: int, tokens: Tensor, stacked: bool, mixed: Mixed | None
) -> tuple[Tensor, Tensor | None]:
    """The engines' latents, and where the tokens go in them if they are not the tokens themselves.

    References are pooled to the plan's grid of them; in an edit's mixed stage where the target's
    tokens are coarse.
    """
    references = request.conditioning.references
    if not (references or stacked):
        return tokens, None
    scale = request.plan.reference_grid(index).scale
    pooled = [block_mean(each, ratio_of(scale, 1.0)) for each in references]
    if mixed is not None and request.plan.mirrors[index]:
        behind = [mixed.join(block_mean(each, 2), each, request.patchifier) for each in pooled]
    else:
        behind = [request.patchifier.pack(each) for each in pooled]
    branches, (batch, count, _) = 2 if stacked else 1, tokens.shape
    latents = torch.cat([tokens, *behind], dim=1).repeat(branches, 1, 1)
    return latents, latents.view(branches, batch, *latents.shape[1:])[:, :, :count]


def _tables(request: Request, index: int, mixed: Mixed | None) -> Mapping[str, Tensor]:
    patchifier, references = request.patchifier, len(request.conditioning.references)
    plan = request.plan
    if mixed is None:
        grid, behind = plan.stages[index].grid, plan.reference_grid(index)
        tables = whole_tables(patchifier, grid, references, behind)
    else:
        tables = mixed_tables(
            patchifier, mixed, plan.positions, references, mirrored=plan.mirrors[index]
        )
    return stage_tables(request, index, tables)


def _coarse_velocity(
    request: Request, index: int, tokens: Tensor, inputs: Mapping[str, Tensor]
) -> CoarseVelocity | None:
    plan = request.plan
    if plan.velocity_grid is None or "bypass" not in plan.stages[index].actions:
        return None
    runner = request.runners[engine_name(index, "bypass")]
    return CoarseVelocity.of(request, index, runner, tokens, inputs)


def _window(request: Request, index: int, tokens: Tensor, mixed: Mixed | None) -> Window:
    plan = request.plan
    grid = plan.stages[index].grid if mixed is None else mixed.coarse
    follows = index < len(plan.transitions) and plan.transitions[index].is_partial
    follows = follows and plan.edit is None  # what an edit touches is seen in the draft alone
    return Window.empty(plan.transitions[index].window if follows else 0, grid, tokens)


def _noise_generator(request: Request, transition: Transition) -> torch.Generator | None:
    """The request's generator, for a transition whose noise is drawn from it."""
    return request.generator if transition.noise == "fresh" else None
