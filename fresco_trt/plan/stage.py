"""Stage and Transition: what a plan is made of, each checked when it is made.

The middle of the data path's first step, below the plan that puts them in order
(:mod:`fresco_trt.plan.stages`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.caching import ACTIONS, Action
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.reading import REMAKE, agree, choice, items, number, record, whole
from fresco_trt.plan.refinement import DEFAULT_WINDOW, TokenRefinement, check_window

Lift = Literal["nearest", "bilinear", "haar"]
Noise = Literal["field", "parent", "fresh", "rewind"]
Positions = Literal["fine", "coarse", "aligned"]
References = Literal["coarse", "fine"]
Solver = Literal["euler", "multistep", "dpmpp_2m", "unipc"]

LIFTS: tuple[Lift, ...] = get_args(Lift)
NOISES: tuple[Noise, ...] = get_args(Noise)
POSITIONS: tuple[Positions, ...] = get_args(Positions)
REFERENCES: tuple[References, ...] = get_args(References)
SOLVERS: tuple[Solver, ...] = get_args(Solver)

MAX_AMPLIFIER = 4.0
"""At half the side, a text token's weight is then 16 times its own."""

STAGE_KEYS = (
    "grid",
    "tokens",
    "refined",
    "steps",
    "sigma_start",
    "sigma_end",
    "actions",
    "sigmas",
)
STAGE_EXTRAS = ("text_tokens",)
"""Keys that only a stage with something of its own to say has."""
_TRANSITION_KEYS = ("sigma", "restart", "lift", "noise", "refinements", "window")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Steps on one grid.

    ``sigmas`` has one value more than there are steps; step i goes from ``sigmas[i]`` to
    ``sigmas[i+1]``. ``actions`` says for each step whether the whole network runs ("full") or only
    what follows the cached feature ("bypass"). ``text_tokens`` is how many tokens of the prompt's
    text the stage takes at most; None for all that the prompt is encoded to. Raises InvalidPlan
    unless the sigmas fall strictly within [0, 1], the first action is "full" (the cache of a new
    grid is empty), and there is a token of text.
    """

    grid: Grid
    sigmas: tuple[float, ...]
    actions: tuple[Action, ...]
    text_tokens: int | None = None

    def __post_init__(self) -> None:
        sigmas = self.sigmas
        if len(sigmas) < 2 or not (sigmas[0] <= 1.0 and sigmas[-1] >= 0.0):
            raise _invalid(f"a stage with sigmas {sigmas}", "two or more within [0, 1]")
        if not all(later < earlier for earlier, later in pairwise(sigmas)):
            raise _invalid(f"a stage with sigmas {sigmas}", "each smaller than the one before")
        if len(self.actions) != self.steps:
            raise _invalid(f"{len(self.actions)} actions", f"{self.steps}, one a step")
        unknown = [action for action in self.actions if action not in ACTIONS]
        if unknown:
            raise _invalid(f"the action {unknown[0]!r}", f"one of {', '.join(ACTIONS)}")
        if self.actions[0] != "full":
            raise _invalid("a stage whose first step is a bypass", "a full step first")
        if self.text_tokens is not None and self.text_tokens < 1:
            raise _invalid(f"a stage with {self.text_tokens} text tokens", "one or more")

    @property
    def steps(self) -> int:
        """Steps taken on this grid."""
        return len(self.sigmas) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """How one stage hands over to the next.

    The former stops at ``sigma``, the next starts at ``restart >= sigma``. ``lift`` takes the clean
    estimate to the finer grid. ``noise`` is where the re-noising reads from: the seed's own field,
    the parent's noise estimate completed with the field's detail, fresh draws, or ("rewind") the
    orthonormal expansion of the noisy latents themselves. Without ``refinements`` every token that
    is still coarse is expanded; with them the next stage runs on a mixed grid, and each in turn
    chooses among what the ones before left coarse. ``window`` is how many last steps of the stage
    before are recorded for the rules. Raises InvalidPlan.
    """

    sigma: float
    restart: float
    lift: Lift
    noise: Noise
    refinements: tuple[TokenRefinement, ...] = ()
    window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        if not (0.0 <= self.sigma <= self.restart <= 1.0 and self.restart > 0.0):
            expected = "0 <= sigma <= restart <= 1, and a restart above 0"
            raise _invalid(f"a transition at {self.sigma} restarting at {self.restart}", expected)
        for value, options in ((self.lift, LIFTS), (self.noise, NOISES)):
            if value not in options:
                raise _invalid(f"a transition by {value!r}", f"one of {', '.join(options)}")
        check_window(self.window, [refinement.rule for refinement in self.refinements])

    @property
    def is_partial(self) -> bool:
        """Whether only some tokens are expanded."""
        return bool(self.refinements)

    @property
    def count(self) -> int | None:
        """Coarse tokens expanded here; None where that is all of them."""
        return sum(each.count for each in self.refinements) if self.refinements else None

    def to_json(self) -> dict[str, object]:
        """``{sigma, restart, lift, noise, refinements, window}``."""
        return {
            **{key: getattr(self, key) for key in _TRANSITION_KEYS},
            "refinements": [refinement.to_json() for refinement in self.refinements],
        }

    @classmethod
    def from_json(cls, value: object) -> Transition:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _TRANSITION_KEYS, "transition")
        refinements = items(found["refinements"], "transition refinements")
        return cls(
            sigma=number(found["sigma"], "transition sigma"),
            restart=number(found["restart"], "transition restart"),
            lift=choice(found["lift"], LIFTS, "transition lift"),
            noise=choice(found["noise"], NOISES, "transition noise"),
            refinements=tuple(TokenRefinement.from_json(each) for each in refinements),
            window=whole(found["window"], "transition window"),
        )


def continues(solver: Solver, stage: Stage) -> bool:
    """Whether a step of the stage is of second order: one that two full steps in a row lead to.

    Of all but "multistep" the step to sigma 0 is not (see :mod:`fresco_trt.run.solver`).
    """
    if solver == "euler":
        return False
    pairs = zip(pairwise(stage.actions), stage.sigmas[2:], strict=True)
    return any(pair == ("full", "full") and (end or solver == "multistep") for pair, end in pairs)


def stage_to_json(stage: Stage, tokens: int, refined: int) -> dict[str, object]:
    """A stage as JSON values, with the numbers that follow from the plan around it.

    ``text_tokens`` is there only where the stage's text is cut: a plan that cuts none is written
    as it was before stages could.
    """
    cut = {} if stage.text_tokens is None else {"text_tokens": stage.text_tokens}
    return {
        "grid": stage.grid.to_json(),
        "tokens": tokens,
        "refined": refined,
        "steps": stage.steps,
        "sigma_start": stage.sigmas[0],
        "sigma_end": stage.sigmas[-1],
        "actions": list(stage.actions),
        "sigmas": list(stage.sigmas),
        **cut,
    }


def stage_from_json(value: object) -> Stage:
    """Inverse of :func:`stage_to_json`, but for ``tokens`` and ``refined``. Raises InvalidPlan."""
    found = record(value, STAGE_KEYS, "stage", STAGE_EXTRAS)
    stage = Stage(
        grid=Grid.from_json(found["grid"]),
        sigmas=tuple(number(each, "stage sigma") for each in items(found["sigmas"], "sigmas")),
        actions=tuple(
            choice(each, ACTIONS, "stage action") for each in items(found["actions"], "actions")
        ),
        text_tokens=whole(found["text_tokens"], "stage text_tokens")
        if "text_tokens" in found
        else None,
    )
    agree(whole(found["steps"], "stage steps"), stage.steps, "stage steps")
    agree(number(found["sigma_start"], "sigma_start"), stage.sigmas[0], "sigma_start")
    agree(number(found["sigma_end"], "sigma_end"), stage.sigmas[-1], "sigma_end")
    return stage


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
