"""One sampling request: all that the loop reads, checked before any engine runs.

First stop of :mod:`fresco_trt.run.sampler`. What can be refused is refused here, with every part at
hand, so that a wrong request never gets half way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.errors import SignatureMismatch
from fresco_trt.models.family import guided
from fresco_trt.plan.schedule import SIGMA_TOLERANCE
from fresco_trt.run.cache.stage_cache import StageCache
from fresco_trt.run.editing import Decision, decide, decide_again, decide_by_mask
from fresco_trt.run.resample import block_mean
from fresco_trt.run.text import TEXT, check_text
from fresco_trt.run.transition import check_generator, check_transition, draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.editing import Judge
    from fresco_trt.run.noise import NoisePyramid
    from fresco_trt.run.selection import Choice


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conditioning:
    """What a request is drawn from beside its noise; constant over the run, on the engines' device.

    ``inputs`` are engine inputs by name, batch B: those that no step and no stage changes.
    ``negative`` are the same of the unconditional branch, None without one; with it the velocity is
    what the family makes of both at ``true_cfg_scale``, in diffusers' words (classifier-free
    guidance: :func:`~fresco_trt.models.family.guided`). ``references`` are latents [B,C,(F),H,W]
    of full resolution, one a reference picture: their tokens stand behind the target's, at each
    stage's own resolution.
    ``prompt_tokens`` is how many of the text's tokens are the longest prompt's own, in either
    branch: what is behind them is padding, which a plan may cut. None where that is not known.
    ``mask`` says what an edit touches, latent pixels bool [1,1,H,W] of full resolution; None where
    that is to be found.

    Raises ValueError for branches of other inputs, and for a scale without a branch.
    """

    inputs: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None = None
    true_cfg_scale: float = 1.0
    references: tuple[Tensor, ...] = ()
    prompt_tokens: int | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.negative is None and self.true_cfg_scale != 1.0:
            raise ValueError(
                f"a true guidance scale of {self.true_cfg_scale:g} without an unconditional branch;"
                " expected its inputs in negative"
            )
        wanted = _kinds(self.inputs)
        if self.negative is not None and _kinds(self.negative) != wanted:
            given = _kinds(self.negative)
            raise ValueError(f"an unconditional branch of {given}; expected {wanted}")

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on ``device``; tensors already there are shared, not copied."""
        negative = self.negative
        return Conditioning(
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            negative=None
            if negative is None
            else {name: value.to(device) for name, value in negative.items()},
            true_cfg_scale=self.true_cfg_scale,
            references=tuple(each.to(device) for each in self.references),
            prompt_tokens=self.prompt_tokens,
            mask=None if self.mask is None else self.mask.to(device),
        )

    @property
    def branches(self) -> tuple[Mapping[str, Tensor], ...]:
        """The conditional branch, and the unconditional one where there is one."""
        return (self.inputs,) if self.negative is None else (self.inputs, self.negative)


def _kinds(inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in sorted(inputs.items())}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """The arguments of :func:`fresco_trt.run.sampler.sample`; raises as it says."""

    plan: StagePlan
    runners: Mapping[str, Runner]
    conditioning: Conditioning
    pyramid: NoisePyramid
    patchifier: Patchifier
    generator: torch.Generator | None
    choice: Choice
    basis: Tensor | None = None
    judge: Judge | None = None
    guide: Callable[[Tensor, Tensor, float], Tensor] = guided

    def __post_init__(self) -> None:
        _check_start(self.plan)
        _check_engines(self.plan, self.runners)
        _check_grids(self.plan, self.pyramid)
        _check_references(self.plan, self.conditioning, self.pyramid)
        _check_text(self.plan, self.conditioning)
        check_transitions(self.plan)
        for index in range(len(self.plan.stages)):
            StageCache.of(self.plan, index, self.basis)
        check_generator(self.generator, wanted=any(map(draws, self.plan.transitions)))
        _check_edit(self.plan, self.conditioning, self.judge)

    def decide(self, draft: Tensor) -> Decision:
        """What becomes of a draft of clean latents [1,C,h,w]; for plans of selective edits."""
        if self.conditioning.mask is not None:
            return decide_by_mask(self.plan, self.conditioning.mask)
        return decide(self.plan, self._scores(draft))

    def decide_again(self, clean: Tensor, edited: Tensor, refined: Tensor) -> Decision:
        """The same in a mixed stage, of a clean estimate [1,C,h,w] on the draft's grid and what is
        ``edited`` and ``refined`` already, bool [N].
        """
        return decide_again(self.plan, self._scores(clean), edited, refined)

    def _scores(self, clean: Tensor) -> Tensor:
        (source,) = self.conditioning.references
        if self.judge is None:
            raise ValueError("no judge; expected one, see _check_edit")
        ratio = source.shape[-1] // clean.shape[-1]
        return self.judge(clean, block_mean(source, ratio)).to(clean.device)


