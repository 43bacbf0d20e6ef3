"""What an edit touches: draft and source compared, the tokens to refine, and the source kept.

Between the draft of :mod:`fresco_trt.run.sampler` and the mixed stage after it. SpecEdit (arXiv
2605.02152) names the three steps: a draft, its verification by token discrepancy, and refinement of
what differs. What its authors left open is here as the code of its neighbours has it: SpotEdit's
score of decoder features (arXiv 2512.22323) and RegionE's cosine (arXiv 2510.25590).

Shapes: h, w latent pixels of the draft's grid; N its tokens, R rows of C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    cosine_similarity,
    interpolate,
    max_pool2d,
    normalize,
    pad,
)

from fresco_trt.errors import NonFiniteValues
from fresco_trt.run.selection import choose

if TYPE_CHECKING:
    from fresco_trt.models.family import Patchifier
    from fresco_trt.plan.editing import Discrepancy, EditPlan
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stages import StagePlan

Judge: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Scores [N] from the clean latents of a draft and of its source, [1,C,h,w] each; higher where they
differ more."""

Features: TypeAlias = "Callable[[Tensor], Sequence[Tensor]]"
"""Maps [1,D,h',w'] of latents [1,C,h,w], one a depth, each of its own D, h' and w'."""


# --- how much a token differs -----------------------------------------------------------------


def feature_discrepancy(draft: Sequence[Tensor], source: Sequence[Tensor], grid: Grid) -> Tensor:
    """Scores [N] of maps [1,D,h',w'] of several depths, as SpotEdit has them.

    At each place the channels are normalised and their squared differences summed, so that one
    depth gives from 0 to 4. The maps are resized to ``grid``, averaged over the depths, and pooled
    to its tokens.
    """
    maps = []
    for one, other in zip(draft, source, strict=True):
        squared = (normalize(one, dim=1) - normalize(other, dim=1)).square().sum(1, keepdim=True)
        size = (grid.height, grid.width)
        maps.append(interpolate(squared, size=size, mode="bilinear", align_corners=False))
    return _pooled(torch.stack(maps).mean(dim=0), grid)


def latent_discrepancy(draft: Tensor, source: Tensor, grid: Grid) -> Tensor:
    """Scores [N]: the squared difference of normalised latents [1,C,h,w], mean over a token."""
    return _pooled((draft - source).square().mean(dim=1, keepdim=True), grid)


def cosine_discrepancy(draft: Tensor, source: Tensor) -> Tensor:
    """Scores [N] from 0 to 2: one minus the cosine of tokens [1,N,D], RegionE's measure."""
    return 1.0 - cosine_similarity(draft, source, dim=-1)[0]


def judge_of(rule: Discrepancy, grid: Grid, patchifier: Patchifier, features: Features) -> Judge:
    """The measure that a plan names, on its draft's ``grid``; only one reads ``features``."""
    if rule == "latent":
        return lambda draft, source: latent_discrepancy(draft, source, grid)
    if rule == "cosine":
        return lambda draft, source: cosine_discrepancy(
            patchifier.pack(draft), patchifier.pack(source)
        )
    return lambda draft, source: feature_discrepancy(features(draft), features(source), grid)


# --- what is refined --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decision:
    """What becomes of a draft: the ``stage`` that follows, counted from 0, None where the edit
    touches nothing; the tokens that are ``edited`` and, of a mixed stage, those that are
    ``refined``, bool [N] on the latents' device.
    """

    stage: int | None
    edited: Tensor
    refined: Tensor | None


def decide(plan: StagePlan, scores: Tensor) -> Decision:
    """By the threshold: tokens of ``scores`` [N] that reach it, and those around them.

    They and the coverage go to the first stage that has room for all. What room is left goes to
    the highest scores among the others. The host waits for the count. Raises NonFiniteValues for
    scores that are not finite: they would reach no threshold.
    """
    return _decided(plan, _differing(plan, scores), scores)


def decide_by_mask(plan: StagePlan, mask: Tensor) -> Decision:
    """By a mask of the picture's latents, bool [1,1,H,W]: tokens that hold any of it.

    Nothing around them is edited; what room is left in the stage goes to what is nearest.
    """
    grid = plan.stages[0].grid
    size = mask.shape[-2] // grid.rows, mask.shape[-1] // grid.columns
    edited = max_pool2d(mask.float(), size, size).flatten() > 0
    near = edited.float().reshape(1, 1, grid.rows, grid.columns)
    for _ in range(2):  # further than two tokens away all are alike
        near = near + max_pool2d(near, 3, stride=1, padding=1)
    return _decided(plan, edited, near.flatten())


def decide_again(plan: StagePlan, scores: Tensor, before: Tensor, refined: Tensor) -> Decision:
    """As :func:`decide`, in a mixed stage: what was ``edited`` ``before`` and all that is
    ``refined``, bool [N], stays so. The stage is one that has room for both.
    """
    edited = _differing(plan, scores).logical_or(before)
    return _decided(plan, edited, scores, refined)


