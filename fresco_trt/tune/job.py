"""One tune, from options to files: the plan, and beside it the table, the report and the state."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.record import circumstances
from fresco_trt.errors import TargetNotReached
from fresco_trt.files.atomic_file import check_writable, store_json
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import plan_summary
from fresco_trt.tune.contest import Contest
from fresco_trt.tune.cost import plan_seconds
from fresco_trt.tune.halving import Outcome
from fresco_trt.tune.request import Effort, effort_of, resolve
from fresco_trt.tune.state import DOCUMENT, REPORT
from fresco_trt.tune.stored import beside_control, families_of, row_of, verdict

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.tune.families import Candidate
    from fresco_trt.tune.gallery import Gallery
    from fresco_trt.tune.judge import Pixels
    from fresco_trt.tune.options import Options

    Say = Callable[[str], None]


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
        contest = Contest.open(request, scope, progress, say)
        tuned = compare(contest)
        write(options, tuned)
        contest.state.complete()
    if not tuned.document["reached"]:
        raise not_reached(options, tuned.document)
    return tuned


# --- the contest ------------------------------------------------------------------------------


def compare(contest: Contest) -> Tuned:
    """Draw and judge what competes; raises as :func:`run`."""
    request, options = contest.request, contest.request.options
    field = contest.entrants_at(options.speed)
    if not field.reached:
        contest.say("no plan is as fast as asked; the fastest ones are compared")
    gallery = contest.gallery(field)
    outcome = contest.hold(field, gallery, options.speed)
    contest.progress("comparing plans", 1.0)
    shown = _shown(outcome)
    beside, pictures = side_by_side(gallery, shown, request.effort.beside, contest.progress)
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
        "pictures": request.effort.rounds[-1][1],
        "reference": {
            "steps": request.facts.default_steps,
            "seconds": plan_seconds(gallery.truth, contest.seconds),
        },
        "step_seconds": contest.seconds,
        "candidates": families_of(outcome.everyone),
        "left_out": gallery.left_out,
        "winner": outcome.winner.candidate.name,
        "control": None if outcome.control is None else outcome.control.candidate.name,
        "verdict": verdict(outcome),
        "beside": beside,
        "finalists": len(outcome.finalists),
        "rows": _rows(outcome, contest.seconds),
    }
    return Tuned(outcome=outcome, document=document, pictures=pictures)


def _rows(outcome: Outcome, seconds: dict[str, float]) -> list[dict[str, Any]]:
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
