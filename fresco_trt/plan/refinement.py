"""Token refinement: which tokens of a coarse grid are expanded early, and which rule finds them.

Between the grids and the stages. How many is fixed here, ahead of time, so that every engine's
shape is static; which ones is data, found by ``run/selection.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import REMAKE, choice, flag, record, whole

Selection = Literal[
    "converged", "converged-latent", "changing", "changing-latent", "edge", "even", "random"
]

SELECTIONS: tuple[Selection, ...] = get_args(Selection)

Rule = Selection | Literal["edited"]
"""What finds tokens: a rule that looks at a stage's last steps, or what an edit touches."""

EDITED: Literal["edited"] = "edited"

RULES: tuple[Rule, ...] = (*SELECTIONS, EDITED)

VARIANCE_RULES: tuple[Selection, ...] = SELECTIONS[:4]
"""The rules that read a variance over steps, and so need two of them."""

DEFAULT_WINDOW = 3
"""Steps that the rules look back over, unless a transition says otherwise."""

_KEYS = ("rule", "count")
_EXTRAS = ("tube",)
"""Keys of refinements of clips alone: others are written as they were before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRefinement:
    """``count`` coarse tokens, found by ``rule``, are each expanded to four fine ones.

    "converged" takes those whose clean estimate varied least over the window (Fresco, arXiv
    2601.07462), "changing" most (AViTS); with "-latent" the noisy latents are looked at, as
    published. "edge" takes the steepest clean estimate (RALU, arXiv 2507.08422), "even" spreads
    over both axes, "random" draws from the seed. "edited" takes what an edit touches, as the plan's
    :class:`~fresco_trt.plan.editing.EditPlan` finds it.

    Of a clip, tokens are found in each latent frame as the rule says, or with ``tube`` at the same
    places in all of them: those whose mean over the frames the rule takes. Raises InvalidPlan for
    an unknown rule, a count below 1 and a tube of what an edit touches.
    """

    rule: Rule
    count: int
    tube: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise _invalid(f"the rule {self.rule!r}", f"one of {', '.join(RULES)}")
        if self.count < 1:
            raise _invalid(f"a refinement of {self.count} tokens", "1 or more")
        if self.tube and self.rule == EDITED:
            raise _invalid("a tube of what an edit touches", "a rule that looks back, or no tube")

    def to_json(self) -> dict[str, object]:
        """``{rule, count}``, and ``tube`` where it is one."""
        return {"rule": self.rule, "count": self.count, **({"tube": True} if self.tube else {})}

    @classmethod
    def from_json(cls, value: object) -> TokenRefinement:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _KEYS, "refinement", _EXTRAS)
        return cls(
            rule=choice(found["rule"], RULES, "refinement rule"),
            count=whole(found["count"], "refinement count"),
            tube="tube" in found and flag(found["tube"], "refinement tube"),
        )


def grid_levels(partial: Sequence[bool]) -> tuple[int, ...]:
    """Which grid each stage is on, the coarsest being 0; ``partial`` says which switches are.

    A switch doubles the grid, save out of a mixed stage: that is on its finer grid already.
    """
    levels = [0]
    for mixed in (False, *partial[:-1])[: len(partial)]:
        levels.append(levels[-1] + (not mixed))
    return tuple(levels)


def check_window(window: int, rules: Sequence[Rule], *, fix: str = REMAKE) -> None:
    """Refuse a window too short for ``rules``, or one that nothing would read.

    Raises InvalidPlan, which says ``fix``.
    """
    if not set(rules) - {EDITED} and window != DEFAULT_WINDOW:
        given = f"a window of {window} where no rule looks back"
        raise _invalid(given, f"{DEFAULT_WINDOW}, which says nothing", fix)
    least = 2 if set(rules) & set(VARIANCE_RULES) else 1
    if window < least:
        raise _invalid(f"a window of {window} for {', '.join(rules)}", f"{least} or more", fix)


def check_tubes(refinements: Sequence[TokenRefinement], frames: int) -> None:
    """Raise InvalidPlan unless all of a plan's refinements are tubes or none is, and those that are
    have as many tokens in each of several latent ``frames``: every place then is whole or refined.
    """
    for each in refinements:
        if each.tube and (frames == 1 or each.count % frames):
            given = f"tubes of {each.count} tokens in {frames} latent frames"
            raise _invalid(given, "as many in each of several frames")
    if len({each.tube for each in refinements}) > 1:
        raise _invalid("some refinements that are tubes", "all of a plan's, or none")


def _invalid(given: str, expected: str, fix: str = REMAKE) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=fix)
