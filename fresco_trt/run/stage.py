"""What the sampler holds while it is in one stage, and how it gets to the next.

Between the loop of :mod:`fresco_trt.run.sampler` and the functions it stands on: buffers, solver
and window are made when a stage is entered and dropped with it, so that nothing of one grid is ever
read on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fresco_trt.errors import SignatureMismatch
from fresco_trt.run.cache.coarse_velocity import CoarseVelocity
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.mixed import Mixed, cross_mixed
from fresco_trt.run.positions import mixed_tables
from fresco_trt.run.request import engine_name
from fresco_trt.run.selection import Window
from fresco_trt.run.solver import SOLVERS, StageSolver
from fresco_trt.run.transition import apply_transition, estimate_x0

if TYPE_CHECKING:
    from fresco_trt.backends.base import Runner
    from fresco_trt.plan.stages import Transition
    from fresco_trt.run.request import Request


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Called:
    """An engine's velocity [B,N,4C], which belongs to its runner, and the wall clock around it."""

    velocity: Tensor
    engine_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageState:
    """One stage's places, buffers and history; ``inputs`` holds tokens and timestep by name.

    ``mixed`` is None on a whole grid. ``window`` records only where a partial transition follows,
    and has no room otherwise. ``cache``, empty on entry, is None where no step is a bypass, and so
    is ``coarse_velocity``, which answers them in its place.
    """

    index: int
    mixed: Mixed | None
    tokens: Tensor
    timestep: Tensor
    inputs: Mapping[str, Tensor]
    solver: StageSolver
    window: Window
    cache: StageCache | None
    coarse_velocity: CoarseVelocity | None

    @classmethod
    def first(cls, request: Request) -> Self:
        """The first stage, at pure noise."""
        scale = request.plan.stages[0].grid.scale
        return cls.enter(request, 0, request.layout.pack(request.pyramid.field(scale)), None)

    @classmethod
    def enter(cls, request: Request, index: int, tokens: Tensor, mixed: Mixed | None) -> Self:
        """The stage ``index`` from the tokens [B,N,4C] that it starts with, which are copied.

        Raises ``ValueError`` for a constant input that has the name of one set here.
        """
        # A copy, because packing may be a view and the pyramid must not be stepped in place.
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        timestep = tokens.new_empty(tokens.shape[0])
        named = {"latents": tokens, "timestep": timestep, **_tables(request, index, mixed)}
        twice = sorted(named.keys() & request.inputs.keys())
        if twice:
            raise ValueError(f"constant inputs {twice} are set by the sampler; expected others")
        return cls(
            index=index,
            mixed=mixed,
            tokens=tokens,
            timestep=timestep,
            inputs={**named, **request.inputs},
            solver=SOLVERS[request.plan.solver](tokens),
            window=_window(request, index, tokens, mixed),
            cache=StageCache.of(request.plan, index, request.basis),
            coarse_velocity=_coarse_velocity(request, index, tokens),
        )

    def call(self, request: Request, action: str, step: int, sigma: float) -> Called:
        """Run the engine of ``action`` at ``sigma``; ``step`` counts from the stage's first.

        A full step leaves its feature in the cache, a bypass starts from what the cache predicts.
        Raises ``SignatureMismatch`` if the velocity does not match the latents.
        """
        if action == "bypass" and self.coarse_velocity is not None:
            velocity, seconds = self.coarse_velocity.predict(self.tokens, sigma)
            return Called(velocity=velocity, engine_seconds=seconds)
        self.timestep.fill_(sigma)
        runner, inputs = request.runners[engine_name(self.index, action)], self.inputs
        if action == "bypass":
            inputs = self._bypassed(runner, step, sigma)
        began = perf_counter()
        with torch.no_grad():
            outputs = runner(inputs)
        seconds = perf_counter() - began
        velocity = self._velocity(outputs)
        if self.cache is not None and action == "full":
            self.cache.observe(outputs[self.cache.feature], step, sigma)
        if self.coarse_velocity is not None and self._predicts_next(request, step):
            seconds += self.coarse_velocity.observe(self.tokens, velocity, sigma)
        return Called(velocity=velocity, engine_seconds=seconds)

    def _predicts_next(self, request: Request, step: int) -> bool:
        actions = request.plan.stages[self.index].actions
        return actions[step + 1 : step + 2] == ("bypass",)

    def _bypassed(self, runner: Runner, step: int, sigma: float) -> Mapping[str, Tensor]:
        """What a bypass graph takes: the predicted feature, and of the inputs what it asks for."""
        if self.cache is None:
            raise ValueError("a bypass in a stage without a cache; expected a plan with one")
        inputs = {self.cache.feature: self.cache.predict(step, sigma), **self.inputs}
        return {spec.name: inputs[spec.name] for spec in runner.signature.inputs}

    def _velocity(self, outputs: Mapping[str, Tensor]) -> Tensor:
        velocity = outputs.get("velocity")
        if velocity is None or _kind(velocity) != _kind(self.tokens):
            raise SignatureMismatch(
                f"the engine gave {'nothing' if velocity is None else _kind(velocity)}"
                " for velocity",
                expected=f"{_kind(self.tokens)}, as its latents are",
                fix="put the noise pyramid on the engine's device, or build engines from this plan",
            )
        return velocity

    def record(self, request: Request, left: int, velocity: Tensor, sigma: float) -> None:
        """Keep the latents at ``sigma``, a step's end, for the rules, if they look back so far."""
        if left >= self.window.steps:
            return
        with torch.no_grad():
            latents, clean = self.tokens, estimate_x0(self.tokens, velocity, sigma)
            if self.mixed is not None:
                latents = self.mixed.dense(latents, request.layout)
                clean = self.mixed.dense(clean, request.layout)
            self.window.record_(left, latents, clean)

    def leave(self, request: Request, velocity: Tensor) -> Self:
        """The stage after this one, entered over the transition between both."""
        transition = request.plan.transitions[self.index]
        crosses_mixed = self.mixed is not None or transition.is_partial
        cross = self._cross_mixed if crosses_mixed else self._cross_whole
        with torch.no_grad():
            tokens, mixed = cross(request, transition, velocity)
        return self.enter(request, self.index + 1, tokens, mixed)

    def _cross_whole(
        self, request: Request, transition: Transition, velocity: Tensor
    ) -> tuple[Tensor, None]:
        layout = request.layout
        grid, grid_next = (stage.grid for stage in request.plan.stages[self.index :][:2])
        latents = apply_transition(
            transition,
            layout.unpack(self.tokens, grid),
            layout.unpack(velocity, grid),
            request.pyramid,
            scale=grid.scale,
            scale_next=grid_next.scale,
            generator=_noise_generator(request, transition),
        )
        return layout.pack(latents), None

    def _cross_mixed(
        self, request: Request, transition: Transition, velocity: Tensor
    ) -> tuple[Tensor, Mixed | None]:
        layout = request.layout
        grid, grid_next = (stage.grid for stage in request.plan.stages[self.index :][:2])
        before = self.mixed or Mixed.whole(grid, grid_next, self.tokens.device)
        coarse, fine = cross_mixed(
            transition,
            self.tokens,
            velocity,
            before,
            request.pyramid,
            layout,
            generator=_noise_generator(request, transition),
        )
        if not transition.is_partial:
            return layout.pack(fine), None
        after = self._refine(request, transition, before)
        return after.join(coarse, fine, layout), after

    def _refine(self, request: Request, transition: Transition, before: Mixed) -> Mixed:
        """The places of the next stage: those of ``before`` and what the rules choose."""
        candidates = before.candidates()
        chosen = request.choice(transition.refinements, self.window, candidates, request.generator)
        expanded = chosen.logical_or(candidates.logical_not())
        count = request.plan.refined[self.index + 1]
        return Mixed.from_mask(before.coarse, before.fine, expanded, count)


def _tables(request: Request, index: int, mixed: Mixed | None) -> Mapping[str, Tensor]:
    if mixed is None:
        return request.layout.tables(request.plan.stages[index].grid)
    return mixed_tables(request.layout, mixed, request.plan.positions)


def _coarse_velocity(request: Request, index: int, tokens: Tensor) -> CoarseVelocity | None:
    plan = request.plan
    if plan.velocity_grid is None or "bypass" not in plan.stages[index].actions:
        return None
    return CoarseVelocity.of(request, index, request.runners[engine_name(index, "bypass")], tokens)


def _window(request: Request, index: int, tokens: Tensor, mixed: Mixed | None) -> Window:
    plan = request.plan
    grid = plan.stages[index].grid if mixed is None else mixed.coarse
    follows = index < len(plan.transitions) and plan.transitions[index].is_partial
    return Window.empty(plan.transitions[index].window if follows else 0, grid, tokens)


def _noise_generator(request: Request, transition: Transition) -> torch.Generator | None:
    """The request's generator, for a transition whose noise is drawn from it."""
    return request.generator if transition.noise == "fresh" else None


def _kind(tensor: Tensor) -> str:
    shape = ",".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape}] on {tensor.device.type}"