def _differing(plan: StagePlan, scores: Tensor) -> Tensor:
    """Tokens whose scores reach the threshold, and those around them, bool [N]."""
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteValues(
            "a discrepancy between draft and source that is not finite",
            expected="finite features of the decoder",
            fix="build the bundle again from a pipeline folder whose weights are finite",
        )
    edit = _edit(plan)
    return _grown(scores >= edit.threshold, plan.stages[0].grid, edit.dilation)


def _decided(
    plan: StagePlan, edited: Tensor, scores: Tensor, refined: Tensor | None = None
) -> Decision:
    wanted = edited.logical_or(covered(plan, edited.device))
    if refined is not None:
        wanted = wanted.logical_or(refined)
    touched, count = torch.stack([edited.sum(), wanted.sum()]).tolist()
    if not touched:
        return Decision(stage=None, edited=edited, refined=None)
    for stage, room in enumerate(plan.refined):
        if room >= count:
            first = scores.masked_fill(wanted, torch.inf)
            chosen = choose(first, torch.ones_like(edited), room)
            refined = torch.zeros_like(edited).index_fill(0, chosen, True)
            return Decision(stage=stage, edited=edited, refined=refined)
    return Decision(stage=len(plan.stages) - 1, edited=edited, refined=None)


def covered(plan: StagePlan, device: torch.device | str = "cpu") -> Tensor:
    """The sparse, even set of tokens that is refined whatever differs, bool [N]."""
    grid, edit = plan.stages[0].grid, _edit(plan)
    rows = torch.zeros(grid.rows, 1, dtype=torch.bool, device=device)
    columns = torch.zeros(1, grid.columns, dtype=torch.bool, device=device)
    rows[list(edit.even(grid.rows))] = True
    columns[:, list(edit.even(grid.columns))] = True
    return rows.logical_and(columns).flatten()


def leading(plan: StagePlan) -> tuple[Tensor, ...]:
    """Tokens of the draft's grid, bool [N], that lead an edit into each stage behind the draft if a
    mask names them: as many as it has room for, in the last one all.
    """
    count, even = plan.stages[0].grid.tokens, covered(plan)
    # The even set first: what comes after it takes one token more at a time.
    order = torch.cat([even.nonzero().flatten(), even.logical_not().nonzero().flatten()])
    rooms = (*plan.refined[1:-1], count)
    return tuple(torch.zeros_like(even).index_fill(0, order[:room], True) for room in rooms)


def masks_of(plan: StagePlan) -> tuple[Tensor | None, ...]:
    """Masks that lead an edit along each of the plan's paths, latent pixels bool [1,1,H,W] of full
    resolution; a None alone for a plan that takes every stage in turn.
    """
    if plan.edit is None:
        return (None,)
    grid, final = plan.stages[0].grid, plan.stages[-1].grid
    ratio = final.height // grid.rows
    return tuple(
        tokens.reshape(1, 1, grid.rows, grid.columns)
        .repeat_interleave(ratio, -2)
        .repeat_interleave(ratio, -1)
        for tokens in leading(plan)
    )


# --- what is kept -----------------------------------------------------------------------------


def keep_source(picture: Tensor, source: Tensor, edited: Tensor, grid: Grid, blend: int) -> Tensor:
    """Latents [1,C,H,W] of ``picture`` where it was edited, and of ``source`` elsewhere.

    ``edited`` is bool [N] on the draft's ``grid``. Over ``blend`` latent pixels on either side of a
    seam the weights go from one to the other; further away each is exactly itself.
    """
    tokens = edited.to(picture.dtype).reshape(1, 1, grid.rows, grid.columns)
    weight = interpolate(tokens, size=picture.shape[-2:], mode="nearest")
    if blend:
        padded = pad(weight, (blend,) * 4, mode="replicate")
        weight = avg_pool2d(padded, 2 * blend + 1, stride=1)
    mixed = torch.lerp(source, picture, weight)
    # Not what lerp rounds to at its ends.
    return torch.where(weight >= 1, picture, torch.where(weight <= 0, source, mixed))


def _pooled(scores: Tensor, grid: Grid) -> Tensor:
    size = grid.height // grid.rows, grid.width // grid.columns
    return avg_pool2d(scores, size).flatten()


def _grown(edited: Tensor, grid: Grid, reach: int) -> Tensor:
    if not reach:
        return edited
    places = edited.float().reshape(1, 1, grid.rows, grid.columns)
    return max_pool2d(places, 2 * reach + 1, stride=1, padding=reach).flatten() > 0


def _edit(plan: StagePlan) -> EditPlan:
    if plan.edit is None:
        raise ValueError("an edit by a plan that draws every token; expected one with an edit")
    return plan.edit
