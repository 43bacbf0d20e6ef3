"""One tune, from options to files: the plan, and beside it the table, the report and the state."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import unavailable
from fresco_trt.backends.choosing import choose, this_gpu
from fresco_trt.bench.record import circumstances
from fresco_trt.errors import IncompatibleOptions, TargetNotReached
from fresco_trt.files.atomic_file import check_writable, store_json
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.models.weights import find_transformer
from fresco_trt.plan.cost import plan_summary
from fresco_trt.plan.facts import check_calibrated
from fresco_trt.plan.sizes import check_size
from fresco_trt.tune.cost import covering, plan_seconds
from fresco_trt.tune.entrants import Entrants, entrants, universe
from fresco_trt.tune.families import Ground, reference
from fresco_trt.tune.gallery import Gallery, pictures_of
from fresco_trt.tune.halving import Outcome, Rounds, halve
from fresco_trt.tune.judge import Judge
from fresco_trt.tune.model_runner import ModelRunner, Setup
from fresco_trt.tune.options import name_of
from fresco_trt.tune.perceptual import FIX, find_weights, load_network, required_weights
from fresco_trt.tune.prompts import asked_of
from fresco_trt.tune.scorer import load_scorer
from fresco_trt.tune.state import DOCUMENT, REPORT, State, package_identity, weights_identity
from fresco_trt.tune.stored import beside_control, families_of, row_of, verdict

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.tune.families import Candidate
    from fresco_trt.tune.judge import Pixels
    from fresco_trt.tune.options import Options

    Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is looked at: the contest's ``rounds``; how many times each timed plan is drawn
    (``turns``); candidates of each family that engines are built for (``sampled``); and pictures
    that the winner, the control and the many steps draw side by side at the end.
    """

    rounds: Rounds
    turns: int
    sampled: int
    beside: int

    @property
    def pictures(self) -> int:
        """Prompts and seeds that are used."""
        return max(self.beside, *(pictures for _, pictures in self.rounds))


FULL = Effort(rounds=((160, 2), (40, 6), (12, 14), (5, 32)), turns=5, sampled=120, beside=8)
QUICK = Effort(rounds=((40, 1), (14, 3), (5, 8)), turns=3, sampled=60, beside=2)


MOST_WALKED = 10**9
"""Parameters of the largest model that is walked without engines."""


def effort_of(options: Options) -> Effort:
    """What the options ask for."""
    return QUICK if options.quick else FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A finished run: the contest, the plan's speed measured side by side, pictures of the winner,
    the control and the many steps by number, and the document that was stored.
    """

    outcome: Outcome
    document: dict[str, Any]
    pictures: dict[str, list[Pixels]]

    @property
    def plan(self) -> StagePlan:
        """The winner's."""
        return self.outcome.winner.candidate.plan


def run(options: Options, progress: Progress, say: Say, effort: Effort | None = None) -> Tuned:
    """Tune, and write the plan, the document and the report.

    Raises PlanError leaves for a wrong request, CalibrationError for prompts, WeightsNotFound,
    BackendUnavailable, OutputNotWritable, ScorerFailed, and what the engines raise. Raises
    TargetNotReached, when the best there is was written, for a target that nothing reaches.
    """
    effort = effort or effort_of(options)
    check_writable(options.out)
    request = resolve(options, effort, say)
    with ExitStack() as scope:
        state = State(options.state, request.header)
        say(f"{state.said} in {options.state}")
        setup = replace(request.setup, engines=state.engines(request.engines))
        runner = ModelRunner(setup, scope)
        tuned = contest(request, runner, state, progress, say)
        write(options, tuned)
        state.complete()
    if not tuned.document["reached"]:
        raise not_reached(options, tuned.document)
    return tuned


