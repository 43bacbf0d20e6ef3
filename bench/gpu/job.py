"""One run of the GPU benchmark, part by part, each within what is left of the time.

Libraries, weights, engines, the plain pipeline, rounds: a part that fails leaves the others what it
had, and what was measured before it is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.gpu.device import Matmul, device_facts, memory_in_use, peak_of_tensors
from bench.gpu.engines import (
    Workshop,
    check_fits,
    engines_of,
    examine,
    place_weights,
    twin,
)
from bench.gpu.fp8_modules import place_fp8_modules
from bench.gpu.libraries import OTHERS, examine_library
from bench.gpu.methods import (
    COMPILED,
    EAGER,
    PlainPipeline,
    compiled_blocks,
    conditioning,
    expected_seconds,
    points_of,
    staged_method,
)
from bench.gpu.report import DRY_RUN, rows_of
from bench.gpu.rounds import MOST_ROUNDS, Budget, Record, fitting, take_rounds
from bench.study import SOURCES
from fresco_trt.backends.base import check_precision
from fresco_trt.bench.engines import kinds_of
from fresco_trt.bench.record import circumstances
from fresco_trt.bench.results_log import sources_digest

if TYPE_CHECKING:
    from pathlib import Path

    from bench.gpu.device import Product
    from bench.gpu.engines import Subject
    from bench.gpu.methods import Method, Point
    from fresco_trt.bench.engines import Kind
    from fresco_trt.plan.signature import GraphSignature

MINUTES = 9.0
BUILDING = 0.6
"""Share of the time after which no more engines are built, so that what there is gets measured."""

WARM_STEPS = 2
SQUARE = 8192


@dataclass(slots=True, kw_only=True)
class Job:
    """One run: what is measured, with what, into what, within which time; and what it has so far:
    seconds of a call of each engine, and of a plain step by whether it is compiled.
    """

    subject: Subject
    workshop: Workshop
    record: Record
    budget: Budget
    rounds: int
    points: tuple[Point, ...]
    engines: Mapping[Kind, GraphSignature]
    call_seconds: dict[Kind, float] = field(default_factory=dict)
    step_seconds: dict[bool, float] = field(default_factory=dict)
    plain: dict[bool, PlainPipeline] = field(default_factory=dict)


def measure(
    subject: Subject,
    *,
    library: str,
    work: Path,
    out: Path,
    dry_run: bool,
    minutes: float = MINUTES,
    rounds: int = MOST_ROUNDS,
) -> dict[str, Any]:
    """Measure within ``minutes``, in ``rounds`` at most, and store under ``out`` what was measured;
    until the end it is beside it, as "NAME-unfinished.json", as it is measured.

    Weights and engines stay in ``work``; what is there of an earlier run is not built again.
    Raises IncompatibleOptions for another library, UnsupportedPrecision for one that it lacks,
    OutOfDeviceMemory for a card that is too small; any later error is kept in the document, in
    words, and ends one part of the run only.
    """
    budget = Budget(seconds=60 * minutes, began=perf_counter())
    facts = device_facts(subject.device)
    if facts["bytes"] is not None:
        check_fits(subject, facts["bytes"])
    workshop = Workshop(subject, library, work)
    check_precision(workshop.backend.describe(), subject.precision)
    points = points_of(subject.facts, subject.size)
    job = Job(
        subject=subject,
        workshop=workshop,
        record=Record(out, _head(subject, facts, library, minutes, dry_run)),
        budget=budget,
        rounds=rounds,
        points=points,
        engines=engines_of(subject.facts, [point.plan for point in points if point.plan]),
    )
    _say(job, f"storing what is measured in {job.record.unfinished}")
    with closing(workshop):
        _run(job)
    job.record.finish()
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
    with record.phase("weights"):
        record.keep("weights", place_weights(subject, job.workshop.folder))
    transformer: Any = None
    with record.phase("loading"):
        record.keep("memory_before", memory_in_use(subject.device))
        transformer = job.workshop.transformer()
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
    if transformer is None or not job.subject.has_fp8_modules:
        return transformer
    network: Any = None
    with job.record.phase("quantising"):
        made = place_fp8_modules(job.subject, transformer, job.workshop.engines)
        job.record.keep("fp8_modules", made)
        network = job.workshop.network()
    return network


def _own_library(job: Job) -> dict[str, Any]:
    """What the engines' library is here, and what it lacks."""
    backend = job.workshop.backend
    about = backend.describe()
    missing = [{"what": each.what, "fix": each.fix} for each in backend.check()]
    return {"name": about.name, "version": about.version, "missing": missing}


