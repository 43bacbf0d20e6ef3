"""What may be changed of a preset, and what each change makes of it.

Under :mod:`fresco_trt.plan.making`, which finds the preset by its name: every other field of
PresetConfig is applied here, those of clips by :mod:`fresco_trt.plan.clips`.
"""

from __future__ import annotations

from dataclasses import replace

from fresco_trt.errors import IncompatibleOptions, PlanError, either
from fresco_trt.plan.caching import spelling_of
from fresco_trt.plan.clips import of_a_clip
from fresco_trt.plan.config import PresetConfig
from fresco_trt.plan.editing import SELECTIVE_PRESET, EditPlan
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.presets import DEFAULT_PRESET, Preset, is_falling
from fresco_trt.plan.sizes import Size, stage_grids
from fresco_trt.plan.sparse import SPARSE, share_problem
from fresco_trt.plan.stage import REFERENCES, SOLVERS, References, Solver, continues
from fresco_trt.plan.stages import StagePlan

MIN_SHIFT, MAX_SHIFT = 0.01, 100


def changed(
    facts: ModelFacts, preset: Preset, asked: PresetConfig, size: Size
) -> tuple[Preset, bool]:
    """The preset with what was ``asked`` for, as far as a preset holds that, and whether it still
    is the one that its name says.

    Raises as :func:`fresco_trt.plan.making.make_plan` for each field.
    """
    is_own = asked.delta is None and asked.shift is None and asked.threshold is None
    if asked.delta is not None:
        preset = _placed(facts, preset, size, asked.delta)
    if asked.shift is not None:
        preset = replace(preset, shift=(_check_shift(asked.shift),) * len(preset.steps))
    if asked.solver is not None:
        is_own &= asked.solver == preset.solver
        preset = replace(preset, solver=_solver(asked.solver))
    if asked.text_tokens:
        check_text(facts, asked.text_tokens, len(preset.steps))
        preset = replace(preset, text_tokens=asked.text_tokens)
        is_own &= min(asked.text_tokens) >= facts.text_tokens
    clip = of_a_clip(facts, preset, asked, size)
    is_own &= clip == preset
    preset = clip
    if asked.threshold is not None:
        preset = replace(preset, edit=_with_threshold(preset, asked.threshold))
    if asked.references is not None:
        preset = replace(preset, references=_references(facts, asked.references, len(preset.steps)))
        is_own &= preset.references != "fine"
    return preset, is_own


def with_sparse(facts: ModelFacts, plan: StagePlan, share: float | None) -> StagePlan:
    """The plan with so much sparse attention, itself where None was asked for. Raises
    IncompatibleOptions for a model without such a graph, PlanError for what is no share.
    """
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


def check_solver(plan: StagePlan) -> None:
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


def check_text(facts: ModelFacts, given: tuple[int, ...], stages: int) -> None:
    """Raise PlanError for text tokens of stages that are no choice of the model's."""
    choices = facts.text_choices
    if len(given) != stages or not set(given) <= set(choices):
        example = "+".join(map(str, (*choices[-2:-1], *choices[-1:] * stages)[:stages]))
        raise PlanError(
            f"text_tokens={'+'.join(map(str, given))} for {stages} "
            f"{'stage' if stages == 1 else 'stages'} of {facts.name}",
            expected=f"{stages}, one a stage, each {either(tuple(map(str, choices)))}",
            fix=f"write it like --preset {DEFAULT_PRESET},text_tokens={example}",
        )


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
        expected=either(SOLVERS),
        fix=f"write it like --preset {DEFAULT_PRESET},solver={SOLVERS[-1]}",
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
