"""What a request may ask for, checked before anything is drawn, and whether it is still wanted.

In front of the pipelines, for every door that takes either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import Cancelled, IncompatibleOptions, PlanError
from fresco_trt.plan.arguments import number, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

MAX_SEED = 2**64 - 1
"""The largest seed: torch takes 64 bits, and would read a negative one as another, large one."""
NO_PROMPT = " "
"""What a pass without the prompt is given in its place: what the authors of Qwen-Image pass."""
MAX_GUIDANCE = 1000  # models know scales of one or two digits; engines overflow far above


def guidance_of(facts: ModelFacts, asked: float | None) -> float | None:
    """The guidance scale that was asked for, or the model's default; None for a model without. Of
    the engines' input, or of guidance by a second pass (``true_cfg_scale``).

    Raises PlanError for one out of range, IncompatibleOptions for one that the model does not take.
    """
    own = facts.guidance_default if facts.guidance else facts.true_cfg_default
    if asked is None:
        return own
    asked = number("guidance", asked)
    if own is None:
        raise IncompatibleOptions(
            f"guidance {asked:g} for {facts.name}",
            expected="no guidance: this model takes none",
            fix="leave guidance out",
        )
    if not 0 <= asked <= MAX_GUIDANCE:
        raise PlanError(
            f"guidance {asked:g}",
            expected=f"a number from 0 to {MAX_GUIDANCE}",
            fix=f"pass a scale near the model's own, {own:g}",
        )
    return asked


def check_seed(seed: object) -> int:
    """`seed`, if noise can be drawn from it. Raises PlanError, InvalidArgument if it is no int."""
    given = whole("seed", seed)
    if not 0 <= given <= MAX_SEED:
        raise PlanError(
            f"seed {given}" if abs(given) < 10**30 else "a seed of over 30 digits",
            expected=f"a whole number from 0 to {MAX_SEED}",
            fix="pass such a seed",
        )
    return given


def draws_clips(plan: StagePlan) -> bool:
    """Whether what is drawn has more frames than one."""
    return plan.stages[-1].grid.frames > 1


def check_pictures(plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a plan of clips, where pictures are drawn."""
    if draws_clips(plan):
        raise IncompatibleOptions(
            f"engines of {plan.model} for clips of {plan.size[-1]} frames",
            expected="engines for pictures",
            fix="draw with 'fresco-trt video', or FrescoPipeline in Python",
        )


def check_clips(plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a plan of pictures, where clips are drawn."""
    if not draws_clips(plan):
        raise IncompatibleOptions(
            f"engines of {plan.model} for pictures",
            expected="engines for clips, of a size like 1280x720x129",
            fix="draw with 'fresco-trt generate', or build with frames in --size",
        )


def check_cancel(cancel: Callable[[], bool] | None) -> None:
    """Raise Cancelled if the caller says that the picture is no longer wanted."""
    if cancel is not None and cancel():
        raise cancelled()


def cancelled() -> Cancelled:
    """What a request that is no longer wanted raises."""
    return Cancelled(
        "a request that was cancelled",
        expected="one that is wanted until its picture is there",
        fix="ask again for the picture if you want it",
    )
