"""Which steps of a plan may be skipped: measured, by how much the input of the first block changes.

Beside the build, as `fresco-trt calibrate --measure sea-schedule`. SeaCache (arXiv 2602.18993, as
two servers have it in code) decides while it draws: the change from step to step is added up, and a
step runs in full when the sum reaches a threshold, which empties it. Here the decision is made
ahead of time, from the mean change over a few prompts, so that no engine waits for it. What it
gives is a list of actions, for `--cache NAME,actions=...` with any predictor of features.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.backends.base import Progress, silent
from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate.trajectories import in_full, walks
from fresco_trt.plan.caching import spelling_of

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.plan.caching import Action
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan

THRESHOLDS = (0.15, 0.3, 0.6, 1.0)
"""Sums of relative changes that lists are made for unless others are asked; 0.15 and 0.3 are the
published ones, for 50 steps."""

_TINY = 1e-16
_CLEANEST, _NOISIEST = 1e-6, 1.0 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSchedule:
    """One list of actions, a word a stage; ``changes`` [stage][step] are the mean relative changes
    since the step before, None at a stage's first step and in mixed stages.
    """

    threshold: float
    actions: tuple[str, ...]
    changes: tuple[tuple[float | None, ...], ...]

    @property
    def full_steps(self) -> int:
        """Steps that run the whole network."""
        return sum(word.count("F") for word in self.actions)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "threshold": self.threshold,
            "actions": list(self.actions),
            "full_steps": self.full_steps,
            "changes": [list(stage) for stage in self.changes],
        }


# --- one change -------------------------------------------------------------------------------


def wiener_gains(size: int, sigma: float, power: int) -> Tensor:
    """The gain of each frequency [size] along one axis, in the order of ``torch.fft.fftfreq``.

    What a Wiener filter lets through of a signal of the spectrum 1/|f|^power in noise, at weights
    of 1 - sigma and sigma.
    """
    clean, noise = 1.0 - sigma, sigma
    spectrum = 1.0 / (torch.fft.fftfreq(size).abs() ** power + _TINY)
    gains: Tensor = clean * spectrum / (clean**2 * spectrum + noise**2 + _TINY)
    return gains


def filtered(tokens: Tensor, grid: Grid, sigma: float) -> Tensor:
    """Tokens [N,H] of a whole grid with their noise at ``sigma`` filtered out: [F,R,C,H].

    Each axis has its own gains, and all of them a mean of 1. Of pictures the spectrum falls with
    the square of the frequency, of clips with its cube.
    """
    axes = [grid.frames, grid.rows, grid.columns]
    power, level = (2 if grid.frames == 1 else 3), min(max(sigma, _CLEANEST), _NOISIEST)
    response = torch.ones(axes)
    for axis, size in enumerate(axes):
        shape = [size if each == axis else 1 for each in range(3)]
        response = response * wiener_gains(size, level, power).reshape(shape)
    response = response / response.mean()
    volume = tokens.float().reshape(*axes, -1)
    waves = torch.fft.fftn(volume, dim=(0, 1, 2)) * response[..., None]
    passed: Tensor = torch.fft.ifftn(waves, dim=(0, 1, 2)).real
    return passed


def relative_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference over the mean magnitude of what was before."""
    return float((now - before).abs().mean() / (before.abs().mean() + _TINY))


def accumulated(changes: Sequence[float], threshold: float, *, ends: bool) -> tuple[Action, ...]:
    """The actions of a stage of one step more than there are ``changes``: full where these reach
    ``threshold`` in sum since the last full step. The first step is full, and where the picture
    ``ends`` the last one too.
    """
    actions: list[Action] = ["full"]
    total = 0.0
    for step, change in enumerate(changes, start=1):
        total += change
        full = total >= threshold or (ends and step == len(changes))
        actions.append("full" if full else "bypass")
        total = 0.0 if full else total
    return tuple(actions)


# --- a plan -----------------------------------------------------------------------------------


def measure_change_schedule(
    reference: Reference,
    plan: StagePlan,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    progress: Progress = silent,
) -> tuple[ChangeSchedule, ...]:
    """Lists of actions for ``plan``, one a threshold, all from the same trajectories.

    Every step of these is full, where SeaCache's own are those that it has skipped steps of.
    Stages are treated alone. Mixed ones, whose tokens are on no one grid, skip no step. Raises
    CalibrationError for a threshold that is not above 0.
    """
    for threshold in thresholds:
        if not 0.0 < threshold < math.inf:
            raise CalibrationError(
                f"a threshold of {threshold:g}",
                expected="a sum of relative changes above 0",
                fix=f"pass one like {THRESHOLDS[1]:g}",
            )
    whole = in_full(plan)
    changes = _changes(reference, whole, progress)
    ends = {path[-1] for path in whole.paths}
    return tuple(
        ChangeSchedule(
            threshold=threshold,
            actions=tuple(
                _word(stage, threshold, ends=index in ends) for index, stage in enumerate(changes)
            ),
            changes=changes,
        )
        for threshold in thresholds
    )


def _word(stage: Sequence[float | None], threshold: float, *, ends: bool) -> str:
    changes = [each for each in stage if each is not None]
    mixed = len(changes) + 1 < len(stage)
    return "F" * len(stage) if mixed else spelling_of(accumulated(changes, threshold, ends=ends))


def _changes(
    reference: Reference, plan: StagePlan, progress: Progress
) -> tuple[tuple[float | None, ...], ...]:
    """The mean changes of :class:`ChangeSchedule`."""
    found: list[list[list[float]]] = [[[] for _ in stage.actions] for stage in plan.stages]
    with ExitStack() as scope:
        entering = scope.enter_context(_entering(reference))
        every = walks(reference, plan, scope)
        total = len(every) * plan.nfe
        before: Tensor | None = None
        for done, seen in enumerate(chain.from_iterable(every), start=1):
            progress("measuring the change of the input", done / total)
            stage = plan.stages[seen.stage]
            if plan.refined[seen.stage]:
                continue
            behind = plan.reference_tokens[seen.stage] * reference.facts.references
            own = entering[-1][0, -stage.grid.tokens - behind :][: stage.grid.tokens]
            now = filtered(own, stage.grid, seen.sigma)
            if seen.step and before is not None:
                found[seen.stage][seen.step].append(relative_change(now, before))
            before = now
    return tuple(
        tuple(statistics.fmean(step) if step else None for step in stage) for stage in found
    )


@contextmanager
def _entering(reference: Reference) -> Iterator[deque[Tensor]]:
    """What the first block's attention was last called with: normed and modulated, text in front
    of the image tokens if the block has both in one.
    """
    path = next(iter(reference.family.graphs.attention(reference.transformer)))
    found: deque[Tensor] = deque(maxlen=1)
    layer = reference.transformer.get_submodule(f"{path}.to_q")
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()
