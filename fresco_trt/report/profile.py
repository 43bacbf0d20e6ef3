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
from fresco_trt.report.charts import PART_COLOURS, Bar, legend, part_colour, timeline
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
    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_ROWS)]


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
    """A request in the mean as a bar, and its time by stage and part."""
    names = _parts(found.rows)
    columns = ("stage", *names, "all", "share")
    return join(
        (
            tag("p", _how(found)),
            legend({name: part_colour(name) for name in names}),
            timeline(list(_bars(found.rows))),
            table("Milliseconds of a request", columns, _by_stage(found, names)),
            folded(f"All {len(found.rows)} places", _places(found.rows)),
        )
    )


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
    known = [part for part in PART_COLOURS if part in there]
    return [*known, *(part for part in there if part not in PART_COLOURS)]


def _by_stage(found: ProfileResult, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for stage in dict.fromkeys(row.stage for row in found.rows):
        own = [row for row in found.rows if row.stage == stage]
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
