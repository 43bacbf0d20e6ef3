"""How neighbouring stages meet: at which sigmas, on which grids, and with which tokens refined.

Between a stage and a transition, each checked when it is made, and the plan that puts them in order
(:mod:`fresco_trt.plan.stages`), which asks for this when it is made itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.grid import is_doubling, is_finer
from fresco_trt.plan.reading import REMAKE
from fresco_trt.plan.schedule import SIGMA_TOLERANCE, rewind_sigma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.stage import Stage, Transition


def check_meetings(
    stages: Sequence[Stage],
    transitions: Sequence[Transition],
    refined: Sequence[int],
    tokens: Sequence[int],
    *,
    is_edit: bool,
) -> None:
    """Raise InvalidPlan unless each two stages meet at the transition between them, as StagePlan
    says. ``refined`` and ``tokens`` are those of each stage; one of an edit looks back at nothing.
    """
    for index, transition in enumerate(transitions):
        before, after = stages[index], stages[index + 1]
        _check_sigmas(index, before, transition, after)
        _check_grids(index, before.grid, after.grid)
        _check_rewind(before.grid, transition, after.grid, refined[index])
        if refined[index] and after.grid != before.grid:
            given = f"stage {index + 2} on {after.grid} after a mixed stage on {before.grid}"
            raise _invalid(given, "the same grid")
        if not transition.is_partial:
            continue
        if not refined[index] and not is_doubling(before.grid, after.grid):
            raise _invalid(f"a mixed stage on {after.grid} after {before.grid}", "twice the sides")
        _check_count(transition.count or 0, coarse=tokens[index] - 4 * refined[index])
        if transition.window > before.steps and not is_edit:
            given = f"a window of {transition.window} steps after a stage of {before.steps}"
            raise _invalid(given, f"at most {before.steps}")
        if index == len(transitions) - 1:
            raise _invalid("a last stage on a mixed grid", "one more transition, to the full grid")


def _check_sigmas(index: int, before: Stage, transition: Transition, after: Stage) -> None:
    if abs(before.sigmas[-1] - transition.sigma) > SIGMA_TOLERANCE:
        given = f"stage {index + 1} ends at sigma {before.sigmas[-1]}"
        raise _invalid(given, f"the transition's, {transition.sigma}")
    if abs(after.sigmas[0] - transition.restart) > SIGMA_TOLERANCE:
        given = f"stage {index + 2} starts at sigma {after.sigmas[0]}"
        raise _invalid(given, f"the transition's restart, {transition.restart}")


def _check_grids(index: int, before: Grid, after: Grid) -> None:
    if not is_finer(before, after):
        given = f"stage {index + 2} on {after} at scale {after.scale} after {before}"
        raise _invalid(given, "the same grid, or all of height, width and scale larger alike")


def _check_rewind(before: Grid, transition: Transition, after: Grid, refined: int) -> None:
    if transition.noise != "rewind":
        return
    # Out of a mixed stage the grid stays, but every token that is expanded goes to twice its own.
    ratio = 2.0 if refined else after.scale / before.scale
    end = rewind_sigma(transition.sigma, ratio)
    if abs(transition.restart - end) > SIGMA_TOLERANCE:
        given = f"a rewind from {transition.sigma} to {transition.restart}"
        raise _invalid(given, f"{end}, the level the expansion ends at")


def _check_count(count: int, *, coarse: int) -> None:
    """That some of so many ``coarse`` tokens are left after ``count`` were refined."""
    if coarse < 2:
        expected = "no refinements: the last one is expanded with the rest"
        raise _invalid(f"{count} tokens refined of {coarse} still coarse", expected)
    if count >= coarse:
        given = f"{count} tokens refined of {coarse} still coarse"
        raise _invalid(given, f"from 1 to {coarse - 1}, or no refinements for all")


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
