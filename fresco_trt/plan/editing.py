"""EditPlan: how the tokens that an edit touches are found, and what becomes of the others.

A part of the plan, for models that edit. The first stage is a whole edit drawn small, the draft;
where it differs from the source is what the edit touches (SpecEdit, arXiv 2605.02152). Only those
tokens are drawn at full resolution, in one of several mixed stages of fixed token counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import REMAKE, choice, flag, number, record, whole
from fresco_trt.plan.refinement import EDITED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.plan.stage import Stage, Transition

Discrepancy = Literal["features", "latent", "cosine"]

DISCREPANCIES: tuple[Discrepancy, ...] = get_args(Discrepancy)

SELECTIVE_PRESET = "specedit"
"""The preset, of models that edit, whose stages refine only what an edit touches."""

MAX_REACH = 16
"""Most tokens of dilation, and most latent pixels of a blend."""

_KEYS = ("discrepancy", "threshold", "dilation", "coverage", "keep_source", "blend", "recheck")


@dataclass(frozen=True, kw_only=True, slots=True)
class EditPlan:
    """What is compared between draft and source, and what follows from it.

    ``discrepancy`` is of VAE decoder features (SpotEdit's rule, arXiv 2512.22323), of latents, or
    one minus the cosine of tokens (RegionE's, arXiv 2510.25590). A token of the draft's grid is
    edited from ``threshold`` on, and so are those within ``dilation`` tokens of it. Of the others
    every ``coverage``-th along each axis is refined with them, to hold the picture together; 0 for
    none. With ``keep_source`` what no edited token covers ends as the source's own latents, and
    ``blend`` latent pixels on either side of the seam go from one to the other. After ``recheck``
    steps of a mixed stage, 0 for never, picture and source are compared again: what differs now is
    edited too, in a larger stage where this one has no room. Raises InvalidPlan.
    """

    discrepancy: Discrepancy
    threshold: float
    dilation: int = 1
    coverage: int = 8
    keep_source: bool = True
    blend: int = 2
    recheck: int = 0

    def __post_init__(self) -> None:
        if self.discrepancy not in DISCREPANCIES:
            raise _invalid(f"the discrepancy {self.discrepancy!r}", f"{', '.join(DISCREPANCIES)}")
        if not (isfinite(self.threshold) and self.threshold > 0):
            raise _invalid(f"a threshold of {self.threshold:g}", "a number above 0")
        for name in ("dilation", "blend"):
            if not 0 <= getattr(self, name) <= MAX_REACH:
                raise _invalid(f"a {name} of {getattr(self, name)}", f"from 0 to {MAX_REACH}")
        if self.recheck < 0:
            raise _invalid(f"a recheck after {self.recheck} steps", "0 for none, or 1 and more")
        if self.coverage < 0 or self.coverage == 1:
            raise _invalid(f"a coverage of {self.coverage}", "0, or each how many tokens, from 2")

    def even(self, side: int) -> tuple[int, ...]:
        """Places along an axis of ``side`` tokens that the coverage takes."""
        return tuple(range(self.coverage // 2, side, self.coverage)) if self.coverage else ()

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return {key: getattr(self, key) for key in _KEYS}

    @classmethod
    def from_json(cls, value: object) -> EditPlan:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _KEYS, "edit")
        return cls(
            discrepancy=choice(found["discrepancy"], DISCREPANCIES, "edit discrepancy"),
            threshold=number(found["threshold"], "edit threshold"),
            dilation=whole(found["dilation"], "edit dilation"),
            coverage=whole(found["coverage"], "edit coverage"),
            keep_source=flag(found["keep_source"], "edit keep_source"),
            blend=whole(found["blend"], "edit blend"),
            recheck=whole(found["recheck"], "edit recheck"),
        )


def check_edit(
    edit: EditPlan | None,
    stages: Sequence[Stage],
    transitions: Sequence[Transition],
    refined: Sequence[int],
) -> None:
    """Raise InvalidPlan unless the stages of a plan with an edit are a draft and its alternatives,
    of so many tokens ``refined``; and tokens are refined as edited in such a plan alone.
    """
    rules = [each.rule for transition in transitions for each in transition.refinements]
    if edit is None:
        if EDITED in rules:
            raise _invalid("tokens refined as edited in a plan without an edit", "another rule")
        return
    if len(stages) < 3 or refined[0] or 0 in refined[1:-1]:
        given = f"an edit with tokens refined {refined}"
        raise _invalid(given, "a whole draft, one mixed stage or more, and the whole grid")
    grid = stages[0].grid
    even = len(edit.even(grid.rows)) * len(edit.even(grid.columns))
    if refined[1] <= even:
        given = f"{refined[1]} tokens refined of an edit whose even set has {even}"
        raise _invalid(given, "more: no edit would have room there")
    if edit.recheck >= stages[1].steps:
        given = f"a recheck after {edit.recheck} steps of {stages[1].steps}"
        raise _invalid(given, "fewer, so that a step is left for what it finds")
    if set(rules) != {EDITED}:
        raise _invalid(f"an edit that refines by {', '.join(rules)}", f"only {EDITED!r}")
    if len({stage.sigmas for stage in stages[1:]}) > 1:
        raise _invalid("stages of an edit with other sigmas", "the same: one of them is drawn")
    if len({(each.restart, each.lift, each.noise) for each in transitions}) > 1:
        raise _invalid("stages of an edit entered in other ways", "one restart, lift and noise")
    if transitions[0].noise not in ("field", "parent"):
        given = f"an edit re-noised by {transitions[0].noise!r}"
        raise _invalid(given, "'field' or 'parent': the draft is done, or nearly")


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
