"""Which coarse tokens are expanded early: one pure function a rule, and the choice by score.

Between two stages of :mod:`fresco_trt.run.sampler`: the :class:`Window` of a stage's last steps
goes in, a mask of coarse tokens comes out. How many is the plan's, so nothing here waits for a
device: scores, choice and mask stay where the latents are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

import torch
from torch import Tensor

from fresco_trt.plan.refinement import EDITED

if TYPE_CHECKING:
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import Selection, TokenRefinement


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Window:
    """The last W steps of a stage on its coarse grid: N = ``frames`` x ``rows`` x ``columns``
    tokens.

    ``latents`` (after each step) and ``clean`` (its clean estimate) are float32 [W,N,D], oldest
    first.
    """

    rows: int
    columns: int
    latents: Tensor
    clean: Tensor
    frames: int = 1

    @classmethod
    def empty(cls, steps: int, grid: Grid, like: Tensor) -> Self:
        """Room for ``steps`` steps of tokens [1,N,D] that are ``like`` in all but N."""
        shape = steps, grid.tokens, like.shape[-1]
        return cls(
            rows=grid.rows,
            columns=grid.columns,
            latents=like.new_empty(shape),
            clean=like.new_empty(shape),
            frames=grid.frames,
        )

    @property
    def steps(self) -> int:
        """W, the steps that it holds."""
        return len(self.latents)

    def record_(self, left: int, latents: Tensor, clean: Tensor) -> None:
        """Store tokens [1,N,D] of the step that has ``left`` (below W) steps after it."""
        slot = self.steps - 1 - left
        self.latents[slot].copy_(latents[0])
        self.clean[slot].copy_(clean[0])


# --- rules ------------------------------------------------------------------------------------


def spread(values: Tensor) -> Tensor:
    """Unbiased variance over the steps of ``values`` [W,N,D], mean over D: [N].

    Fresco's Eq. 7 (arXiv 2601.07462) and AViTS' Eq. 6-7. The latents move along the path whatever
    their token does, the clean estimates do not: on those only what the model changed its mind
    about is left.
    """
    # Not ``var``, which on a CPU takes fifty times as long over the first dimension.
    deviations = values - values.mean(dim=0)
    return deviations.square().sum(dim=0).mean(dim=-1) / (len(values) - 1)


def converged(window: Window) -> Tensor:
    """Settled tokens first: minus the variance of the clean estimates."""
    return -spread(window.clean)


def converged_latent(window: Window) -> Tensor:
    """Fresco's rule as published: minus the variance of the latents themselves."""
    return -spread(window.latents)


def changing(window: Window) -> Tensor:
    """Unsettled tokens first: the variance of the clean estimates."""
    return spread(window.clean)


def changing_latent(window: Window) -> Tensor:
    """AViTS' temporal score as published: the variance of the latents themselves."""
    return spread(window.latents)


def edge(window: Window) -> Tensor:
    """Gradient magnitude of the last clean estimate over the token grid, frame by frame.

    Forward differences with the last row and column repeated, summed over both axes and D: RALU's
    variant that needs no decoder (arXiv 2507.08422).
    """
    frames = window.clean[-1].reshape(window.frames, window.rows, window.columns, -1)
    down = frames.diff(dim=1, append=frames[:, -1:])
    across = frames.diff(dim=2, append=frames[:, :, -1:])
    return (down.square() + across.square()).sum(dim=-1).sqrt().flatten()


def even(window: Window) -> Tensor:
    """The order of a Bayer matrix: every leading part of it is spread over both axes.

    Of the first k tokens, aligned square blocks of a side that is a power of two hold equal shares
    to within one token, while the grid's own sides are powers of two as well. Frames take turns.
    """
    row = torch.arange(window.rows, device=window.clean.device)[:, None]
    column = torch.arange(window.columns, device=window.clean.device)
    rank = torch.zeros_like(row + column)
    for bit in range((max(window.rows, window.columns) - 1).bit_length()):
        # The lowest bit of a position weighs most: neighbours are far apart in the order.
        y, x = row >> bit & 1, column >> bit & 1
        rank = 4 * rank + 2 * (x ^ y) + y
    frame = torch.arange(window.frames, device=window.clean.device)[:, None, None]
    return -(rank * window.frames + frame).flatten().to(torch.float32)


RULES: Mapping[Selection, Callable[[Window], Tensor]] = {
    "converged": converged,
    "converged-latent": converged_latent,
    "changing": changing,
    "changing-latent": changing_latent,
    "edge": edge,
    "even": even,
}
"""Scores [N] by rule, higher first, float32; "random" reads a generator and no window."""


def score(rule: Selection, window: Window, generator: torch.Generator | None) -> Tensor:
    """Scores [N] of ``rule``, float32, higher first; only "random" reads the generator."""
    if rule != "random":
        return RULES[rule](window)
    if generator is None:
        raise ValueError("the rule 'random' without a generator; expected one")
    count, device = window.frames * window.rows * window.columns, generator.device
    return torch.rand(count, generator=generator, device=device).to(window.clean.device)


# --- choice -----------------------------------------------------------------------------------

Choice: TypeAlias = (
    "Callable[[Sequence[TokenRefinement], Window, Tensor, torch.Generator | None], Tensor]"
)
"""What :func:`select` is: whoever compares two runs may have one repeat the other's choice."""


def choose(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Ascending indices, int64 [count], of the ``count`` highest ``scores`` [N] of candidates.

    ``candidates`` is bool [N], true in at least ``count`` places. Ties go to the lower index. A
    score that is no number takes no place from a candidate.
    """
    order = scores.argsort(descending=True, stable=True)
    # Not scores of -inf for the others: a candidate may have that score itself.
    barred = candidates.logical_not().index_select(0, order).to(torch.int8)
    first = barred.argsort(stable=True)[:count]
    return order.index_select(0, first).sort().values


def choose_tubes(scores: Tensor, candidates: Tensor, count: int, frames: int) -> Tensor:
    """As :func:`choose`, at the same places in each of ``frames``: those of the highest mean score,
    of places whose tokens are candidates in every frame; ``count`` is a multiple of ``frames``.
    """
    free = candidates.reshape(frames, -1)
    places = choose(scores.reshape(frames, -1).mean(dim=0), free.all(dim=0), count // frames)
    starts = torch.arange(frames, device=places.device) * free.shape[1]
    return (starts[:, None] + places).flatten()


def select(
    refinements: Sequence[TokenRefinement],
    window: Window,
    candidates: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Candidates that the refinements take, bool [N]; each chooses among what is left to it."""
    left = candidates
    for refinement in refinements:
        if refinement.rule == EDITED:
            raise ValueError("tokens that an edit touches, from a window; expected a draft's plan")
        scores = score(refinement.rule, window, generator)
        if refinement.tube:
            taken = choose_tubes(scores, left, refinement.count, window.frames)
        else:
            taken = choose(scores, left, refinement.count)
        left = left.index_fill(0, taken, False)
    return candidates.logical_and(left.logical_not())
