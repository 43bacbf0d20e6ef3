"""A result of ``fresco-trt bench`` as a page shows it: quality over speed, and its rows.

Reads the document that :mod:`fresco_trt.bench.job` stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fresco_trt.bench.figures import AXES, QUALITIES
from fresco_trt.bench.methods import COLOURS
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.stages import StagePlan
from fresco_trt.report.charts import INK, Mark, legend, pareto
from fresco_trt.report.html import Html, folded, join, table, tag
from fresco_trt.report.reading import Stored, parsed, read_document

WHAT = "--bench, a result of 'fresco-trt bench'"
MOST_ROWS = 2000

Positive = Annotated[float, Field(gt=0, lt=1e9)]
Figure = Annotated[float, Field(gt=-1e9, lt=1e9)]
Words = Annotated[str, Field(max_length=1000)]


class Row(Stored):
    """One point of the bench; None where nothing was measured."""

    method: Words
    model: Words | None = None
    preset: Words | None
    variant: Words | None
    ablation: Words | None
    nfe: Annotated[int, Field(gt=0)]
    speedup: Positive | None
    speedup_low: Positive | None
    speedup_high: Positive | None
    flops_ratio: Positive
    images_per_second: Positive | None
    score: Figure | None
    ssim: Figure | None
    psnr: Figure | None
    peak_mb: Positive | None

    @property
    def name(self) -> str:
        """What it says of itself."""
        return ", ".join(filter(None, (self.method, self.preset, self.variant, self.ablation)))


class BenchMachine(Stored):
    """Where it was measured."""

    processor: Words
    cores: Annotated[int, Field(gt=0)] | None
    gpu: Words | None = None


class BenchResult(Stored):
    """The document, as far as a page reads it."""

    compare: Literal["methods", "ablations", "combinations"]
    instrument: Words
    model: Words
    size: Annotated[list[int], Field(min_length=2, max_length=3)]
    scenes: Annotated[int, Field(gt=0)]
    score: Words
    command: Words
    commit: Words | None
    machine: BenchMachine
    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_ROWS)]


def read_bench(path: Path, plan: StagePlan) -> BenchResult:
    """The result in a file. Raises ReportError, and IncompatibleOptions for another model's."""
    found = parsed(BenchResult, read_document(path, WHAT), path, WHAT)
    if found.model != plan.model:
        raise IncompatibleOptions(
            f"--bench of {found.model} beside a bundle of {plan.model}",
            expected="figures of the bundle's model",
            fix=f"run 'fresco-trt bench --model {plan.model}', or leave --bench out",
        )
    return found


def bench_content(found: BenchResult, plan: StagePlan) -> Html:
    """Quality over speed, each axis that has figures, and every row."""
    own = [row for row in found.rows if _is_own(row, found, plan)]
    axes = [axis for axis in AXES if any(getattr(row, axis) is not None for row in found.rows)]
    measured = [name for name in QUALITIES if any(getattr(r, name) is not None for r in found.rows)]
    charts = [
        pareto(list(_marks(found.rows, own, axis, quality)), AXES[axis], QUALITIES[quality])
        for quality in measured
        for axis in axes
    ]
    return join(
        (
            tag("p", tag("code", found.command)),
            tag("p", " ".join(_how(found, plan))),
            legend(_colours(found.rows)),
            tag("div", *charts, class_="charts"),
            tag("p", _own_line(own)),
            folded(f"All {len(found.rows)} rows", _rows(found.rows)),
        )
    )


def _is_own(row: Row, found: BenchResult, plan: StagePlan) -> bool:
    """Whether a row is of the plan that the bundle was built for."""
    named = row.method == "fresco" and row.preset == plan.preset and row.nfe == plan.nfe
    alike = list(plan.size) == found.size and row.ablation is None
    return named and alike and plan.cache is None and row.variant in (None, _stages(plan))


def _stages(plan: StagePlan) -> str:
    return f"{len(plan.stages)} stages"


def _marks(rows: Sequence[Row], own: Sequence[Row], axis: str, quality: str) -> Iterator[Mark]:
    for row in rows:
        x, y = getattr(row, axis), getattr(row, quality)
        if x is not None and y is not None:
            yield Mark(
                x=x,
                y=y,
                group=row.method,
                colour=_colour(row.method),
                hollow=row.ablation is not None,
                ringed=row in own,
                title=f"{row.name}: {x:.2f}x, {QUALITIES[quality]} {y:.3f}",
            )


def _colour(method: str) -> str:
    known = {str(name): colour for name, colour in COLOURS.items()}
    return known.get(method, INK)


def _colours(rows: Iterable[Row]) -> dict[str, str]:
    return {row.method: _colour(row.method) for row in rows}


def _how(found: BenchResult, plan: StagePlan) -> Iterator[str]:
    machine, size = found.machine, "x".join(map(str, found.size))
    where = machine.gpu or f"{machine.cores} cores of {machine.processor}"
    at = f"At commit {found.commit}: " if found.commit else ""
    yield f"{at}{found.scenes} scenes at {size}, {found.instrument} instrument, {where}."
    yield f"Score: {found.score}."
    if list(plan.size) != found.size:
        yield f"The bundle draws {'x'.join(map(str, plan.size))}: its own figures differ."


def _own_line(own: Sequence[Row]) -> str:
    if not own:
        return "The bundle's own plan is not among the rows. Hollow markers are ablations."
    return f"Ringed: {own[0].name}, which is the bundle's plan. Hollow markers are ablations."


def _rows(rows: Iterable[Row]) -> Html:
    columns = ("point", "steps", "speed-up", "fewer FLOPs", "score", "SSIM", "PSNR, dB", "img/s")
    return table("One row a point", (*columns, "peak MB"), map(_cells, rows))


def _cells(row: Row) -> tuple[Any, ...]:
    return (
        row.name,
        row.nfe,
        _interval(row),
        _number(row.flops_ratio, 2),
        _number(row.score, 3),
        _number(row.ssim, 3),
        _number(row.psnr, 1),
        _number(row.images_per_second, 3),
        _number(row.peak_mb, 0),
    )


def _interval(row: Row) -> str:
    if row.speedup is None:
        return ""
    if row.speedup_low is None or row.speedup_high is None:
        return _number(row.speedup, 2)
    return f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
