"""How many pictures the engines of a plan may take at once.

Asked before anything is built, and of a bundle that says so. What every picture decides by itself
cannot be in one run with others: an engine takes one table of positions for all its pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

MOST = 64
"""Pictures of one run at most: attention fills a GPU long before."""


def batch_problem(plan: StagePlan, batch: int) -> tuple[str, str] | None:
    """What is wrong with engines of so many pictures, and what was expected; None if nothing is."""
    given = f"batch={batch}"
    if not 1 <= batch <= MOST:
        return given, f"from 1 to {MOST} pictures"
    if batch > 1 and any(plan.refined):
        return (
            f"{given} with a mixed stage",
            "a plan without: each picture refines tokens of its own, and an engine takes one table "
            "of positions for all",
        )
    if batch > 1 and any(each.noise == "fresh" for each in plan.transitions):
        return (
            f"{given} with fresh noise at a transition",
            "a plan without: what is drawn for one picture would depend on the others",
        )
    return None
