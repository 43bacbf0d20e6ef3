"""One run of the GPU benchmark, part by part, each within what is left of the time.

Libraries, weights, engines, the plain pipeline, rounds, profiles: a part that fails leaves the
others what it had, and what was measured before it is stored.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.gpu.device import Matmul, device_facts, memory_in_use, peaks_of
from bench.gpu.engines import Workshop, check_fits, engines_of, examine, twin
from bench.gpu.fp8_modules import make_fp8_modules
from bench.gpu.libraries import OTHERS, examine_library
from bench.gpu.methods import (
    CACHED,
    PIPELINES,
    conditioning,
    expected_seconds,
    points_of,
    staged_method,
)
from bench.gpu.pieces import keep_pieces, take_pieces
from bench.gpu.plain import computed_steps, pipeline_of
from bench.gpu.profiling import profiled
from bench.gpu.report import DRY_RUN, rows_of
from bench.gpu.rounds import (
    LONG_ROUNDS,
    MOST_ROUNDS,
    Budget,
    Record,
    fitting,
    needed,
    take_rounds,
)
from bench.gpu.weights import make_weights
from bench.study import SOURCES
from fresco_trt.backends.base import check_precision
from fresco_trt.bench.engines import kinds_of
from fresco_trt.bench.instrument import said
from fresco_trt.bench.record import circumstances, store
from fresco_trt.bench.results_log import sources_digest

if TYPE_CHECKING:
    from pathlib import Path

    from bench.gpu.device import Product
    from bench.gpu.engines import Subject
    from bench.gpu.methods import Method, Point
    from bench.gpu.plain import PlainPipeline
    from fresco_trt.bench.engines import Kind
    from fresco_trt.plan.signature import GraphSignature

MINUTES = 9.0
BUILDING = 0.6
"""Share of the time after which no more engines are built, so that what there is gets measured."""

PROFILING = 15.0
"""Seconds that are kept from the rounds, to look into requests afterwards."""

WARM_STEPS = 2
"""Steps of a plain pipeline that warm it up and tell how long one takes."""

_MODEL = ("model", "layers", "size", "precision", "recipe")
SAME = ("dry_run", "machine", "sources", "backend", *_MODEL)
"""What has to be the same in a run that was killed for another to go on with its rounds."""

SQUARE = 8192


@dataclass(slots=True, kw_only=True)
class Job:
    """One run: what is measured, with what, into what, within which time; and what it has so far:
    seconds of a call of each engine, and of a step of each plain pipeline.
    """

    subject: Subject
    workshop: Workshop
    record: Record
    budget: Budget
    rounds: int
    points: tuple[Point, ...]
    engines: Mapping[Kind, GraphSignature]
    pieces: Path | None = None
    call_seconds: dict[Kind, float] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    plain: dict[str, PlainPipeline] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)


def measure(
    subject: Subject,
    *,
    library: str,
    work: Path,
    out: Path,
    dry_run: bool,
    minutes: float = MINUTES,
    rounds: int = MOST_ROUNDS,
    pieces: Path | None = None,
    began: float | None = None,
) -> dict[str, Any]:
    """Measure within ``minutes`` from ``began`` (default: now), in ``rounds`` at most, and store
    under ``out`` what was measured; until the end it is beside it, as "NAME-unfinished.json", as it
    is measured, and a run that was killed is gone on with. "NAME-profile.json" is stored last.

    Engines stay in ``work``; what is there of an earlier run is not built again, nor what the
    archive ``pieces`` has, which gets what was compiled.
    Raises IncompatibleOptions for another library, UnsupportedPrecision for one that it lacks,
    OutOfDeviceMemory for a card that is too small; any later error is kept in the document, in
    words, and ends one part of the run only.
    """
    budget = Budget(seconds=60 * minutes, began=perf_counter() if began is None else began)
    facts = device_facts(subject.device)
    if facts["bytes"] is not None:
        check_fits(subject, facts["bytes"])
    workshop = Workshop(subject, library, work)
    check_precision(workshop.backend.describe(), subject.precision)
    against = "compiled" if subject.has_fp8_modules else "all"
    points = points_of(subject.facts, subject.size, against=against)
    job = Job(
        subject=subject,
        workshop=workshop,
        record=Record(out, _head(subject, facts, library, minutes, dry_run), SAME),
        budget=budget,
        rounds=rounds,
        points=points,
        engines=engines_of(subject.facts, [point.plan for point in points if point.plan]),
        pieces=pieces,
    )
    _say(job, f"storing what is measured in {job.record.unfinished}")
    if job.record.resumed:
        _say(job, f"going on after {job.record.resumed} rounds of a run that was killed")
    # What torch.compile makes of the plain pipeline is kept too.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "torch-compile"))
    with closing(workshop):
        _run(job)
        job.record.finish()
        _profile(job)
    return job.record.document


def _head(
    subject: Subject, device: Mapping[str, Any], library: str, minutes: float, dry_run: bool
) -> dict[str, Any]:
    facts = subject.facts
    return {
        "dry_run": dry_run,
        "note": DRY_RUN if dry_run else None,
        **circumstances(),
        "sources": sources_digest(*SOURCES),
        "device": dict(device),
        "model": facts.name,
        "layers": [facts.double_blocks, facts.single_blocks],
        "size": list(subject.size),
        "precision": subject.precision,
        "recipe": subject.recipe,
        "backend": library,
        "minutes": minutes,
    }


# --- the parts of a run -----------------------------------------------------------------------


def _run(job: Job) -> None:
    """Every part in turn; one that fails leaves the others what it had."""
    record, subject = job.record, job.subject
    with record.phase("libraries"):
        capability = record.document["device"].get("capability")
        for name in OTHERS:
            record.add("libraries", examine_library(name, capability))
        record.add("libraries", _own_library(job))
    transformer: Any = None
    with record.phase("weights"):
        record.keep("memory_before", memory_in_use(subject.device))
        transformer, made = make_weights(subject, job.workshop.folder)
        record.keep("weights", made)
        record.keep("memory_of_weights", memory_in_use(subject.device))
    network = _network(job, transformer)
    if network is not None:
        with record.phase("building"):
            _build(job, network)
        with record.phase("opening"):
            _open(job, network)
    if transformer is not None:
        with record.phase("preparing the plain pipeline"):
            _prepare_plain(job, transformer)
        with record.phase("rounds"):
            _measure(job)
    record.keep("device_after", device_facts(subject.device))


def _network(job: Job, transformer: Any) -> Any:
    """What engines are built from, if anything: the transformer, or a copy with FP8 modules."""
    network: Any = transformer
    if transformer is not None and job.subject.has_fp8_modules:
        network = None
        with job.record.phase("quantising"):
            network, made = make_fp8_modules(job.subject, transformer, job.workshop.engines)
            job.record.keep("fp8_modules", made)
            job.record.keep("memory_of_weights", memory_in_use(job.subject.device))
    if network is not None:
        job.workshop.hold(network)
    return network


def _own_library(job: Job) -> dict[str, Any]:
    """What the engines' library is here, and what it lacks."""
    backend = job.workshop.backend
    about = backend.describe()
    missing = [{"what": each.what, "fix": each.fix} for each in backend.check()]
    return {"name": about.name, "version": about.version, "missing": missing}