# --- the request ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Options with nothing left open. ``header`` tells a run from another, ``engines`` what
    engines are of.
    """

    options: Options
    effort: Effort
    facts: ModelFacts
    size: Size
    setup: Setup
    judge: Judge
    header: dict[str, Any]
    engines: str


def resolve(options: Options, effort: Effort, say: Say) -> Request:
    """Check everything that can be checked before an engine is built; raises as :func:`run`."""
    facts = model_facts(options.model)
    check_calibrated(facts, "a tune")
    size = options.size or facts.default_size
    check_size(facts, size, 1)
    scorer = None if options.scorer is None else load_scorer(options.scorer)
    setup, identity = _setup(options, facts, size, effort, say)
    judge = Judge(network=_network(options, say), scorer=scorer)
    about = setup.backend.describe()
    header = {
        "--model": options.model,
        "--speed": options.speed,
        "--floor": None if options.floor is None else str(options.floor),
        "--scorer": None if options.scorer is None else name_of(options.scorer),
        "--size": list(size),
        "--backend": about.name,
        "metrics": list(judge.metrics),
        "prompts": _digest(setup),
        "rounds": [list(each) for each in effort.rounds],
        "weights": identity,
        "package": package_identity(),
    }
    return Request(
        options=options,
        effort=effort,
        facts=facts,
        size=size,
        setup=setup,
        judge=judge,
        header=header,
        engines=f"{facts.name} {identity} {about.name} {about.version} {setup.precision}",
    )


def _setup(
    options: Options, facts: ModelFacts, size: Size, effort: Effort, say: Say
) -> tuple[Setup, str]:
    """What is drawn with, and what tells its weights from others."""
    chosen = choose(options.backend, None, this_gpu(), lambda about: True)
    for missing in chosen.backend.check():
        raise unavailable(chosen.backend.name, missing)
    if chosen.defaults is not None:
        say(f"tunes with {chosen.defaults}")
    prompts, sources = asked_of(facts, size, options.prompts, effort.pictures)
    given = _given_weights(options, facts)
    components = family_of(facts).components
    pipeline = whole_folder(components.find(options.weights, facts.name))
    components.check(pipeline, facts)
    setup = Setup(
        facts=facts,
        weights=options.weights,
        pipeline=pipeline,
        backend=chosen.backend,
        precision=chosen.precision,
        engines=options.state,
        prompts=prompts,
        sources=sources,
    )
    return setup, weights_identity(pipeline, *given)


def _given_weights(options: Options, facts: ModelFacts) -> list[Path]:
    """The transformer that ``--weights`` names, if it does. Raises as reading it, before anything
    is built, and IncompatibleOptions for random ones.
    """
    if options.weights is None:
        return []
    if options.weights == "random":
        raise IncompatibleOptions(
            "a tune of random weights",
            expected="weights that draw: plans are chosen by their pictures",
            fix="pass --weights with a diffusers folder, or leave it out for the bundled ones",
        )
    return [find_transformer(Path(options.weights), model=facts.name, repository=None)]


def _digest(setup: Setup) -> str:
    digest = hashlib.sha256("\n".join(setup.prompts).encode())
    for source in setup.sources:
        digest.update(source.tobytes())
    return digest.hexdigest()


def _network(options: Options, say: Say) -> Any:
    """The network that says how close pictures look; None, and said so, where it is not here and
    the target can do without.
    """
    if options.floor is not None and options.floor.metric == "perceptual":
        return load_network(required_weights(f"--floor {options.floor}"))
    path = find_weights()
    if path is None:
        say(f"closeness is SSIM alone: the network for how pictures look is not here ({FIX})")
        return None
    return load_network(path)


# --- the contest ------------------------------------------------------------------------------


def contest(
    request: Request, runner: ModelRunner, state: State, progress: Progress, say: Say
) -> Tuned:
    """Build, time, draw and judge; raises as :func:`run`."""
    options, effort = request.options, request.effort
    ground = ground_of(request, runner, state, progress)
    seconds = measured(ground, runner, state, effort, progress, say)
    field = entrants(ground, seconds, options.speed, effort.rounds[0][0])
    if not field.reached:
        say("no plan is as fast as asked; the fastest ones are compared")
    gallery = Gallery(
        runner=runner,
        judge=request.judge,
        truth=reference(ground),
        state=state,
        progress=progress,
        say=say,
        pictures=pictures_of(effort.rounds, len(field.candidates)),
    )
    outcome = halve(field.candidates, field.speeds, gallery, effort.rounds, options.floor)
    progress("comparing plans", 1.0)
    shown = _shown(outcome)
    beside, pictures = side_by_side(gallery, shown, effort.beside, progress)
    document = {
        **circumstances(),
        "command": options.line,
        "model": options.model,
        "size": list(request.size),
        "backend": request.setup.backend.name,
        "precision": request.setup.precision,
        "target": options.target,
        "reached": field.reached and _is_reached(outcome, options),
        "metrics": list(request.judge.metrics),
        "scorer": request.header["--scorer"],
        "prompts": len(set(request.setup.prompts)),
        "pictures": effort.rounds[-1][1],
        "reference": {
            "steps": request.facts.default_steps,
            "seconds": plan_seconds(reference(ground), seconds),
        },
        "step_seconds": seconds,
        "candidates": families_of(outcome.everyone),
        "left_out": gallery.left_out,
        "winner": outcome.winner.candidate.name,
        "control": None if outcome.control is None else outcome.control.candidate.name,
        "verdict": verdict(outcome),
        "beside": beside,
        "finalists": len(outcome.finalists),
        "rows": _rows(outcome, field, ground, seconds),
    }
    return Tuned(outcome=outcome, document=document, pictures=pictures)


def ground_of(request: Request, runner: ModelRunner, state: State, progress: Progress) -> Ground:
    """What candidates are made for, with the changes of a model that is small enough to be walked
    without engines.
    """
    ground = Ground(facts=request.facts, size=request.size, prompt_tokens=runner.prompt_tokens)
    if request.facts.parameters > MOST_WALKED:
        return ground
    found = state.once("changes", lambda: runner.changes(reference(ground), progress))
    return replace(ground, changes=tuple((sigma, total) for sigma, total in found))


def measured(
    ground: Ground, runner: ModelRunner, state: State, effort: Effort, progress: Progress, say: Say
) -> dict[str, float]:
    """Seconds of every kind of step of the candidates, on engines that are built if need be."""
    plans = [each.plan for each in universe(ground, effort.sampled)]
    timed = covering([reference(ground), *plans])
    say(runner.require([reference(ground), *plans], progress))
    found: dict[str, float] = state.once(
        "seconds", lambda: runner.time(timed, effort.turns, progress)
    )
    return found


def _rows(
    outcome: Outcome, field: Entrants, ground: Ground, seconds: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for place, each in enumerate(outcome.everyone):
        row = row_of(each, plan_seconds(each.candidate.plan, seconds) or 0.0)
        if place < len(outcome.finalists):
            row["beside_control"] = beside_control(each, outcome.control)
        rows.append(row)
    return rows


def _is_reached(outcome: Outcome, options: Options) -> bool:
    if options.floor is None:
        return True
    mean = outcome.winner.mean(options.floor.metric)
    return mean is not None and mean >= options.floor.least


def _shown(outcome: Outcome) -> dict[str, Candidate]:
    """Whose pictures are shown, and who is timed side by side."""
    found = {"winner": outcome.winner.candidate}
    if outcome.control is not None and outcome.control is not outcome.winner:
        found["control"] = outcome.control.candidate
    return found


def side_by_side(
    gallery: Gallery, shown: dict[str, Candidate], count: int, progress: Progress
) -> tuple[dict[str, Any], dict[str, list[Pixels]]]:
    """Plans and the many steps in turn on the same pictures: how many times less time each takes,
    median and range, and the pictures.
    """
    plans = {"many steps": gallery.truth, **{name: each.plan for name, each in shown.items()}}
    pictures: dict[str, list[Pixels]] = {name: [] for name in plans}
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(count):
        for place, (name, plan) in enumerate(plans.items()):
            progress("side by side", (number + place / len(plans)) / count)
            pixels, seconds = gallery.runner.draw(plan, number)
            pictures[name].append(pixels)
            taken[name].append(seconds)
    progress("side by side", 1.0)
    whole = taken["many steps"]
    ratios = {
        name: [many / few for many, few in zip(whole, taken[name], strict=True)] for name in shown
    }
    return {
        name: {"speed": statistics.median(each), "low": min(each), "high": max(each)}
        for name, each in ratios.items()
    }, pictures


# --- files ------------------------------------------------------------------------------------


def write(options: Options, tuned: Tuned) -> None:
    """The plan, as ``plan --json`` writes it, the document and the report. Raises OutputNotWritable
    or DiskFull.
    """
    from fresco_trt.tune.report import write_report

    facts = model_facts(options.model)
    store_json(tuned.document, options.state / DOCUMENT)
    write_report(options.state / REPORT, tuned.document, tuned.plan, tuned.pictures)
    store_json(plan_summary(facts, tuned.plan), options.out)


def not_reached(options: Options, document: dict[str, Any]) -> TargetNotReached:
    """The error for a target that nothing reaches, when the best was written."""
    best = document["rows"][0]
    figures = [f"{best['speed']:.2f}x faster"]
    figures += [f"{name} {best[name]:.3f}" for name in document["metrics"] if name in best]
    asked = f"--speed {options.speed:g}" if options.floor is None else f"--floor {options.floor}"
    return TargetNotReached(
        f"no plan reaches {asked}; the best is {', '.join(figures)}, and is in {options.out}",
        expected="a target that a plan of this model reaches on this machine",
        fix="take that plan, or ask for less",
    )
