"""From a request to a plan: find the preset, place its switches, and lay it over the size's grids.

Last step of planning, above everything that it puts together: facts, sizes, presets and the plan's
types.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from fresco_trt.errors import IncompatibleOptions, PlanError, UnknownPreset, UnsupportedStages
from fresco_trt.plan.cache_schedule import as_published, cached, check_read, find_cache
from fresco_trt.plan.caching import NO_CACHE, spelling_of
from fresco_trt.plan.clips import of_a_clip
from fresco_trt.plan.config import NONE, CacheConfig, PresetConfig
from fresco_trt.plan.editing import SELECTIVE_PRESET, EditPlan
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.presets import Preset, is_falling
from fresco_trt.plan.refinement import DEFAULT_WINDOW, TokenRefinement
from fresco_trt.plan.schedule import plain_sigmas, stage_sigmas, stretched
from fresco_trt.plan.sizes import Size, stage_grids
from fresco_trt.plan.sparse import SPARSE, share_problem
from fresco_trt.plan.stage import continues
from fresco_trt.plan.stages import (
    MAX_STEPS,
    REFERENCES,
    SOLVERS,
    Action,
    References,
    Solver,
    Stage,
    StagePlan,
    Transition,
)

DEFAULT_PRESET = "balanced"
DEFAULT_STAGES = 3
MIN_SHIFT, MAX_SHIFT = 0.01, 100


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
    those of :func:`spectral_switches`; the other fields of :class:`PresetConfig` replace what they
    say.

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
    if asked.delta is not None:
        chosen, name = _placed(facts, chosen, size or facts.default_size, asked.delta), ""
    if asked.shift is not None:
        chosen, name = replace(chosen, shift=(_check_shift(asked.shift),) * len(chosen.steps)), ""
    if asked.solver is not None:
        name = name if asked.solver == chosen.solver else ""
        chosen = replace(chosen, solver=_solver(asked.solver))
    if asked.text_tokens:
        _check_text(facts, asked.text_tokens, len(chosen.steps))
        chosen = replace(chosen, text_tokens=asked.text_tokens)
        name = "" if min(asked.text_tokens) < facts.text_tokens else name
    clip = of_a_clip(facts, chosen, asked, size or facts.default_size)
    chosen, name = clip, name if clip == chosen else ""
    if asked.threshold is not None:
        chosen, name = replace(chosen, edit=_with_threshold(chosen, asked.threshold)), ""
    if asked.references is not None:
        chosen = replace(chosen, references=_references(facts, asked.references, stages))
        name = "" if chosen.references == "fine" else name
    cache = CacheConfig.of(cache)
    check_read(cache)
    check_measured(facts, cache)
    if cache.name != NONE:
        chosen = replace(chosen, cache=cache)
    plan = plan_from_preset(facts, chosen, size=size, name=name or None)
    if asked.solver is not None:
        _check_solver(plan)
    return _with_sparse(facts, plan, asked.sparse_attention)


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
        _check_text(facts, preset.text_tokens, len(levels))
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


def spectral_switches(
    facts: ModelFacts, size: Size, stages: int, delta: float
) -> tuple[float, ...]:
    """Where SPEED's criterion ends each of ``stages`` stages but the last: falling sigmas.

    A stage may last until the highest frequency of its grid, half the latent pixels along the
    shorter side, starts to carry signal; ``delta`` is the tolerance (arXiv 2605.18736, eq. and code
    of the activation time). Raises UnsupportedSize, IncompatibleOptions for a model whose spectrum
    is not known, and PlanError for a ``delta`` that places no switch.
    """
    grids = stage_grids(facts, size, stages)
    if facts.spectrum is None:
        raise IncompatibleOptions(
            f"delta={delta:g} for {facts.name}, whose latents' spectrum was not measured",
            expected="no delta: the preset's own switches",
            fix="leave delta out",
        )
    spectrum = facts.spectrum.at(min(grids[-1].height, grids[-1].width))
    frequencies = [min(grid.height, grid.width) / 2 for grid in grids[:-1]]
    limit = min((1.0 + spectrum.power(each) for each in frequencies), default=float("inf"))
    switches: tuple[float, ...] = ()
    if 0.0 < delta < limit:
        switches = tuple(spectrum.switch(each, delta) for each in frequencies)
    if len(switches) != len(frequencies) or not is_falling((1.0, *switches, 0.0)):
        raise PlanError(
            f"delta={delta:g}",
            expected=f"a tolerance above 0 and below {limit:.4g}, not so near that sigma rounds",
            fix="pass one between 0.01 and 0.2, like --preset balanced,delta=0.05",
        )
    return switches


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


def _check_shift(shift: float) -> float:
    if not MIN_SHIFT <= shift <= MAX_SHIFT:
        raise PlanError(
            f"shift={shift:g}",
            expected=f"a factor from {MIN_SHIFT} to {MAX_SHIFT}: 1 spaces sigmas evenly, more "
            "stays longer where noise is high",
            fix="pass one like --preset balanced,shift=3.16, FLUX.1's own at 1024x1024",
        )
    return shift


def _solver(asked: str) -> Solver:
    for each in SOLVERS:
        if each == asked:
            return each
    raise PlanError(
        f"solver={asked}",
        expected=_either(SOLVERS),
        fix=f"write it like --preset {DEFAULT_PRESET},solver={SOLVERS[-1]}",
    )


def _check_solver(plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a solver whose every step in this plan is Euler's."""
    if plan.solver == "euler" or any(continues(plan.solver, stage) for stage in plan.stages):
        return
    words = "+".join(spelling_of(stage.actions) for stage in plan.stages)
    last = "" if plan.solver == "multistep" else ", the second of which is not the last"
    raise IncompatibleOptions(
        f"solver={plan.solver} for the steps {words}, which all are as euler takes them",
        expected=f"two full steps in a row in a stage{last}: history is of one grid",
        fix="leave solver out, or plan more steps",
    )