def _build(job: Job, network: Any) -> None:
    """Engines of most tokens first, until the time for building is used up."""
    with job.record.attempt("compiling"):
        job.record.keep("compiling", job.workshop.prepare(job.engines, network))
        _say(job, "compiled what the engines share")
    for kind, signature in job.engines.items():
        late = job.budget.spent > BUILDING * job.budget.seconds
        if late and not job.workshop.has(kind):
            job.record.drop(f"engine {kind.key}", "no time was left to build it")
            continue
        with job.record.attempt(f"engine {kind.key}"):
            job.record.add("build", job.workshop.build(kind, signature, network))
            _say(job, f"built {kind.key}")


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
    """Both plain pipelines over the engines' weights, warmed up, and the seconds of a step."""
    inputs = conditioning(job.subject)
    for compiled in (False, True):
        with job.record.attempt(f"plain pipeline, {'compiled' if compiled else 'eager'}"):
            own = twin(transformer)
            pipeline = PlainPipeline(compiled_blocks(own) if compiled else own, job.subject, inputs)
            draw = pipeline.method(WARM_STEPS)
            draw(0)
            _draw_at_peak(job, COMPILED if compiled else EAGER, draw)
            job.step_seconds[compiled] = draw(0).seconds / WARM_STEPS
            job.plain[compiled] = pipeline
            _say(job, "warmed up the plain pipeline" + (", compiled" if compiled else ""))


def _measure(job: Job) -> None:
    """What there is time for, warmed up, in rounds; the rows anew after each of them."""
    costs = {point.name: _cost(job, point) for point in job.points}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    chosen = [point for point in _fitting(job, known) if point.name in known]
    methods: dict[str, Method] = {}
    for point in chosen:
        with job.record.attempt(point.name):
            method = _method(job, point)
            if point.plan is not None:  # the plain pipelines are warm
                _draw_at_peak(job, point.name, method)
            methods[point.name] = method
    _say(job, f"measuring {len(methods)} methods side by side")
    matmul = Matmul(job.subject.device, job.subject.dtype, _products(job))
    take_rounds(
        methods,
        known,
        matmul.rates,
        job.budget,
        job.record,
        most=job.rounds,
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
    )


def _cost(job: Job, point: Point) -> float | None:
    return expected_seconds(point, job.call_seconds, job.step_seconds)


def _fitting(job: Job, known: Mapping[str, float]) -> list[Point]:
    """The points that there is time for; the others are recorded as dropped."""
    groups = dict.fromkeys(point.group for point in job.points)
    costs = [
        (group, sum(known.get(point.name, 0.0) for point in job.points if point.group == group))
        for group in groups
    ]
    kept = fitting(costs, job.budget.left)
    for point in job.points:
        if point.name not in known:
            job.record.drop(point.name, "what it runs on was not built, or failed")
        elif point.group not in kept:
            job.record.drop(point.name, f"no time for the group {point.group!r}")
    return [point for point in job.points if point.group in kept]


def _method(job: Job, point: Point) -> Method:
    if point.plan is None:
        return job.plain[point.compiled].method(point.steps)
    subject, plan = job.subject, point.plan
    runners = {
        name: job.workshop.runner(kind, job.engines[kind]) for name, kind in kinds_of(plan).items()
    }
    return staged_method(plan, subject, runners, conditioning(subject))


def _draw_at_peak(job: Job, name: str, method: Method) -> None:
    """One picture, whose seconds are not counted; the memory that it takes at its highest is."""
    peak = peak_of_tensors(job.subject.device, lambda: method(0))
    job.record.add("peaks", {"method": name, "tensors": peak})


def _products(job: Job) -> list[Product]:
    """A large square product, and the widest one of a block at full resolution."""
    facts = job.subject.facts
    length = job.subject.tokens + facts.text_tokens
    square = SQUARE if job.subject.device == "cuda" else 256
    return [(square,) * 3, (length, facts.hidden, facts.mlp_ratio * facts.hidden)]


def _say(job: Job, what: str) -> None:
    print(f"{job.budget.spent:6.1f} s  {what}", file=sys.stderr, flush=True)
