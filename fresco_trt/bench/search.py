"""Search of the demo's presets: random plans of each budget, halved by what they draw.

    python -m fresco_trt.bench.search --stages 3

A budget is how many times fewer FLOPs than the plain pipeline a plan must need. Random plans that
keep to it draw a few scenes each, the better ones draw more, and so on (successive halving:
Jamieson and Talwalkar, AISTATS 2016). A picture is worth 1 if it shows what its caption says, plus
its SSIM to the 50-step picture of its seed. The scenes are none of the bench's, so that what was
chosen on some is measured on others. A killed search goes on where it was.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.bench.methods import Point
from fresco_trt.bench.plain import MODEL
from fresco_trt.errors import FrescoError
from fresco_trt.models.zoo import model_facts
from fresco_trt.plan.caching import NO_CACHE, NONE, CacheChoice
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fresco_trt.backends.base import Progress
    from fresco_trt.bench.instrument import Drawn, Instrument
    from fresco_trt.bench.journal import Journal
    from fresco_trt.plan.facts import ModelFacts

BUDGETS: Mapping[str, float] = {"quality": 3.0, "balanced": 5.0, "fast": 8.0, "turbo": 12.0}
"""Times fewer FLOPs than the plain pipeline's default steps, by preset."""

SLACK = 1.15
"""A candidate may cost this many times less than its budget allows, and no less than that."""

ROUNDS: Sequence[tuple[int, int]] = ((32, 5), (12, 12), (6, 24), (3, 48))
"""Candidates that are left, and scenes that each of them has then drawn."""

SCENES_SEED = 4052
"""Where the search's scenes come from; the bench's have another seed."""

COARSE_STEPS, FULL_STEPS = (1, 10), (2, 24)
LATEST_SWITCH, EARLIEST_SWITCH = 0.6, 0.985
LOG_SHIFTS = (0.5, 1.15, 1.6, 2.2, 3.0)
CARRIES = (
    ("nearest", "field"),
    ("bilinear", "field"),
    ("haar", "field"),
    ("nearest", "parent"),
    ("bilinear", "parent"),
    ("haar", "parent"),
    ("haar", "rewind"),
)
"""Lifts and noise sources that go together; fresh noise is an ablation, not a candidate."""

CACHED = ("reuse", "taylor", "hicache")
CACHED_SHARE = 0.25
"""Predictors that a candidate may have, and how many of the candidates have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan's preset under a name of its own."""

    name: str
    preset: Preset

    @property
    def point(self) -> Point:
        """What an instrument draws it as."""
        return Point(method="fresco", recipe=self.preset, preset=self.name)


REFERENCE = Point(method="plain", recipe=Preset(steps=(model_facts(MODEL).default_steps,)))
"""The plain sampler on one static engine: the same picture as diffusers', in less time."""


# --- candidates -------------------------------------------------------------------------------


def candidates(
    facts: ModelFacts, stages: int, budget: str, count: int, seed: int = 0
) -> tuple[Candidate, ...]:
    """``count`` different presets of ``stages`` stages that keep to a budget; same seed, same."""
    rng = random.Random(f"{seed} {stages} {budget}")
    found: dict[Preset, None] = {}
    while len(found) < count:
        preset = random_preset(stages, rng)
        if preset is not None and _keeps_to(facts, preset, BUDGETS[budget]):
            found[preset] = None
    return tuple(
        Candidate(name=f"{budget} {index}", preset=preset) for index, preset in enumerate(found)
    )


def random_preset(stages: int, rng: random.Random) -> Preset | None:
    """Any whole-grid preset, or None where the numbers drawn do not make one."""
    coarse = tuple(rng.randint(*COARSE_STEPS) for _ in range(stages - 1))
    lift, noise = rng.choice(CARRIES)
    try:
        return Preset(
            steps=(*coarse, rng.randint(*FULL_STEPS)),
            switch=tuple(sorted((_switch(rng) for _ in coarse), reverse=True)),
            restart=rng.choice(("rewind", "same")),
            lift=lift,  # type: ignore[arg-type]
            noise=noise,  # type: ignore[arg-type]
            shift=_shifts(stages, rng),
            solver=rng.choice(("euler", "multistep")),
            cache=_cache(rng),
        )
    except FrescoError:
        return None