def _check_text(facts: ModelFacts, given: tuple[int, ...], stages: int) -> None:
    choices = facts.text_choices
    if len(given) != stages or not set(given) <= set(choices):
        example = "+".join(map(str, (*choices[-2:-1], *choices[-1:] * stages)[:stages]))
        raise PlanError(
            f"text_tokens={'+'.join(map(str, given))} for {stages} "
            f"{'stage' if stages == 1 else 'stages'} of {facts.name}",
            expected=f"{stages}, one a stage, each {_either(tuple(map(str, choices)))}",
            fix=f"write it like --preset {DEFAULT_PRESET},text_tokens={example}",
        )


def _with_threshold(preset: Preset, threshold: float) -> EditPlan:
    if preset.edit is None:
        raise IncompatibleOptions(
            f"threshold={threshold:g} with a preset that draws every token anew",
            expected="a preset of selective edits, of a model that edits",
            fix=f"leave threshold out, or pass --preset {SELECTIVE_PRESET}",
        )
    if threshold <= 0.0:
        raise PlanError(
            f"threshold={threshold:g}",
            expected="a number above 0: the discrepancy from which a token is edited",
            fix=f"pass one like --preset {SELECTIVE_PRESET},threshold={preset.edit.threshold:g}",
        )
    return replace(preset.edit, threshold=threshold)


def _with_sparse(facts: ModelFacts, plan: StagePlan, share: float | None) -> StagePlan:
    if share is None:
        return plan
    if not facts.sparse_attention:
        raise IncompatibleOptions(
            f"{SPARSE}={share:g} with {facts.name}",
            expected="dense attention: there is no such graph of this model's family",
            fix=f"leave {SPARSE} out, or pass --model hunyuan-video",
        )
    if (problem := share_problem(share)) is not None:
        given, expected = problem
        fix = f"write it like --preset {DEFAULT_PRESET},{SPARSE}=0.3"
        raise PlanError(given, expected=expected, fix=fix)
    return replace(plan, sparse_attention=share, preset=None)


def _references(facts: ModelFacts, asked: str, stages: int) -> References:
    for each in REFERENCES:
        if each == asked and facts.references and (stages > 1 or each == "coarse"):
            return each
    if asked in REFERENCES:
        raise IncompatibleOptions(
            f"references={asked} with {facts.name}, {stages} stage{'s'[: stages > 1]}",
            expected="stages of different grids, of a model that edits",
            fix="leave references out: 'coarse' and 'fine' are the same here",
        )
    raise PlanError(
        f"references={asked}",
        expected=" or ".join(REFERENCES),
        fix="pass 'coarse' for a source as coarse as each stage, 'fine' for one that never is",
    )


def _placed(facts: ModelFacts, preset: Preset, size: Size, delta: float) -> Preset:
    """``preset`` with the criterion's switches; restarts given as numbers were for the old ones."""
    stages = len(preset.steps)
    if stages == 1:
        raise IncompatibleOptions(
            f"delta={delta:g} with 1 stage, which has no switch",
            expected="2 stages or more",
            fix="leave delta out, or pass --stages 2",
        )
    if any(preset.shares):
        raise IncompatibleOptions(
            f"delta={delta:g} with a preset whose stages are mixed",
            expected="a preset whose every switch doubles the grid: the criterion places no other",
            fix=f"leave delta out, or pass --preset {DEFAULT_PRESET}",
        )
    restart = preset.restart if isinstance(preset.restart, str) else "rewind"
    switches = spectral_switches(facts, size, stages, delta)
    return replace(preset, switch=switches, restart=restart)


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
        expected=f"{_either(tuple(str(count) for count in schedules))}{why}",
        fix=f"pass --stages {most if stages > most else min(schedules)}",
    )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
