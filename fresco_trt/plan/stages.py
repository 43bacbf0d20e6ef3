"""Stage, Transition and StagePlan: the one description of a run that everything else reads.

The middle of the data path's first step: made from a preset (:mod:`fresco_trt.plan.presets`),
lowered stage by stage, stored in the bundle, and walked by the sampler. All three are frozen and
check their invariants when made, so whoever holds one need not check again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.grid import Grid, is_doubling, is_refinement
from fresco_trt.plan.promotion import DEFAULT_WINDOW, check_window
from fresco_trt.plan.promotion import SELECTIONS as SELECTIONS
from fresco_trt.plan.promotion import Promotion as Promotion
from fresco_trt.plan.promotion import Selection as Selection
from fresco_trt.plan.reading import (
    REMAKE,
    agree,
    choice,
    items,
    number,
    record,
    text,
    whole,
)
from fresco_trt.plan.schedule import rewind_sigma

Action = Literal["full", "bypass"]
Lift = Literal["nearest", "bilinear", "haar"]
Noise = Literal["field", "parent", "fresh", "rewind"]
Positions = Literal["fine", "coarse", "aligned"]
Solver = Literal["euler", "multistep"]

ACTIONS: tuple[Action, ...] = get_args(Action)
LIFTS: tuple[Lift, ...] = get_args(Lift)
NOISES: tuple[Noise, ...] = get_args(Noise)
POSITIONS: tuple[Positions, ...] = get_args(Positions)
SOLVERS: tuple[Solver, ...] = get_args(Solver)

SIGMA_TOLERANCE = 1e-6
"""Sigmas this close are one sigma: they were computed along two routes in double precision."""

_STAGE_KEYS = (
    "grid",
    "tokens",
    "promoted",
    "steps",
    "sigma_start",
    "sigma_end",
    "actions",
    "sigmas",
)
_TRANSITION_KEYS = ("sigma", "restart", "lift", "noise", "promotions", "window")
_PLAN_KEYS = ("model", "size", "preset", "solver", "positions", "nfe", "stages", "transitions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Steps on one grid.

    ``sigmas`` has one value more than there are steps; step i goes from ``sigmas[i]`` to
    ``sigmas[i+1]``. ``actions`` says for each step whether the whole network runs ("full") or only
    what follows the cached feature ("bypass"). Raises InvalidPlan unless the sigmas fall strictly
    within [0, 1] and the first action is "full": the cache of a new grid is empty.
    """

    grid: Grid
    sigmas: tuple[float, ...]
    actions: tuple[Action, ...]

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
    orthonormal expansion of the noisy latents themselves. Without ``promotions`` every token that
    is still coarse is expanded; with them the next stage runs on a mixed grid, and each in turn
    chooses among what the ones before left coarse. ``window`` is how many last steps of the stage
    before are recorded for the rules. Raises InvalidPlan.
    """

    sigma: float
    restart: float
    lift: Lift
    noise: Noise
    promotions: tuple[Promotion, ...] = ()
    window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma <= self.restart <= 1.0:
            expected = "0 < sigma <= restart <= 1"
            raise _invalid(f"a transition at {self.sigma} restarting at {self.restart}", expected)
        for value, options in ((self.lift, LIFTS), (self.noise, NOISES)):
            if value not in options:
                raise _invalid(f"a transition by {value!r}", f"one of {', '.join(options)}")
        check_window(self.window, [promotion.rule for promotion in self.promotions])

    @property
    def is_partial(self) -> bool:
        """Whether only some tokens are expanded."""
        return bool(self.promotions)

    @property
    def count(self) -> int | None:
        """Coarse tokens expanded here; None where that is all of them."""
        return sum(each.count for each in self.promotions) if self.promotions else None

    def to_json(self) -> dict[str, object]:
        """``{sigma, restart, lift, noise, promotions, window}``."""
        return {
            **{key: getattr(self, key) for key in _TRANSITION_KEYS},
            "promotions": [promotion.to_json() for promotion in self.promotions],
        }

    @classmethod
    def from_json(cls, value: object) -> Transition:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, _TRANSITION_KEYS, "transition")
        promotions = items(found["promotions"], "transition promotions")
        return cls(
            sigma=number(found["sigma"], "transition sigma"),
            restart=number(found["restart"], "transition restart"),
            lift=choice(found["lift"], LIFTS, "transition lift"),
            noise=choice(found["noise"], NOISES, "transition noise"),
            promotions=tuple(Promotion.from_json(each) for each in promotions),
            window=whole(found["window"], "transition window"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A whole run: stages from coarse to full resolution and the transitions between them.

    ``size`` is (width, height) in picture pixels; ``preset`` names where the numbers come from, or
    is None. ``solver`` takes the steps; ``positions`` are the units that a mixed grid is numbered
    in, or "aligned": every query's own. Raises InvalidPlan unless: there is one transition between
    each two stages; the first starts at or below 1 and the last, at scale 1 and in the size's
    proportions, ends at 0; no grid is coarser than the one before, and its sides follow its scale;
    neighbours meet at the transition's sigmas; a rewind from s to a grid r times finer restarts at
    r*s/(1+(r-1)*s); a mixed grid doubles the whole one before it, stays until every token is
    expanded, and is not the last; and the promotions leave a token coarse and look back over no
    more steps than there are.
    """

    model: str
    size: tuple[int, int]
    stages: tuple[Stage, ...]
    transitions: tuple[Transition, ...]
    preset: str | None = None
    solver: Solver = "euler"
    positions: Positions = "fine"

    def __post_init__(self) -> None:
        _check_ends(self)
        _check_choices(self)
        for index in range(len(self.transitions)):
            _check_meeting(self, index)
            _check_grids(self, index)
            _check_rewind(self, index)
            _check_promotions(self, index)

    @property
    def nfe(self) -> int:
        """Sampling steps in all, bypass steps included, as the papers' tables count them."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Image tokens of each stage: its grid's, less three for each four not yet expanded."""
        counts = [self.stages[0].grid.tokens]
        for stage, transition in zip(self.stages[1:], self.transitions, strict=True):
            mixed = None if transition.count is None else counts[-1] + 3 * transition.count
            counts.append(stage.grid.tokens if mixed is None else mixed)
        return tuple(counts)

    @property
    def promoted(self) -> tuple[int, ...]:
        """Coarse tokens already expanded in each stage: 0 on a whole grid."""
        counts = [0]
        for transition in self.transitions:
            counts.append(0 if transition.count is None else counts[-1] + transition.count)
        return tuple(counts)

    @property
    def aligned(self) -> tuple[int, ...]:
        """``promoted`` of the stages whose attention is phase-aligned, 0 for the others."""
        return self.promoted if self.positions == "aligned" else (0,) * len(self.stages)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values; derived numbers are written too, for whoever reads by eye."""
        rows = zip(self.stages, self.tokens, self.promoted, strict=True)
        return {
            "model": self.model,
            "size": list(self.size),
            "preset": self.preset,
            "solver": self.solver,
            "positions": self.positions,
            "nfe": self.nfe,
            "stages": [_stage_to_json(*row) for row in rows],
            "transitions": [transition.to_json() for transition in self.transitions],
        }

    @classmethod
    def from_json(cls, value: object) -> StagePlan:
        """Exact inverse of :meth:`to_json`.

        Raises InvalidPlan for a missing or unknown key, a wrong type, a broken invariant, or a
        derived number that does not follow from the others.
        """
        found = record(value, _PLAN_KEYS, "plan")
        size = [whole(side, "plan size") for side in items(found["size"], "plan size")]
        if len(size) != 2:
            raise _invalid(f"a plan size of {len(size)} numbers", "[width, height]")
        stages = items(found["stages"], "plan stages")
        preset = found["preset"]
        plan = cls(
            model=text(found["model"], "plan model"),
            size=(size[0], size[1]),
            stages=tuple(_stage_from_json(stage) for stage in stages),
            transitions=tuple(
                Transition.from_json(each) for each in items(found["transitions"], "transitions")
            ),
            preset=None if preset is None else text(preset, "plan preset"),
            solver=choice(found["solver"], SOLVERS, "plan solver"),
            positions=choice(found["positions"], POSITIONS, "plan positions"),
        )
        agree(whole(found["nfe"], "plan nfe"), plan.nfe, "plan nfe")
        for stage, tokens, promoted in zip(stages, plan.tokens, plan.promoted, strict=True):
            stored = record(stage, _STAGE_KEYS, "stage")
            agree(whole(stored["tokens"], "stage tokens"), tokens, "stage tokens")
            agree(whole(stored["promoted"], "stage promoted"), promoted, "stage promoted")
        return plan

    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON: equal plans and only those have equal digests."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _stage_to_json(stage: Stage, tokens: int, promoted: int) -> dict[str, object]:
    return {
        "grid": stage.grid.to_json(),
        "tokens": tokens,
        "promoted": promoted,
        "steps": stage.steps,
        "sigma_start": stage.sigmas[0],
        "sigma_end": stage.sigmas[-1],
        "actions": list(stage.actions),
        "sigmas": list(stage.sigmas),
    }


def _stage_from_json(value: object) -> Stage:
    found = record(value, _STAGE_KEYS, "stage")
    stage = Stage(
        grid=Grid.from_json(found["grid"]),
        sigmas=tuple(number(each, "stage sigma") for each in items(found["sigmas"], "sigmas")),
        actions=tuple(
            choice(each, ACTIONS, "stage action") for each in items(found["actions"], "actions")
        ),
    )
    agree(whole(found["steps"], "stage steps"), stage.steps, "stage steps")
    agree(number(found["sigma_start"], "sigma_start"), stage.sigmas[0], "sigma_start")
    agree(number(found["sigma_end"], "sigma_end"), stage.sigmas[-1], "sigma_end")
    return stage


def _check_ends(plan: StagePlan) -> None:
    if not plan.model:
        raise _invalid("a plan for no model", "a model name")
    if len(plan.transitions) != len(plan.stages) - 1:
        given = f"{len(plan.stages)} stages with {len(plan.transitions)} transitions"
        raise _invalid(given, "at least one stage, and one transition between each two")
    last = plan.stages[-1]
    if last.grid.scale != 1.0:
        raise _invalid(f"a last stage at scale {last.grid.scale}", "full resolution, scale 1")
    if last.sigmas[-1] != 0.0:
        raise _invalid(f"a plan that ends at sigma {last.sigmas[-1]}", "0")
    width, height = plan.size
    if (
        min(plan.size) < 1
        or width % last.grid.width
        or (width * last.grid.height != height * last.grid.width)
    ):
        expected = f"a whole multiple of the last grid, {last.grid}"
        raise _invalid(f"a picture of {width}x{height} pixels", expected)


def _check_choices(plan: StagePlan) -> None:
    for value, options in ((plan.solver, SOLVERS), (plan.positions, POSITIONS)):
        if value not in options:
            raise _invalid(f"a plan by {value!r}", f"one of {', '.join(options)}")
    if plan.positions != "fine" and not any(each.is_partial for each in plan.transitions):
        # Nothing would read it: on a whole grid both say the same.
        given = f"positions {plan.positions!r} in a plan without a mixed stage"
        raise _invalid(given, "positions 'fine'")


def _check_meeting(plan: StagePlan, index: int) -> None:
    transition = plan.transitions[index]
    before, after = plan.stages[index], plan.stages[index + 1]
    if abs(before.sigmas[-1] - transition.sigma) > SIGMA_TOLERANCE:
        given = f"stage {index + 1} ends at sigma {before.sigmas[-1]}"
        raise _invalid(given, f"the transition's, {transition.sigma}")
    if abs(after.sigmas[0] - transition.restart) > SIGMA_TOLERANCE:
        given = f"stage {index + 2} starts at sigma {after.sigmas[0]}"
        raise _invalid(given, f"the transition's restart, {transition.restart}")


def _check_grids(plan: StagePlan, index: int) -> None:
    before, after = plan.stages[index].grid, plan.stages[index + 1].grid
    if not is_refinement(before, after):
        given = f"stage {index + 2} on {after} at scale {after.scale} after {before}"
        raise _invalid(given, "the same grid, or all of height, width and scale larger alike")


def _check_rewind(plan: StagePlan, index: int) -> None:
    transition = plan.transitions[index]
    if transition.noise != "rewind":
        return
    # Out of a mixed stage the grid stays, but every token that is expanded goes to twice its own.
    grids = plan.stages[index].grid, plan.stages[index + 1].grid
    ratio = 2.0 if plan.promoted[index] else grids[1].scale / grids[0].scale
    end = rewind_sigma(transition.sigma, ratio)
    if abs(transition.restart - end) > SIGMA_TOLERANCE:
        given = f"a rewind from {transition.sigma} to {transition.restart}"
        raise _invalid(given, f"{end}, the level the expansion ends at")


def _check_promotions(plan: StagePlan, index: int) -> None:
    before, after = plan.stages[index], plan.stages[index + 1]
    transition, promoted = plan.transitions[index], plan.promoted[index]
    if promoted and after.grid != before.grid:
        given = f"stage {index + 2} on {after.grid} after a mixed stage on {before.grid}"
        raise _invalid(given, "the same grid")
    if not transition.is_partial:
        return
    if not promoted and not is_doubling(before.grid, after.grid):
        raise _invalid(f"a mixed stage on {after.grid} after {before.grid}", "twice the sides")
    _check_count(plan, index)
    if transition.window > before.steps:
        given = f"a window of {transition.window} steps after a stage of {before.steps}"
        raise _invalid(given, f"at most {before.steps}")
    if index == len(plan.transitions) - 1:
        raise _invalid("a last stage on a mixed grid", "one more transition, to the full grid")


def _check_count(plan: StagePlan, index: int) -> None:
    count, promoted = plan.transitions[index].count or 0, plan.promoted[index]
    coarse = (plan.tokens[index] - 4 * promoted) if promoted else plan.stages[index].grid.tokens
    if coarse < 2:
        expected = "no promotions: the last one is expanded with the rest"
        raise _invalid(f"{count} tokens promoted of {coarse} still coarse", expected)
    if count >= coarse:
        given = f"{count} tokens promoted of {coarse} still coarse"
        raise _invalid(given, f"from 1 to {coarse - 1}, or no promotions for all")


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