def engine_name(stage: int, action: str) -> str:
    """Name of the engine that carries out ``action`` in the stage counted from 0."""
    return f"stage{stage + 1}.{action}"


def velocity_of(outputs: Mapping[str, Tensor], tokens: Tensor, batch: int) -> Tensor:
    """The velocity [B,N,C] of an engine whose latents are as ``tokens``, for ``batch`` pictures.
    Raises SignatureMismatch for none, or another.
    """
    velocity = outputs.get("velocity")
    wanted = tokens[:1].expand(batch, -1, -1)
    if velocity is None or _kind(velocity) != _kind(wanted):
        raise SignatureMismatch(
            f"the engine gave {'nothing' if velocity is None else _kind(velocity)} for velocity",
            expected=f"{_kind(wanted)}, as its latents are",
            fix="put the noise pyramid on the engine's device, or build engines from this plan",
        )
    return velocity


def coarse_grid(plan: StagePlan, stage: int) -> Grid:
    """The grid of the tokens of a stage, counted from 0, that are still to be expanded.

    The stage's own, or where it is mixed that of the last whole grid before it.
    """
    while plan.refined[stage]:
        stage -= 1
    return plan.stages[stage].grid


def check_transitions(plan: StagePlan) -> None:
    """Raise ``ValueError`` for a transition that cannot be applied exactly as it is written."""
    for index, transition in enumerate(plan.transitions):
        scale, scale_next = coarse_grid(plan, index).scale, plan.stages[index + 1].grid.scale
        check_transition(transition, scale=scale, scale_next=scale_next)


def _check_start(plan: StagePlan) -> None:
    start = plan.stages[0].sigmas[0]
    if abs(start - 1.0) > SIGMA_TOLERANCE:
        raise ValueError(
            f"plan starts at sigma {start:g}; expected 1: below it there is a picture to start from"
        )


def _check_engines(plan: StagePlan, runners: Mapping[str, Runner]) -> None:
    for index, action in plan.graphs:
        if engine_name(index, action) not in runners:
            raise ValueError(
                f"no runner named {engine_name(index, action)!r} among {sorted(runners)};"
                " expected one per stage and action of the plan"
            )


def _check_grids(plan: StagePlan, pyramid: NoisePyramid) -> None:
    for stage in plan.stages:
        shape, grid = pyramid.field(stage.grid.scale).shape, stage.grid
        frames = shape[2] if len(shape) == 5 else 1
        if (frames, *shape[-2:]) != (grid.frames, grid.height, grid.width):
            raise ValueError(
                f"noise of {tuple(shape[2:])} latent pixels at scale {grid.scale:g};"
                f" expected the grid's, {grid}"
            )
    batch = len(pyramid.fields[0])
    if batch != 1 and any(plan.refined):
        raise ValueError(
            f"a batch of {batch} on a mixed grid; expected one picture: each chooses its own"
            " tokens, and an engine takes one table of positions"
        )


def _check_references(plan: StagePlan, given: Conditioning, pyramid: NoisePyramid) -> None:
    wanted = pyramid.fields[0].shape
    for each in given.references:
        if each.shape != wanted:
            raise ValueError(
                f"a reference of latents {tuple(each.shape)}; expected {tuple(wanted)}, as the"
                " picture's own"
            )
    if given.references and (any(plan.aligned) or plan.velocity_grid is not None):
        raise ValueError(
            "references with phase-aligned attention or coarse velocities; expected a plan without:"
            " both take the target's tokens alone"
        )


def _check_edit(plan: StagePlan, given: Conditioning, judge: Judge | None) -> None:
    if plan.edit is None:
        if given.mask is not None:
            raise ValueError("a mask for a plan that draws every token; expected one with an edit")
        return
    if len(given.references) != 1:
        raise ValueError(f"an edit of {len(given.references)} sources; expected one")
    if judge is None and given.mask is None:
        raise ValueError("an edit without a mask or a judge; expected one, to say what it touches")
    wanted = (1, 1, *given.references[0].shape[-2:])
    if given.mask is not None and tuple(given.mask.shape) != wanted:
        raise ValueError(f"a mask of {tuple(given.mask.shape)}; expected {wanted}")


def _check_text(plan: StagePlan, given: Conditioning) -> None:
    if not plan.cuts_text:
        return
    if TEXT not in given.inputs:
        raise ValueError(
            f"a plan that cuts the text with the inputs {sorted(given.inputs)}; expected {TEXT!r}"
        )
    check_text(plan, given.prompt_tokens, given.inputs[TEXT].shape[1])


def _kind(tensor: Tensor) -> str:
    shape = ",".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape}] on {tensor.device.type}"
