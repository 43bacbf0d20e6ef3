"""What a plan takes: the measured seconds of its steps and transitions, added up. Numbers only.

Steps are of few kinds, by the engine that runs and by what answers where none does; so are
transitions, by the tokens before and after. A kind's seconds are the same in every plan, so that a
few plans that have all kinds between them are timed, and all others are sums.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from fresco_trt.bench.engines import kinds_of
from fresco_trt.run.request import engine_name

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan

Seconds: TypeAlias = Mapping[str, float]
"""Median seconds of each kind of step, and of transition."""

Kinds: TypeAlias = tuple[str, ...]
"""What one step is: its own kind, and after it that of the transition before it, if any."""


def step_kinds(plan: StagePlan) -> tuple[Kinds, ...]:
    """What each step of a plan is, as far as its time depends on it."""
    engines = {name: kind.key for name, kind in kinds_of(plan).items()}
    found: list[Kinds] = []
    for index, stage in enumerate(plan.stages):
        for step, action in enumerate(stage.actions):
            kind = engines[engine_name(index, action)]
            if plan.cache is not None and action == "bypass":
                kind = f"{kind} by {plan.cache.name}"
            elif plan.velocity_grid is not None and "bypass" in stage.actions[step + 1 : step + 2]:
                kind = f"{kind} and the coarse one"  # which a full step runs before a coarse one
            found.append((kind, _entered(plan, index)) if index and not step else (kind,))
    return tuple(found)


def _entered(plan: StagePlan, index: int) -> str:
    """The transition into the stage counted from 0."""
    rules = "+".join(each.rule for each in plan.transitions[index - 1].refinements)
    by = f" by {rules}" if rules else ""
    return f"{plan.tokens[index - 1]} to {plan.tokens[index]} tokens{by}"


def plan_seconds(plan: StagePlan, seconds: Seconds) -> float | None:
    """Seconds of one picture; None for a plan with a step of a kind that was not measured."""
    kinds = [kind for each in step_kinds(plan) for kind in each]
    if not seconds.keys() >= set(kinds):
        return None
    return sum(seconds[kind] for kind in kinds)


def covering(plans: Iterable[StagePlan]) -> list[StagePlan]:
    """Few of the plans that have every kind of all of them, steps without a transition before them:
    each time the plan with most kinds that are still missing for the tokens that it runs.
    """
    rows = [(plan, {each[-1] for each in step_kinds(plan)}, _tokens(plan)) for plan in plans]
    missing = {kind for _, kinds, _ in rows for kind in kinds}
    chosen: list[StagePlan] = []
    while missing:
        plan, kinds, _ = max(rows, key=lambda row: len(row[1] & missing) / row[2])
        chosen.append(plan)
        missing -= kinds
    return chosen


def _tokens(plan: StagePlan) -> int:
    """Tokens of all steps in full, and one for each that is answered."""
    rows = zip(plan.stages, plan.tokens, strict=True)
    return plan.nfe + sum(tokens * stage.actions.count("full") for stage, tokens in rows)


def medians(samples: Sequence[tuple[Kinds, float]]) -> dict[str, float]:
    """Median seconds of each kind, from single steps that were timed.

    A transition's are what the step after it took more than others of its kind; of a step that
    there are no others of, nothing is known.
    """
    alone: dict[str, list[float]] = {}
    for kinds, seconds in samples:
        if len(kinds) == 1:
            alone.setdefault(kinds[0], []).append(seconds)
    found = {kind: statistics.median(each) for kind, each in alone.items()}
    more: dict[str, list[float]] = {}
    for kinds, seconds in samples:
        if len(kinds) == 2 and kinds[0] in found:
            more.setdefault(kinds[1], []).append(seconds - found[kinds[0]])
    found |= {kind: max(statistics.median(each), 0.0) for kind, each in more.items()}
    return dict(sorted(found.items()))
