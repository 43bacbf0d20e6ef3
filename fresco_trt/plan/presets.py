"""Presets: how many steps each stage takes, where it hands over, and what is refined there.

Between the plan's types and the models' facts, which name presets; :mod:`fresco_trt.plan.making`
turns one into a plan. A preset knows no size: the grids come with it, and with them the counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.editing import EditPlan
from fresco_trt.plan.refinement import DEFAULT_WINDOW, RULES, Rule, check_window
from fresco_trt.plan.refinement import grid_levels as levels_of
from fresco_trt.plan.schedule import rewind_sigma
from fresco_trt.plan.stages import POSITIONS, SOLVERS, Lift, Noise, Positions, References, Solver

DEFAULT_PRESET = "balanced"

Share = tuple[Rule, float]
"""A rule, and the share of the coarse grid's tokens that it refines."""

_FIX = "correct the preset"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One operating point for one number of stages.

    ``steps`` per stage, coarsest first; ``switch`` the sigma at the end of each stage but the last;
    ``restart`` where the next one begins: "rewind" (2s/(1+s)), "same" (s), or one sigma a switch.
    ``refine`` is empty where every switch expands every token, else it has for each switch the
    shares of the coarse grid's tokens that its rules refine, or () for all that is still coarse; a
    stage after a refinement is mixed, and the one after that stays on its grid. With ``tube`` a
    clip's tokens are refined at the same places in all latent frames. ``shift`` is the
    shift factor of each stage, None for the model's own at full resolution. ``lift``, ``noise`` and
    ``window`` as in :class:`~fresco_trt.plan.stages.Transition`; ``solver``, ``positions`` and
    ``references`` as in :class:`~fresco_trt.plan.stages.StagePlan`; ``cache`` says which steps are
    skipped.
    ``text_amplifier`` as in :class:`~fresco_trt.plan.stages.StagePlan`.
    ``text_tokens`` of each stage, coarsest first, or () where each takes the whole text. With
    ``edit`` the stages after the first are alternatives (see :mod:`fresco_trt.plan.editing`): they
    are left at the switch 0, and the first one at any.

    Raises InvalidPlan when the lengths disagree, a stage has no step, the switches do not fall
    within (0, 1), a restart lies below its switch, a rewind comes with a lift that it would not
    use, the shares of one coarse grid reach 1, the last stage would be mixed, a shift factor is not
    positive, or a window, positions or a tube come with nothing that reads them.
    """

    steps: tuple[int, ...]
    switch: tuple[float, ...] = ()
    restart: Literal["rewind", "same"] | tuple[float, ...] = "rewind"
    lift: Lift = "bilinear"
    noise: Noise = "field"
    refine: tuple[tuple[Share, ...], ...] = ()
    tube: bool = False
    shift: tuple[float, ...] | None = None
    window: int = DEFAULT_WINDOW
    solver: Solver = "euler"
    positions: Positions = "fine"
    cache: CacheConfig = NO_CACHE
    text_tokens: tuple[int, ...] = ()
    edit: EditPlan | None = None
    references: References = "coarse"
    text_amplifier: float = 0.0

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise _invalid(f"a preset of steps {self.steps}", "at least one step in each stage")
        self._check_switches()
        self._check_shift()
        self._check_refinements()
        if self.noise == "rewind" and self.lift != "haar":
            # The expansion lifts the noisy latents by Haar; another lift would be ignored.
            raise _invalid(f"noise 'rewind' with lift {self.lift!r}", "lift 'haar'")
        if self.solver not in SOLVERS:
            raise _invalid(f"the solver {self.solver!r}", f"one of {', '.join(SOLVERS)}")
        if self.text_tokens and len(self.text_tokens) != len(self.steps):
            given = f"text tokens of {len(self.text_tokens)} stages"
            raise _invalid(given, f"none, or {len(self.steps)} numbers, one a stage")

    @property
    def restarts(self) -> tuple[float, ...]:
        """The sigma at which each stage but the first begins."""
        if self.restart == "rewind":
            return tuple(rewind_sigma(sigma) for sigma in self.switch)
        if self.restart == "same":
            return self.switch
        return self.restart

    @property
    def shares(self) -> tuple[tuple[Share, ...], ...]:
        """``refine`` spelt out: one entry a switch, () where it expands everything."""
        return self.refine or ((),) * len(self.switch)

    @property
    def levels(self) -> tuple[int, ...]:
        """Which grid each stage is on, the coarsest being 0."""
        return levels_of([bool(shares) for shares in self.shares])

    def _check_switches(self) -> None:
        count = len(self.steps) - 1
        if len(self.switch) != count:
            raise _invalid(f"{len(self.switch)} switches", f"{count}, one fewer than stages")
        if self.edit is None and not is_falling((1.0, *self.switch, 0.0)):
            raise _invalid(f"switches at {self.switch}", "sigmas falling within (0, 1)")
        if self.edit is not None and any((min(self.switch, default=1.0) < 0, *self.switch[1:])):
            raise _invalid(f"switches of an edit at {self.switch}", "0 after each alternative")
        if len(self.restarts) != count:
            raise _invalid(f"{len(self.restarts)} restarts", f"{count}, one a switch")
        pairs = zip(self.switch, self.restarts, strict=True)
        if not all(sigma <= restart <= 1.0 for sigma, restart in pairs):
            raise _invalid(f"restarts at {self.restarts}", "each from its switch up to 1")

    def _check_shift(self) -> None:
        if self.shift is None:
            return
        if len(self.shift) != len(self.steps):
            raise _invalid(f"{len(self.shift)} shift factors", f"{len(self.steps)}, one a stage")
        if not all(0.0 < h < math.inf for h in self.shift):
            raise _invalid(f"shift factors {self.shift}", "positive and finite numbers")

    def _check_refinements(self) -> None:
        if len(self.shares) != len(self.switch):
            expected = f"none, or {len(self.switch)}, one a switch"
            raise _invalid(f"refinements at {len(self.shares)} switches", expected)
        flat = [share for shares in self.shares for share in shares]
        unknown = [rule for rule, _ in flat if rule not in RULES]
        if unknown:
            raise _invalid(f"the rule {unknown[0]!r}", f"one of {', '.join(RULES)}")
        if self.shares and self.shares[-1]:
            raise _invalid("a last stage on a mixed grid", "() for the last switch: all the rest")
        self._check_shares()
        check_window(self.window, [rule for rule, _ in flat], fix=_FIX)
        allowed = POSITIONS if flat else POSITIONS[:1]
        if self.positions not in allowed:
            given = f"positions {self.positions!r} with {len(flat)} refinements"
            raise _invalid(given, " or ".join(repr(each) for each in allowed))
        if self.tube and not flat:
            raise _invalid("a tube without refinements", "shares to refine, or no tube")

    def _check_shares(self) -> None:
        refined = 0.0
        for shares in self.shares:
            # A switch that expands everything starts a new coarse grid, or ends the last one.
            refined = refined + sum(share for _, share in shares) if shares else 0.0
            if shares and not (all(share > 0.0 for _, share in shares) and refined < 1.0):
                given = f"shares {[share for _, share in shares]}, {refined:g} in all"
                raise _invalid(given, "each above 0 and all of one coarse grid below 1 together")


def is_falling(sigmas: Sequence[float]) -> bool:
    """Whether each is smaller than the one before."""
    return all(later < earlier for earlier, later in pairwise(sigmas))


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=_FIX)
