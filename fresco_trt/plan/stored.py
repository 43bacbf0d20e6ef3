"""Plans from files: what ``fresco-trt plan --json`` wrote, read back and held against the model.

Beside :mod:`fresco_trt.plan.making`: a plan that somebody keeps, edits or searches for takes the
place of the options that would make one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions, InvalidPlan, PlanError, error_context
from fresco_trt.plan.cache_schedule import check_read
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import SUMMARY_KEYS
from fresco_trt.plan.schedule import SIGMA_TOLERANCE
from fresco_trt.plan.sizes import stage_grids
from fresco_trt.plan.stages import StagePlan

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

MAX_BYTES = 4_000_000
"""More than a thousand steps take."""

_MAKE = "write one with 'fresco-trt plan --json'"


def read_plan(path: Path) -> StagePlan:
    """The plan in a file of ``fresco-trt plan --json``, with or without its summary.

    Raises PlanError for a file that cannot be read or holds no JSON, and InvalidPlan, naming the
    file, for keys that neither has, and for whatever :meth:`StagePlan.from_json` refuses.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(
            f"--plan {path} cannot be read: {error}", expected="a plan as JSON", fix=_MAKE
        ) from error
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if key not in SUMMARY_KEYS}
    with error_context(f"--plan {path}"):
        return StagePlan.from_json(value)


def model_of(model: str | None, plan: StagePlan | None) -> str:
    """The model's name, which a plan has too. Raises PlanError where neither is given."""
    if model is None and plan is None:
        raise PlanError(
            "neither a model nor a plan", expected="one of the two", fix="pass --model or --plan"
        )
    return model or ("" if plan is None else plan.model)


def check_undecided(plan: StagePlan, given: Mapping[str, object]) -> None:
    """Raise IncompatibleOptions for options, None where they were not given, that ``plan`` has
    decided. A basis for the plan's own cache may still be given, with nothing else of a cache.
    """
    cache = given.get("cache")
    if isinstance(cache, CacheConfig) and plan.cache is not None and cache.basis is not None:
        basis = CacheConfig(name=plan.cache.name, basis=cache.basis)
        check_read(basis)
        given = {**given, "cache": None if cache == basis else cache}
    named = " and ".join(f"--{name}" for name, value in given.items() if value is not None)
    if named:
        raise IncompatibleOptions(
            f"{named} beside a plan",
            expected="the plan alone: it has decided these",
            fix=f"leave {named} out, or make another plan with 'fresco-trt plan --json'",
        )


def check_plan(plan: StagePlan, facts: ModelFacts) -> None:
    """Raise InvalidPlan unless the model can draw ``plan``."""
    for given, expected in plan_problems(plan, facts):
        raise InvalidPlan(f"{given}, for {facts.name}", expected=expected, fix=_MAKE)


def plan_problems(plan: StagePlan, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    """What a model cannot draw of a plan, as given and expected: another model's name, a size or
    grids that are not its own, a start that is not noise alone, an edit by a model that edits
    nothing, and a transition that cannot be applied. How stages meet is checked by the plan itself.
    """
    if plan.model != facts.name:
        yield f"a plan of {plan.model}", f"a plan of {facts.name}"
        return
    distinct = tuple(dict.fromkeys(stage.grid for stage in plan.stages))
    try:
        grids = stage_grids(facts, plan.size, len(distinct))
    except PlanError as error:
        yield error.given, error.expected
        return
    if distinct != grids:
        found = ", ".join(str(stage.grid) for stage in plan.stages)
        yield f"a plan on the grids {found}", f"{', '.join(map(str, grids))} for {facts.name}"
        return
    if plan.cache is not None and plan.cache.traits.needs_basis and not facts.calibrated:
        given = f"a plan with the cache {plan.cache.name}"
        yield given, "a cache without a basis: none can be measured of this model yet"
    if abs(plan.stages[0].sigmas[0] - 1.0) > SIGMA_TOLERANCE:
        yield f"a plan that starts at sigma {plan.stages[0].sigmas[0]:g}", "1, from noise alone"
    if plan.edit is not None and facts.references != 1:
        yield "a plan that refines what an edit touches", "a plan without 'edit': it edits nothing"
    if plan.references == "fine" and not facts.references:
        yield "a plan with references 'fine'", "a plan without 'references': it takes no pictures"
    if plan.text_amplifier and not facts.text_biased:
        yield "a plan with a text amplifier", "a plan without: its engines take no bias of the text"
    if plan.sparse_attention is not None and not facts.sparse_attention:
        yield "a plan with sparse_attention", "a plan without: its attention is dense"
    yield from _part_problems(plan, facts)


def _part_problems(plan: StagePlan, facts: ModelFacts) -> Iterator[tuple[str, str]]:
    cut = facts.text_choices[:-1]
    for stage in plan.stages:
        if stage.text_tokens is not None and stage.text_tokens not in cut:
            expected = " or ".join(map(str, cut)) or "no text_tokens"
            yield f"a stage with {stage.text_tokens} text tokens", f"{expected}, or no such key"
    for each in plan.transitions:
        if each.noise == "rewind" and each.lift != "haar":
            given = f"a transition that rewinds with the lift {each.lift!r}"
            yield given, "the lift 'haar', the expansion that a rewind is"
