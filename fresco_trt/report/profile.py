"""A document of ``fresco-trt profile`` as a page shows it: where the time of a request goes.

Reads what :mod:`fresco_trt.profile` stores, recorded here or read from an Nsight export.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.stages import StagePlan
from fresco_trt.profile.timeline import COLOURS
from fresco_trt.report.charts import Bar, legend, part_colour, timeline
from fresco_trt.report.html import Html, folded, join, table, tag
from fresco_trt.report.reading import Stored, parsed, read_document

WHAT = "--profile, a profile.json of 'fresco-trt profile'"
MOST_ROWS = 20_000

Seconds = Annotated[float, Field(ge=0, lt=1e9)]
Share = Annotated[float, Field(ge=0, le=1.001)]
Number = Annotated[int, Field(ge=1, lt=10**9)]
Words = Annotated[str, Field(max_length=1000)]


class Row(Stored):
    """What a request spends at one place, in the mean."""

    stage: Number | None
    step: Number | None
    part: Words
    calls: Seconds
    seconds: Seconds
    share: Share


class Spread(Stored):
    """Seconds of a request."""

    median: Seconds
    low: Seconds
    high: Seconds


_SPREAD = ("low", "median", "high")


class ProfileMachine(Stored):
    """Where it was taken."""

    processor: Words
    cores: Number | None
    gpu: Words | None = None


class Kernel(Stored):
    """What one kernel took of all kernels' time."""

    name: Annotated[str, Field(max_length=100_000)]  # C++ spells its templates out
    calls: Seconds
    seconds: Seconds
    share: Share


class Gap(Stored):
    """The time in which a device had nothing to do, between two kinds of work."""

    before: Words
    after: Words
    calls: Seconds
    seconds: Seconds
    share: Share


class Extent(Stored):
    """Seconds of a device, from its first work to its last."""

    span: Seconds
    busy: Seconds
    gaps: Seconds


class Device(Stored):
    """What an Nsight export says of a GPU, over all requests together."""

    seconds: Extent
    rows: Annotated[list[Row], Field(max_length=MOST_ROWS)]
    kernels: Annotated[list[Kernel], Field(max_length=MOST_ROWS)]
    gaps: Annotated[list[Gap], Field(max_length=MOST_ROWS)]


class ProfileResult(Stored):
    """The document, as far as a page reads it. An Nsight export says less of what was drawn."""

    version: Annotated[Literal[1], Field(alias="schema")]
    source: Words
    model: Words | None = None
    backend: Words | None = None
    machine: ProfileMachine | None = None
    requests: Annotated[int, Field(ge=0)]
    request_seconds: Spread | None
    outside_engines: Share
    rows: Annotated[list[Row], Field(max_length=MOST_ROWS)]
    device: Device | None = None


def read_profile(path: Path, plan: StagePlan) -> ProfileResult:
    """The profile in a file. Raises ReportError, and IncompatibleOptions for another model's."""
    found = parsed(ProfileResult, read_document(path, WHAT), path, WHAT)
    if found.model not in (None, plan.model):
        raise IncompatibleOptions(
            f"--profile of {found.model} beside a bundle of {plan.model}",
            expected="a profile of the bundle's model",
            fix="run 'fresco-trt profile' with this bundle, or leave --profile out",
        )
    return found


def profile_content(found: ProfileResult) -> Html:
    """A request in the mean as a bar, and its time by stage and part; then a GPU's, if known."""
    parts: list[Html] = []
    if found.rows:
        parts = [
            tag("p", _how(found)),
            *_shown(found.rows, "Milliseconds of a request"),
            folded(f"All {len(found.rows)} places", _places(found.rows)),
        ]
    return join((*parts, *(() if found.device is None else _device(found.device))))


def _shown(rows: Sequence[Row], caption: str) -> Iterator[Html]:
    """Rows as a bar with its legend, and as a table."""
    names = _parts(rows)
    yield legend({name: part_colour(name) for name in names})
    yield timeline(list(_bars(rows)))
    yield table(caption, ("stage", *names, "all", "share"), _by_stage(rows, names))


def _device(found: Device) -> Iterator[Html]:
    """Where a GPU's time went, over all requests together."""
    extent = found.seconds
    share = f" ({extent.gaps / extent.span:.1%})" if extent.span else ""
    yield tag("h3", "On the GPU")
    yield tag(
        "p",
        f"Busy for {1e3 * extent.busy:.4g} ms of {1e3 * extent.span:.4g} ms; "
        f"{1e3 * extent.gaps:.4g} ms{share} without work.",
    )
    if found.rows:
        yield from _shown(found.rows, "Milliseconds of all requests together")
    sums = [(each.name, *_sums(each)) for each in found.kernels]
    yield folded(f"{len(sums)} kernels", table("The longest in all", ("kernel", *_SUMS), sums))
    sums = [(f"{each.before} to {each.after}", *_sums(each)) for each in found.gaps]
    yield folded(f"{len(sums)} gaps", table("The longest in all", ("between", *_SUMS), sums))


_SUMS = ("calls", "milliseconds", "share")


def _sums(of: Kernel | Gap) -> tuple[str, str, str]:
    return f"{of.calls:g}", f"{1e3 * of.seconds:.4g}", f"{of.share:.1%}"


def _how(found: ProfileResult) -> str:
    said = f"{found.requests} requests, a mean one of them below"
    if found.request_seconds is not None:
        low, middle, high = (1e3 * getattr(found.request_seconds, name) for name in _SPREAD)
        said += f"; the median one took {middle:.4g} ms, all of them {low:.4g} to {high:.4g} ms"
    words = [said, f"{100 * found.outside_engines:.1f}% of the time is outside engines"]
    if found.machine is not None:
        machine = found.machine
        words.append(machine.gpu or f"{machine.cores} cores of {machine.processor}")
    return f"{'. '.join(words)}."


def _bars(rows: Iterable[Row]) -> Iterator[Bar]:
    for row in rows:
        numbers = (("stage", row.stage), ("step", row.step))
        where = [f"{kind} {number}" for kind, number in numbers if number]
        title = f"{', '.join((*where, row.part))}: {1e3 * row.seconds:.4g} ms, {row.share:.1%}"
        yield Bar(seconds=row.seconds, stage=row.stage, part=row.part, title=title)


def _parts(rows: Sequence[Row]) -> list[str]:
    """The parts there are, those that this version knows first."""
    there = dict.fromkeys(row.part for row in rows)
    known = [part for part in COLOURS if part in there]
    return [*known, *(part for part in there if part not in COLOURS)]


def _by_stage(rows: Sequence[Row], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for stage in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == stage]
        cells = [sum(row.seconds for row in own if row.part == name) for name in names]
        yield (
            "outside stages" if stage is None else stage,
            *(f"{1e3 * cell:.4g}" if cell else "" for cell in cells),
            f"{1e3 * sum(cells):.4g}",
            f"{sum(row.share for row in own):.1%}",
        )


def _places(rows: Iterable[Row]) -> Html:
    columns = ("stage", "step", "part", "calls", "milliseconds", "share")
    return table(
        "In the order of a request",
        columns,
        (
            (
                "" if row.stage is None else row.stage,
                "" if row.step is None else row.step,
                row.part,
                f"{row.calls:g}",
                f"{1e3 * row.seconds:.4g}",
                f"{row.share:.2%}",
            )
            for row in rows
        ),
    )