def _switch(rng: random.Random) -> float:
    """A switch sigma; its distance to 1 is what is spread evenly, on a logarithmic scale."""
    near, far = math.log(1 - EARLIEST_SWITCH), math.log(1 - LATEST_SWITCH)
    return round(1 - math.exp(rng.uniform(near, far)), 3)


def _shifts(stages: int, rng: random.Random) -> tuple[float, ...] | None:
    """Half the time the model's own time shift, else one for each stage."""
    if rng.random() < 0.5:
        return None
    return tuple(round(math.exp(rng.choice(LOG_SHIFTS)), 2) for _ in range(stages))


def _cache(rng: random.Random) -> CacheChoice:
    if rng.random() >= CACHED_SHARE:
        return NO_CACHE
    return CacheChoice(name=rng.choice(CACHED), interval=rng.choice((2, 3)), warmup=1)


def _keeps_to(facts: ModelFacts, preset: Preset, budget: float) -> bool:
    try:
        plan = plan_from_preset(facts, preset)
    except FrescoError:
        return False
    return budget <= plan_cost(facts, plan).ratio <= SLACK * budget


# --- halving ----------------------------------------------------------------------------------

Marks = dict[str, Any]


def halve(
    pool: Sequence[Candidate],
    drawn: Callable[[Sequence[Candidate], int], Mapping[str, Marks]],
    rounds: Sequence[tuple[int, int]],
) -> list[tuple[Candidate, Marks]]:
    """The candidates of the last round, best first, with their figures.

    ``drawn`` gives the marks of candidates by name on scene number so-and-so; it is asked for what
    it was asked before and should remember.
    """
    alive = list(pool)
    for count, scenes in rounds:
        alive = alive[:count]
        table = [drawn(alive, number) for number in range(scenes)]
        figures = {each.name: _figures([row[each.name] for row in table]) for each in alive}
        alive.sort(key=lambda each: -figures[each.name]["value"])
    return [(each, figures[each.name]) for each in alive]


def _figures(marks: Sequence[Marks]) -> Marks:
    score = statistics.fmean(each["right"] for each in marks)
    ssim = statistics.fmean(each["ssim"] for each in marks)
    return {"value": score + ssim, "score": score, "ssim": ssim, "scenes": len(marks)}


class Gallery:
    """Draws candidates' scenes once and remembers their marks, across kills too."""

    def __init__(
        self, instrument: Instrument, pool: Iterable[Candidate], journal: Journal, scope: ExitStack
    ) -> None:
        self._instrument, self._journal = instrument, journal
        points = [REFERENCE, *(each.point for each in pool)]
        self._methods, skipped = instrument.methods(points, scope)
        if skipped:
            raise ValueError(f"candidates that cannot run: {skipped}; expected none")
        self._references: dict[int, Drawn] = {}

    def __call__(self, wanted: Sequence[Candidate], number: int) -> dict[str, Marks]:
        """Marks of candidates on one scene."""
        notes = self._journal.notes
        missing = [each for each in wanted if _key(each, number) not in notes]
        if missing:
            self._draw(missing, number)
        return {each.name: notes[_key(each, number)] for each in wanted}

    def _draw(self, missing: Sequence[Candidate], number: int) -> None:
        case = self._instrument.cases[number]
        inputs = self._instrument.encode(case)
        if number not in self._references:
            self._references[number] = self._methods[REFERENCE.name](inputs, case.seed)
        drawn = {REFERENCE.name: self._references[number]}
        for each in missing:
            drawn[each.point.name] = self._methods[each.point.name](inputs, case.seed)
        marks, _ = self._instrument.judge(case, drawn, REFERENCE.name)
        for each in missing:
            kept = {key: marks[each.point.name][key] for key in ("right", "ssim")}
            self._journal.add_note(_key(each, number), kept)


