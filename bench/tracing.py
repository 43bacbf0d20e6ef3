"""What spans cost: nobody profiling, a recorder, NVTX ranges, each beside a request without them.

    python -m bench.tracing --out bench/results/tracing.json

Nobody profiling: a span then takes so many nanoseconds, and a request opens so many of them; their
product over the request's own time is the share. The others are ratios of requests that are drawn
in turns, in one run.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from fresco_trt.bench.record import circumstances, median_and_range, store
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.profile import nvtx_ranges
from fresco_trt.profile.spans import Recorder
from fresco_trt.run.trace import recording, span

MODEL, PROMPT = "flux-tiny", "a red apple"
SPANS = 200_000
LIMIT = 0.005
"""The share of a request that spans may take while nobody profiles."""

Scope = Callable[[], AbstractContextManager[object]]


def span_seconds(count: int = SPANS) -> float:
    """Seconds of a span that nobody records, an empty loop's left in."""
    began = perf_counter()
    for number in range(count):
        with span("step", number):
            pass
    return (perf_counter() - began) / count


def take_turns(
    draw: Callable[[], object], scopes: Mapping[str, Scope], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a request within each scope, round by round; who begins moves on."""
    names = list(scopes)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            with scopes[name]():
                began = perf_counter()
                draw()
                taken[name].append(perf_counter() - began)
    return taken


def rows_of(taken: Mapping[str, list[float]], spans: int, seconds: float) -> list[dict[str, Any]]:
    """A row for nobody profiling, and one for each way to, as ratios to the requests of the same
    round that nobody recorded.
    """
    plain = taken["nobody"]
    share = spans * seconds / statistics.median(plain)
    rows: list[dict[str, Any]] = [
        {
            "sink": "nobody",
            "spans": spans,
            "span_seconds": seconds,
            "request_seconds": median_and_range(plain),
            "share": share,
            "limit": LIMIT,
            "within_limit": share < LIMIT,
        }
    ]
    for name in taken.keys() - {"nobody"}:
        ratios = [own / base for own, base in zip(taken[name], plain, strict=True)]
        rows.append({"sink": name, "ratio": median_and_range(ratios)})
    return sorted(rows, key=lambda row: (row["sink"] != "nobody", row["sink"]))


def main(
    rounds: Annotated[int, typer.Option(help="Requests of each kind.")] = 15,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("bench/results/tracing.json"),
) -> None:
    """Measure what spans cost, and store the figures."""
    from fresco_trt.lower.build import BuildRequest, run

    scopes: dict[str, Scope] = {"nobody": nullcontext, "recorder": lambda: recording(Recorder())}
    if find_spec("nvtx") is not None:
        scopes["nvtx, no tool attached"] = nvtx_ranges
    with tempfile.TemporaryDirectory() as folder:
        built = run(
            BuildRequest(
                model=MODEL,
                stages=3,
                preset="turbo",
                size=(128, 128),
                backend="eager",
                out=Path(folder) / "bundle",
            )
        )
        with FrescoPipeline.over(built.bundle) as pipe:

            def draw() -> object:
                return pipe(PROMPT, record_steps=True)

            with recording(counted := Recorder()):
                draw()
            taken = take_turns(draw, scopes, rounds)
            rows = rows_of(taken, len(counted.spans), span_seconds())
    store({**circumstances(), "model": MODEL, "rounds": rounds, "rows": rows}, out)
    print(f"stored {out}: nobody profiling costs {rows[0]['share']:.5%} of a request")


if __name__ == "__main__":
    typer.run(main)
