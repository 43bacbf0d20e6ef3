"""From a request to a plan: presets, and the two functions that turn them into a StagePlan.

Last step of planning. A preset says how many steps each stage takes and at which sigma it hands
over; the grids come from the size and the sigmas from the model's own schedule.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from fresco_trt.errors import InvalidPlan, PlanError, UnknownPreset, UnsupportedStages
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.schedule import plain_sigmas, rewind_sigma, stage_sigmas
from fresco_trt.plan.sizes import Size, stage_grids
from fresco_trt.plan.stages import Action, Lift, Noise, Stage, StagePlan, Transition

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

DEFAULT_PRESET = "balanced"
MAX_STEPS = 1000  # diffusers' training schedule has no more levels than this

_FIX_PRESET = "correct the preset"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One operating point for one number of stages.

    ``steps`` per stage, coarsest first; ``switch`` the sigma at the end of each stage but the last;
    ``restart`` where the next one begins: "rewind" (2s/(1+s)), "same" (s), or one sigma a switch.
    ``lift`` and ``noise`` as in :class:`~fresco_trt.plan.stages.Transition`. Raises InvalidPlan
    when the lengths disagree, a stage has no step, the switches do not fall within (0, 1), a
    restart lies below its switch, or a rewind comes with a lift that it would not use.
    """

    steps: tuple[int, ...]
    switch: tuple[float, ...] = ()
    restart: Literal["rewind", "same"] | tuple[float, ...] = "rewind"
    lift: Lift = "bilinear"
    noise: Noise = "field"

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise _invalid(f"a preset of steps {self.steps}", "at least one step in each stage")
        if len(self.switch) != len(self.steps) - 1:
            raise _invalid(
                f"{len(self.switch)} switches", f"{len(self.steps) - 1}, one fewer than stages"
            )
        if not _is_falling((1.0, *self.switch, 0.0)):
            raise _invalid(f"switches at {self.switch}", "sigmas falling within (0, 1)")
        if len(self.restarts) != len(self.switch):
            raise _invalid(f"{len(self.restarts)} restarts", f"{len(self.switch)}, one a switch")
        pairs = zip(self.switch, self.restarts, strict=True)
        if not all(sigma <= restart <= 1.0 for sigma, restart in pairs):
            raise _invalid(f"restarts at {self.restarts}", "each from its switch up to 1")
        if self.noise == "rewind" and self.lift != "haar":
            # The expansion lifts the noisy latents by Haar; another lift would be ignored.
            raise _invalid(f"noise 'rewind' with lift {self.lift!r}", "lift 'haar'")

    @property
    def restarts(self) -> tuple[float, ...]:
        """The sigma at which each stage but the first begins."""
        if self.restart == "rewind":
            return tuple(rewind_sigma(sigma) for sigma in self.switch)
        if self.restart == "same":
            return self.switch
        return self.restart


def make_plan(
    facts: ModelFacts,
    *,
    stages: int,
    preset: str | None = None,
    size: Size | None = None,
    steps: int | None = None,
) -> StagePlan:
    """The plan of ``stages`` stages for a picture of ``size`` (default: the model's own).

    One stage is the plain sampler: ``steps`` of it, or as many as the preset says, or the model's
    default. An explicit ``steps`` overrides the preset, which the plan then does not name. With
    more stages the preset (default "balanced") decides every step, and ``steps`` is only the
    length of the baseline that the cost is compared with; it is checked here all the same.

    Raises UnknownPreset, UnsupportedStages, UnsupportedSize, and PlanError for a wrong ``steps``.
    """
    recipe = find_preset(facts, preset or DEFAULT_PRESET, stages)
    name = preset or DEFAULT_PRESET
    baseline = check_steps(facts.default_steps if steps is None else steps)
    if stages == 1 and (preset is None or steps is not None):
        return plan_from_preset(facts, Preset(steps=(baseline,)), size=size)
    return plan_from_preset(facts, recipe, size=size, name=name)


def plan_from_preset(
    facts: ModelFacts, preset: Preset, *, size: Size | None = None, name: str | None = None
) -> StagePlan:
    """The plan of a preset that need not be one of the model's; ``name`` is what the plan records.

    Raises UnsupportedSize.
    """
    size = facts.default_size if size is None else size
    grids = stage_grids(facts, size, len(preset.steps))
    # Every stage keeps the shift of the full resolution, as SPEED does: the model then sees the
    # levels it would see at full size, whatever the grid (arXiv 2605.18736, code).
    lists = _sigma_lists(preset, facts.shift_factor(grids[-1].tokens))
    return StagePlan(
        model=facts.name,
        size=size,
        preset=name,
        stages=tuple(_full_stage(grid, sigmas) for grid, sigmas in zip(grids, lists, strict=True)),
        transitions=tuple(
            Transition(sigma=sigma, restart=restart, lift=preset.lift, noise=preset.noise)
            for sigma, restart in zip(preset.switch, preset.restarts, strict=True)
        ),
    )


def find_preset(facts: ModelFacts, name: str, stages: int) -> Preset:
    """The model's preset ``name`` for ``stages``. Raises UnknownPreset, UnsupportedStages."""
    if name not in facts.presets:
        close = difflib.get_close_matches(name, facts.presets, n=1)
        raise UnknownPreset(
            f"preset {name!r} for {facts.name}",
            expected=_either(tuple(facts.presets)),
            fix=f"pass --preset {close[0] if close else DEFAULT_PRESET}",
        )
    schedules = facts.presets[name]
    if stages not in schedules:
        raise _unsupported_stages(facts, stages, tuple(schedules))
    return schedules[stages]


def check_steps(steps: int) -> int:
    """``steps``, if it is a number of steps a baseline can have. Raises PlanError."""
    if not 1 <= steps <= MAX_STEPS:
        raise PlanError(
            f"{steps} steps",
            expected=f"from 1 to {MAX_STEPS}",
            fix="pass --steps with such a number",
        )
    return steps


def _full_stage(grid: Grid, sigmas: tuple[float, ...]) -> Stage:
    actions: list[Action] = ["full"] * (len(sigmas) - 1)
    return Stage(grid=grid, sigmas=sigmas, actions=tuple(actions))


def _sigma_lists(preset: Preset, h: float) -> tuple[tuple[float, ...], ...]:
    if len(preset.steps) == 1:
        return (plain_sigmas(preset.steps[0], h),)
    starts, ends = (1.0, *preset.restarts), (*preset.switch, 0.0)
    return tuple(
        stage_sigmas(start, end, steps, h)
        for start, end, steps in zip(starts, ends, preset.steps, strict=True)
    )


def _unsupported_stages(
    facts: ModelFacts, stages: int, known: tuple[int, ...]
) -> UnsupportedStages:
    most = max(known)
    why = ""
    if stages > most:
        why = (
            f" (below 1/{2 ** (most - 1)} of each side a step costs hardly less: most of its work"
            " is the text tokens, which no grid reduces)"
        )
    return UnsupportedStages(
        f"{stages} stages for {facts.name}",
        expected=f"{_either(tuple(str(count) for count in known))}{why}",
        fix=f"pass --stages {most if stages > most else min(known)}",
    )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _is_falling(sigmas: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(sigmas))


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=_FIX_PRESET)
