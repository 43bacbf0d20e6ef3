"""Holds the contests of a search, one a budget, and stores who is left of each."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.search import cache_schedule, stages
from bench.search.halving import Candidate, Gallery, Rounds, Scores, halve
from bench.study import SOURCES
from fresco_trt.bench.plain import MODEL
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.config import NONE, CacheConfig
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.instrument import Instrument
    from fresco_trt.plan.facts import ModelFacts

SCENES_SEED = 4052
"""Where the search's scenes come from; the bench's have another seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A budget, those who keep to it, and what they have to beat, which may be nobody."""

    budget: float
    pool: Sequence[Candidate]
    rounds: Rounds
    controls: Sequence[Candidate] = ()


def contests(facts: ModelFacts, count: int, candidates: int) -> dict[str, Contest]:
    """The contests of a search over plans of ``count`` stages, by their budgets' names."""
    if count == 1:
        return {
            name: Contest(
                budget=budget,
                pool=cache_schedule.candidates(facts, name, candidates),
                rounds=cache_schedule.ROUNDS,
                controls=cache_schedule.controls(facts, name),
            )
            for name, budget in cache_schedule.BUDGETS.items()
        }
    return {
        name: Contest(
            budget=budget,
            pool=stages.candidates(facts, count, name, candidates),
            rounds=stages.ROUNDS,
        )
        for name, budget in stages.BUDGETS.items()
    }


def search(count: int, candidates: int, out: Path, progress: Progress) -> dict[str, Any]:
    """Search every budget and store what was found; the stored document."""
    from fresco_trt.bench.record import circumstances, store
    from fresco_trt.bench.results_log import ResultsLog, inputs_digest
    from fresco_trt.models.weights import bundled_folder

    facts = model_facts(MODEL)
    held = contests(facts, count, candidates)
    where = circumstances()
    log = ResultsLog(
        out.with_suffix(".jsonl"),
        {**where, **inputs_digest(bundled_folder(MODEL), sources=SOURCES)},
    )
    budgets = {}
    with ExitStack() as scope:
        scenes = max(each.rounds[-1][1] for each in held.values())
        instrument = _instrument(scenes, scope, progress)
        everyone = [one for each in held.values() for one in (*each.pool, *each.controls)]
        gallery = Gallery(instrument, everyone, log, scope)
        for index, (name, contest) in enumerate(held.items()):
            progress(f"searching {name}", index / len(held))
            budgets[name] = _result(facts, contest, gallery)
    document = {**where, "model": MODEL, "stages": count, "candidates": candidates}
    document["budgets"] = budgets
    store(document, out)
    log.complete()
    return document


def _instrument(scenes: int, scope: ExitStack, progress: Progress) -> Instrument:
    from fresco_trt.backends import backend
    from fresco_trt.bench.model_runner import ModelRunner, Setup
    from fresco_trt.models.weights import bundled_folder

    facts = model_facts(MODEL)
    folder = scope.enter_context(tempfile.TemporaryDirectory(prefix="fresco-trt-search-"))
    return ModelRunner(
        Setup(
            facts=facts,
            size=facts.default_size,
            pipeline=bundled_folder(MODEL),
            backend=backend("onnxruntime"),
            engines=Path(folder),
            scenes=scenes,
            scenes_seed=SCENES_SEED,
            progress=progress,
        )
    )


def _result(facts: ModelFacts, contest: Contest, gallery: Gallery) -> dict[str, Any]:
    """Who is left of a contest, best first, and of its controls where it has some."""
    result: dict[str, Any] = {"budget": contest.budget}
    result["finalists"] = _entries(facts, halve(contest.pool, gallery, contest.rounds))
    if contest.controls:
        ranked = halve(contest.controls, gallery, cache_schedule.CONTROL_ROUNDS)
        result["controls"] = _entries(facts, ranked)
    return result


def _entries(facts: ModelFacts, ranked: Sequence[tuple[Candidate, Scores]]) -> list[dict[str, Any]]:
    return [
        {
            "preset": asdict(candidate.preset),
            "flops_ratio": plan_cost(facts, plan_from_preset(facts, candidate.preset)).ratio,
            **figures,
        }
        for candidate, figures in ranked
    ]


# --- reading what was found ---------------------------------------------------------------------


def found_preset(document: Mapping[str, Any], budget: str) -> Preset:
    """The preset that a stored search of stages chose for a budget, see :func:`found`."""
    return preset_of({**found(document, budget)["preset"], "cache": asdict(CacheConfig())})


def found(document: Mapping[str, Any], budget: str) -> dict[str, Any]:
    """The best finalist without a cache, of a stored search of stages, for a budget.

    A preset says how stages go; whether steps are skipped is asked for with ``--cache``, on any of
    them. Cached candidates show what that is worth at the same budget.
    """
    finalists: list[dict[str, Any]] = document["budgets"][budget]["finalists"]
    return next(each for each in finalists if each["preset"]["cache"]["name"] == NONE)


def preset_of(entry: Mapping[str, Any]) -> Preset:
    """A preset as it was stored."""
    fields = {key: _tuples(value) for key, value in entry.items() if key != "cache"}
    cache = {key: _tuples(value) for key, value in entry["cache"].items()}
    return Preset(**fields, cache=CacheConfig(**cache))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- the command ------------------------------------------------------------------------------


def main(
    count: Annotated[
        int,
        typer.Option("--stages", min=1, max=3, help="Stages of the plans; of one, steps to skip."),
    ] = 3,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--count",
            min=3,
            help="Random plans of each budget.",
            show_default=f"{stages.COUNT}, with one stage {cache_schedule.COUNT}",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File.",
            show_default="bench/results/flux-tiny-<K>stage-presets.json, or "
            "flux-tiny-cache-schedules.json",
        ),
    ] = None,
) -> None:
    """Search the demo's presets, or the steps to skip of one stage, and store the finalists."""
    from fresco_trt.cli import display

    name = "cache-schedules" if count == 1 else f"{count}stage-presets"
    path = out or Path(f"bench/results/{MODEL}-{name}.json")
    many = (
        (cache_schedule.COUNT if count == 1 else stages.COUNT) if candidates is None else candidates
    )
    with display.progress() as report:
        document = search(count, many, path, report)
    for budget, entry in document["budgets"].items():
        best = entry["finalists"][0] if count == 1 else found(document, budget)
        print(
            f"{budget}: {best['flops_ratio']:.2f}x, score {best['score']:.2f}, "
            f"SSIM {best['ssim']:.3f}: {preset_of(best['preset'])}"
        )
    print(f"stored {path}")
