"""From a request to a plan: find the preset, change what was asked for, and lay it over the grids.

Last step of planning, above everything that it puts together: facts, sizes, presets, their changes
(:mod:`fresco_trt.plan.changes`) and the plan's types.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from fresco_trt.errors import (
    IncompatibleOptions,
    PlanError,
    UnknownPreset,
    UnsupportedStages,
    either,
)
from fresco_trt.plan.cache_schedule import as_published, cached, check_read, find_cache
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.changes import changed, check_solver, check_text, with_sparse
from fresco_trt.plan.config import NONE, CacheConfig, PresetConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.presets import DEFAULT_PRESET, Preset
from fresco_trt.plan.refinement import DEFAULT_WINDOW, TokenRefinement
from fresco_trt.plan.schedule import MAX_STEPS, plain_sigmas, stage_sigmas, stretched
from fresco_trt.plan.sizes import Size, stage_grids
from fresco_trt.plan.stages import Action, Stage, StagePlan, Transition

DEFAULT_STAGES = 3


def make_plan(
    facts: ModelFacts,
    *,
    stages: int,
    preset: PresetConfig | str | None = None,
    size: Size | None = None,
    steps: int | None = None,
    cache: CacheConfig | str = NO_CACHE,
) -> StagePlan:
    """The plan of ``stages`` stages for a picture of ``size`` (default: the model's own).

    ``preset`` and ``cache``, objects or their spellings, say where the numbers come from, and which
    steps are skipped and what predicts them.

    One stage is the plain sampler: ``steps`` of it, or as many as the preset says, or the model's
    default. An explicit ``steps`` overrides the preset, which the plan then does not name. With
    more stages the preset decides every step, and ``steps`` is only the length of the baseline that
    the cost is compared with; it is checked here all the same. A plan whose preset is changed names
    none either. ``delta`` replaces the preset's switches, and restarts that it gives as numbers, by
    those of :func:`~fresco_trt.plan.changes.spectral_switches`; the other fields of
    :class:`PresetConfig` replace what they say.

    Raises UnknownPreset, UnsupportedStages, UnsupportedSize, PlanError for a wrong ``steps`` or a
    wrong value in ``preset``, IncompatibleOptions for a ``delta`` that cannot place every switch
    and for a ``threshold``, ``references``, ``solver`` or ``sparse_attention`` that nothing reads,
    and what :func:`fresco_trt.plan.cache_schedule.cached` raises.
    """
    asked = PresetConfig() if preset is None else PresetConfig.of(preset)
    name = asked.name or DEFAULT_PRESET
    chosen = find_preset(facts, name, stages)
    baseline = check_steps(facts.default_steps if steps is None else steps)
    if stages == 1 and (asked.name is None or steps is not None):
        chosen, name = Preset(steps=(baseline,)), ""
    chosen, is_own = changed(facts, chosen, asked, size or facts.default_size)
    cache = CacheConfig.of(cache)
    check_read(cache)
    check_measured(facts, cache)
    if cache.name != NONE:
        chosen = replace(chosen, cache=cache)
    plan = plan_from_preset(facts, chosen, size=size, name=(name if is_own else "") or None)
    if asked.solver is not None:
        check_solver(plan)
    return with_sparse(facts, plan, asked.sparse_attention)


def plan_from_preset(
    facts: ModelFacts, preset: Preset, *, size: Size | None = None, name: str | None = None
) -> StagePlan:
    """The plan of a preset that need not be one of the model's; ``name`` is what the plan records.

    A share of a coarse grid's tokens is rounded to at least one and at most all but one of them.
    Raises UnsupportedSize, PlanError for text tokens that are no choice of the model's, InvalidPlan
    where the grid has too few tokens for its refinements, and what
    :func:`fresco_trt.plan.cache_schedule.cached` does.
    """
    size = facts.default_size if size is None else size
    levels = preset.levels
    if preset.text_tokens:
        check_text(facts, preset.text_tokens, len(levels))
    grids = stage_grids(facts, size, levels[-1] + 1, exact=any(preset.shares))
    # Every stage keeps the shift of the full resolution, as SPEED does: the model then sees the
    # levels it would see at full size, whatever the grid (arXiv 2605.18736, code).
    shifts = preset.shift or (facts.shift_factor(grids[-1].tokens),) * len(levels)
    lists = _sigma_lists(facts, preset, shifts)
    texts = [each if each < facts.text_tokens else None for each in preset.text_tokens]
    rows = zip(levels, lists, texts or (None,) * len(levels), strict=True)
    plan = StagePlan(
        model=facts.name,
        size=size,
        preset=name,
        stages=tuple(_full_stage(grids[level], sigmas, text) for level, sigmas, text in rows),
        transitions=tuple(
            _transition(preset, index, grids[level - 1]) for index, level in enumerate(levels[1:])
        ),
        solver=preset.solver,
        positions=preset.positions,
        edit=preset.edit,
        references=preset.references,
        text_amplifier=preset.text_amplifier,
    )
    return cached(plan, as_published(preset.cache, facts.caches, len(levels)))


def find_preset(facts: ModelFacts, name: str, stages: int) -> Preset:
    """The model's preset ``name`` for ``stages``. Raises UnknownPreset, UnsupportedStages."""
    if name not in facts.presets:
        close = difflib.get_close_matches(name, facts.presets, n=1)
        raise UnknownPreset(
            f"preset {name!r} for {facts.name}",
            expected=either(tuple(facts.presets)),
            fix=f"pass --preset {close[0] if close else DEFAULT_PRESET}",
        )
    schedules = facts.presets[name]
    if stages not in schedules:
        raise _unsupported_stages(facts, name, stages)
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


def check_measured(facts: ModelFacts, cache: CacheConfig) -> None:
    """Raise IncompatibleOptions for a cache by a basis, of a model that none is measured of."""
    if facts.calibrated or cache.name == NONE or not find_cache(cache.name).needs_basis:
        return
    raise IncompatibleOptions(
        f"the cache {cache.name} for {facts.name}",
        expected="a cache without a basis: none can be measured of this model yet",
        fix="pass another, like --cache hicache",
    )


def _full_stage(grid: Grid, sigmas: tuple[float, ...], text_tokens: int | None) -> Stage:
    actions: list[Action] = ["full"] * (len(sigmas) - 1)
    return Stage(grid=grid, sigmas=sigmas, actions=tuple(actions), text_tokens=text_tokens)


def _sigma_lists(
    facts: ModelFacts, preset: Preset, shifts: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    terminal = 0.0 if facts.shift is None else facts.shift.terminal
    if len(preset.steps) == 1:
        fixed = facts.shift is None and preset.shift is None
        return (plain_sigmas(preset.steps[0], shifts[0], fixed=fixed, terminal=terminal),)
    starts, ends = (1.0, *preset.restarts), (*preset.switch, 0.0)
    lists = (
        stage_sigmas(start, end, steps, h)
        for start, end, steps, h in zip(starts, ends, preset.steps, shifts, strict=True)
    )
    # The last stage, or of an edit the draft and each that may follow it.
    return tuple(each if each[-1] else stretched(each, terminal) for each in lists)


def _transition(preset: Preset, index: int, coarse: Grid) -> Transition:
    shares, frames = preset.shares[index], coarse.frames if preset.tube else 1
    return Transition(
        sigma=preset.switch[index],
        restart=preset.restarts[index],
        lift=preset.lift,
        noise=preset.noise,
        refinements=tuple(
            TokenRefinement(
                rule=rule, count=frames * _part(share, coarse.tokens // frames), tube=preset.tube
            )
            for rule, share in shares
        ),
        window=preset.window if shares and preset.edit is None else DEFAULT_WINDOW,
    )


def _part(share: float, tokens: int) -> int:
    return max(min(round(share * tokens), tokens - 1), 1)


def _unsupported_stages(facts: ModelFacts, name: str, stages: int) -> UnsupportedStages:
    schedules = facts.presets[name]
    most = max(schedules)
    why = ""
    if stages > most and not any(schedules[most].shares):
        why = (
            f" (below 1/{2 ** (most - 1)} of each side a step costs hardly less: most of its work"
            " is the text tokens, which no grid reduces)"
        )
    return UnsupportedStages(
        f"{stages} stages for preset {name!r} of {facts.name}",
        expected=f"{either(tuple(str(count) for count in schedules))}{why}",
        fix=f"pass --stages {most if stages > most else min(schedules)}",
    )