def _build(job: Job, network: Any) -> None:
    """Every engine, of pieces compiled side by side; where that failed one by one, those of most
    tokens first, until the time for building is used up. What the archive of pieces has is not
    compiled, and it gets what was.
    """
    if job.pieces is not None:
        _say(job, take_pieces(job.pieces, job.subject, job.workshop.engines))
    prepared = False
    if not _is_late(job):
        with job.record.attempt("compiling"):
            job.record.keep("compiling", job.workshop.prepare(job.engines, network))
            _say(job, "compiled what the engines share")
            prepared = True
    for kind, signature in job.engines.items():
        if not (prepared or job.workshop.has(kind)) and _is_late(job):
            job.record.drop(f"engine {kind.key}", "no time was left to build it")
            continue
        with job.record.attempt(f"engine {kind.key}"):
            job.record.add("build", job.workshop.build(kind, signature, network))
            _say(job, f"built {kind.key}")
    if job.pieces is not None:
        with job.record.attempt("keeping the pieces"):
            keep_pieces(job.pieces, job.subject, job.workshop.engines)


def _is_late(job: Job) -> bool:
    return job.budget.spent > BUILDING * job.budget.seconds


def _open(job: Job, network: Any) -> None:
    """Open and examine every engine: those of whole steps first, the full grid's foremost, with
    what they add to memory and disk stage by stage; then those that caching needs.
    """
    built = [kind for kind in job.engines if job.workshop.has(kind)]
    whole = [kind for kind in built if kind.graph == "full"]
    for stages, kind in enumerate(whole, 1):
        _examine(job, kind, network)
        job.record.add("memory", {"stages": stages, **memory_in_use(job.subject.device)})
        job.record.add("disk", {"stages": stages, **job.workshop.bytes_of(whole[:stages])})
    for kind in built:
        if kind not in whole:
            _examine(job, kind, network)
    job.record.keep("memory_with_cache", memory_in_use(job.subject.device))
    _say(job, f"opened {len(built)} engines")


def _examine(job: Job, kind: Kind, network: Any) -> None:
    """One engine's error and seconds a call."""
    with job.record.attempt(f"engine {kind.key}"):
        runner = job.workshop.runner(kind, job.engines[kind])
        found = examine(runner, network, job.subject.device)
        job.record.add("engines", {"engine": kind.key, "tokens": kind.tokens, **found})
        job.call_seconds[kind] = found["seconds"]


def _prepare_plain(job: Job, transformer: Any) -> None:
    """The plain pipelines over the engines' weights, warmed up, and the seconds of a step."""
    for name in PIPELINES:
        if all(point.pipeline != name for point in job.points):
            continue
        with job.record.attempt(name):
            try:
                pipeline = pipeline_of(name, twin(transformer), job.subject)
            except ImportError as error:
                job.record.drop(name, f"it is not installed here: {error}")
                continue
            draw = pipeline.method(WARM_STEPS)
            draw(0)
            _draw_at_peak(job, name, draw)
            job.step_seconds[name] = _computed(job, name) * draw(0).seconds / WARM_STEPS
            job.plain[name] = pipeline
            _say(job, f"warmed up {name}")