def _key(candidate: Candidate, number: int) -> str:
    return f"{candidate.name} on {number}"


# --- the command ------------------------------------------------------------------------------


def search(stages: int, count: int, out: Path, progress: Progress) -> dict[str, Any]:
    """Search every budget and store what was found; the stored document."""
    from fresco_trt.bench.journal import Journal, inputs_digest
    from fresco_trt.bench.record import circumstances, store
    from fresco_trt.models.weights import BUNDLED

    facts = model_facts(MODEL)
    pools = {name: candidates(facts, stages, name, count) for name in BUDGETS}
    where = circumstances()
    journal = Journal(out.with_suffix(".jsonl"), {**where, **inputs_digest(BUNDLED / MODEL)})
    with ExitStack() as scope:
        instrument = _instrument(scope, progress)
        everyone = [each for pool in pools.values() for each in pool]
        gallery = Gallery(instrument, everyone, journal, scope)
        budgets = {}
        for index, (name, pool) in enumerate(pools.items()):
            progress(f"searching {name}", index / len(pools))
            budgets[name] = _document(facts, halve(pool, gallery, ROUNDS), BUDGETS[name])
    document = {**where, "model": MODEL, "stages": stages, "candidates": count, "budgets": budgets}
    store(document, out)
    journal.complete()
    return document


def _instrument(scope: ExitStack, progress: Progress) -> Instrument:
    from fresco_trt.backends import backend
    from fresco_trt.bench.studio import Setting, Studio
    from fresco_trt.models.weights import BUNDLED

    facts = model_facts(MODEL)
    folder = scope.enter_context(tempfile.TemporaryDirectory(prefix="fresco-trt-search-"))
    return Studio(
        Setting(
            facts=facts,
            size=facts.default_size,
            pipeline=BUNDLED / MODEL,
            backend=backend("onnxruntime"),
            engines=Path(folder),
            scenes=ROUNDS[-1][1],
            scenes_seed=SCENES_SEED,
            progress=progress,
        )
    )


def _document(
    facts: ModelFacts, ranked: Sequence[tuple[Candidate, Marks]], budget: float
) -> dict[str, Any]:
    finalists = [
        {
            "preset": asdict(candidate.preset),
            "flops_ratio": plan_cost(facts, plan_from_preset(facts, candidate.preset)).ratio,
            **figures,
        }
        for candidate, figures in ranked
    ]
    return {"budget": budget, "finalists": finalists}


def found_preset(document: Mapping[str, Any], budget: str) -> Preset:
    """The preset that a stored search chose for a budget, see :func:`found`."""
    stored = found(document, budget)["preset"]
    fields = {key: _tuples(value) for key, value in stored.items() if key != "cache"}
    return Preset(**fields)


def found(document: Mapping[str, Any], budget: str) -> dict[str, Any]:
    """The best finalist without a cache, of a stored search, for a budget.

    A preset says how stages go; whether steps are skipped is asked for with ``--cache``, on any of
    them. Cached candidates show what that is worth at the same budget.
    """
    finalists: list[dict[str, Any]] = document["budgets"][budget]["finalists"]
    return next(each for each in finalists if each["preset"]["cache"]["name"] == NONE)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def main(
    stages: Annotated[int, typer.Option(help="Stages of the plans, 2 or 3.")] = 3,
    count: Annotated[int, typer.Option(help="Random plans of each budget.")] = ROUNDS[0][0],
    out: Annotated[
        Path | None,
        typer.Option(help="File.", show_default="bench/results/flux-tiny-<K>stage-presets.json"),
    ] = None,
) -> None:
    """Search the demo's presets and store the finalists of each budget."""
    from fresco_trt import display

    path = out or Path(f"bench/results/{MODEL}-{stages}stage-presets.json")
    with display.progress() as report:
        document = search(stages, count, path, report)
    for name in document["budgets"]:
        best = found(document, name)
        print(
            f"{name}: {best['flops_ratio']:.2f}x, score {best['score']:.2f}, "
            f"SSIM {best['ssim']:.3f}: {found_preset(document, name)}"
        )
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