def _computed(job: Job, pipeline: str) -> float:
    """The share of steps that a plain pipeline computes."""
    steps = job.subject.facts.default_steps
    return sum(computed_steps(steps)) / steps if pipeline in CACHED else 1.0


def _measure(job: Job) -> None:
    """What there is time for, warmed up, in rounds; the rows anew after each of them."""
    budget = replace(job.budget, seconds=job.budget.seconds - PROFILING)
    costs = {point.name: _cost(job, point) for point in job.points}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    chosen = [point for point in _fitting(job, known, budget.left) if point.name in known]
    for point in chosen:
        with job.record.attempt(point.name):
            method = _method(job, point)
            if point.plan is not None:  # the plain pipelines are warm
                method(0)  # whose launches the next one captures, where they can be
                _draw_at_peak(job, point.name, method)
            job.methods[point.name] = method
    long = [point.name for point in chosen if point.is_long]
    job.record.keep("long", {"methods": long, "rounds_at_most": LONG_ROUNDS})
    _say(job, f"measuring {len(job.methods)} methods side by side")
    matmul = Matmul(job.subject.device, job.subject.dtype, _products(job))
    take_rounds(
        job.methods,
        known,
        matmul.rates,
        budget,
        job.record,
        most=job.rounds,
        long=long,
        after=lambda: job.record.keep("rows", _rows(job)),
    )


def _rows(job: Job) -> list[dict[str, Any]]:
    facts = job.subject.facts
    return rows_of(
        job.points,
        job.record.document["rounds"],
        facts,
        job.subject.tokens,
        baseline_steps=facts.default_steps,
        peaks={each["method"]: each for each in job.record.document.get("peaks", ())},
    )


def _cost(job: Job, point: Point) -> float | None:
    return expected_seconds(point, job.call_seconds, job.step_seconds)


def _fitting(job: Job, known: Mapping[str, float], left: float) -> list[Point]:
    """The points that there is time for; the others are recorded as dropped."""
    needs = dict.fromkeys((point.group for point in job.points), 0.0)
    for point in job.points:
        needs[point.group] += needed(known.get(point.name, 0.0), long=point.is_long)
    kept = fitting(list(needs.items()), left)
    for point in job.points:
        if point.name not in known:
            job.record.drop(point.name, "what it runs on was not built, is missing, or failed")
        elif point.group not in kept:
            job.record.drop(point.name, f"no time for the group {point.group!r}")
    return [point for point in job.points if point.group in kept]


def _method(job: Job, point: Point) -> Method:
    if point.plan is None:
        return job.plain[str(point.pipeline)].method(point.steps)
    subject, plan = job.subject, point.plan
    runners = {
        name: job.workshop.runner(kind, job.engines[kind]) for name, kind in kinds_of(plan).items()
    }
    return staged_method(plan, subject, runners, conditioning(subject))


def _draw_at_peak(job: Job, name: str, method: Method) -> None:
    """One picture, whose seconds are not counted; the memory that it takes at its highest is."""
    found = peaks_of(job.subject.device, lambda: method(0))
    job.record.add("peaks", {"method": name, **found})


# --- profiles ---------------------------------------------------------------------------------


def _profile(job: Job) -> None:
    """Look into one request of each method, the shortest first, as long as there is time; of the
    long ones, a few steps. Stored beside the result, which is complete by then.
    """
    path = job.record.path.with_name(f"{job.record.path.stem}-profile.json")
    head = {name: job.record.document[name] for name in ("command", "commit", *SAME)}
    document: dict[str, Any] = {**head, "dropped": [], "methods": []}
    points = [point for point in job.points if point.name in job.methods]
    for point in sorted(points, key=lambda point: _cost(job, point) or 0.0):
        method, steps = job.methods[point.name], point.steps
        if point.is_long and point.pipeline is not None:
            steps = WARM_STEPS
            method = job.plain[point.pipeline].method(steps)
        try:
            if job.budget.left < 0:
                raise TimeoutError("no time was left for it")
            found = profiled(job.subject.device, partial(method, 0))
            document["methods"].append({"method": point.name, "steps": steps, **found})
        except Exception as error:  # a profiler may fail in any way, and the rest still counts
            document["dropped"].append({"what": point.name, "reason": said(error)})
        store(document, path)
    _say(job, f"profiled {len(document['methods'])} methods into {path}")


def _products(job: Job) -> list[Product]:
    """A large square product, and the widest one of a block at full resolution."""
    facts = job.subject.facts
    length = job.subject.tokens + facts.text_tokens
    square = SQUARE if job.subject.device == "cuda" else 256
    return [(square,) * 3, (length, facts.hidden, facts.mlp_ratio * facts.hidden)]


def _say(job: Job, what: str) -> None:
    print(f"{job.budget.spent:6.1f} s  {what}", file=sys.stderr, flush=True)
