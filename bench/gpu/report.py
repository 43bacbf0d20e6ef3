"""What a run's rounds come to: one row a method, and the tables of them.

    python -m bench.gpu.report RESULT.json

prints them. Pure functions of the stored document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.gpu.methods import CACHED, COMPILED, EAGER, TRANSFORMER, flops_of, name_of_plain
from bench.gpu.targets import targets_table
from fresco_trt.bench.quality import median_interval
from fresco_trt.plan.cost import flops_of_bypass, flops_of_step
from fresco_trt.run.request import engine_name

if TYPE_CHECKING:
    from bench.gpu.methods import Point
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

    Row = dict[str, Any]

DRY_RUN = "Dry run at tiny dimensions: these figures say nothing about speed."
DIGITS = 6


# --- rows -------------------------------------------------------------------------------------


def rows_of(
    points: Sequence[Point],
    rounds: Sequence[Mapping[str, Any]],
    facts: ModelFacts,
    tokens: int,
    *,
    baseline_steps: int,
    peaks: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """One row for each point that was measured, in the points' order.

    ``tokens`` are the full grid's. Speed-ups are over the plain pipeline with ``baseline_steps``,
    eager and compiled, round by round, and missing where that was not measured. ``peaks`` are those
    of memory, by a point's pipeline or its name.
    """
    measured = {name for each in rounds for name in each["methods"]}
    return [
        {
            "method": point.name,
            "group": point.group,
            "steps": point.steps,
            "flops": flops_of(point, facts, tokens),
            **_times(point.name, rounds),
            "speedup": _speedup(point.name, name_of_plain(EAGER, baseline_steps), rounds),
            "speedup_compiled": _speedup(
                point.name, name_of_plain(COMPILED, baseline_steps), rounds
            ),
            "peak_bytes": _peak(peaks.get(point.pipeline or point.name)),
            "calls": _calls(point, rounds, facts, tokens),
            "stages": _stages(point, rounds, facts, tokens),
            "by_stages": all(each["by_stages"] for each in _of(point.name, rounds)),
            "finite": all(each["finite"] for each in _of(point.name, rounds)),
        }
        for point in points
        if point.name in measured
    ]


def _peak(found: Mapping[str, Any] | None) -> Row:
    """Most bytes while it drew: of tensors on the card, and of the process on the host."""
    names = ("tensors", "host")
    return {name: None if found is None else found[name] for name in names}


def _of(name: str, rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each["methods"][name] for each in rounds if name in each["methods"]]


def _times(name: str, rounds: Sequence[Mapping[str, Any]]) -> Row:
    found = _of(name, rounds)
    host = [each["seconds"] - each["engine_seconds"] for each in found]
    shares = [
        1 - each["engine_seconds"] / each["seconds"] if each["seconds"] else 0.0 for each in found
    ]
    return {
        "rounds": len(found),
        "denoise_seconds": summary([each["seconds"] for each in found]),
        "host_seconds": summary(host),
        "host_share": summary(shares),
    }


def _speedup(name: str, reference: str, rounds: Sequence[Mapping[str, Any]]) -> Row | None:
    pairs = [
        (each["methods"][reference], each["methods"][name])
        for each in rounds
        if {name, reference} <= each["methods"].keys()
    ]
    if not pairs:
        return None
    return summary([theirs["seconds"] / ours["seconds"] for theirs, ours in pairs])


def _calls(
    point: Point, rounds: Sequence[Mapping[str, Any]], facts: ModelFacts, tokens: int
) -> list[Row]:
    """Each engine of a point, or its transformer: seconds a call, and the share of the roofline.

    The share is of the fastest matrix product in the same round. An engine whose calls were not
    timed one by one is left out.
    """
    found = []
    for name, (count, flops) in _work(point, facts, tokens).items():
        lists = _inside(point, rounds, name)
        if not lists:
            continue
        medians = [(summary(seconds)["median"], rate) for seconds, rate in lists]
        found.append(
            {
                "engine": name,
                "tokens": count,
                "flops": flops,
                "seconds": summary([seconds for seconds, _ in medians]),
                "flops_per_second": summary([flops / seconds for seconds, _ in medians]),
                "share_of_matmul": summary([flops / seconds / rate for seconds, rate in medians]),
            }
        )
    return found


def _stages(
    point: Point, rounds: Sequence[Mapping[str, Any]], facts: ModelFacts, tokens: int
) -> list[Row]:
    """Of a point whose stages were timed whole: seconds of each of them."""
    engines = {TRANSFORMER, *_work(point, facts, tokens)}
    names = dict.fromkeys(
        name for each in _of(point.name, rounds) for name in each["inside"] if name not in engines
    )
    return [
        {
            "stage": name,
            "seconds": summary([sum(seconds) for seconds, _ in _inside(point, rounds, name)]),
        }
        for name in names
    ]


def _inside(
    point: Point, rounds: Sequence[Mapping[str, Any]], name: str
) -> list[tuple[list[float], float]]:
    """Seconds of every call of that name in a round, and the round's fastest matrix product."""
    return [
        (each["methods"][point.name]["inside"][name], max(each["matmul"].values()))
        for each in rounds
        if name in each["methods"].get(point.name, {"inside": {}})["inside"]
    ]


def _work(point: Point, facts: ModelFacts, tokens: int) -> dict[str, tuple[int, float]]:
    """Image tokens and FLOPs of one call of each engine of a point, by the engine's name."""
    plan = point.plan
    if point.pipeline in CACHED:
        return {}  # its calls are of two kinds, and which is which is not said
    if plan is None:
        return {TRANSFORMER: (tokens, flops_of_step(facts, tokens))}
    return {
        engine_name(index, action): (plan.tokens[index], _price(facts, plan, index, action))
        for index, action in plan.graphs
    }


def _price(facts: ModelFacts, plan: StagePlan, index: int, action: str) -> float:
    tokens = plan.tokens[index]
    if action == "bypass":
        return flops_of_bypass(facts, tokens)
    text = plan.text_tokens(facts.text_tokens)[index]
    return flops_of_step(facts, tokens, refined=plan.aligned[index], text_tokens=text)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, and the 95% interval of the true one (under six values their whole range)."""
    median, low, high = median_interval(values)
    return {
        "median": _rounded(median),
        "low": _rounded(low),
        "high": _rounded(high),
        "count": len(values),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# --- the table --------------------------------------------------------------------------------

_COLUMNS = (
    "method",
    "denoise seconds (95%)",
    "speed-up over eager",
    "over torch.compile",
    "fewer FLOPs",
    "outside engines",
    "full step of the last stage",
    "of the matmul rate",
    "GPU peak, GB",
    "host peak, GB",
)


def gpu_table(document: Mapping[str, Any]) -> str:
    """Markdown: one row a method, and lines on the card, the engines and what was left out.

    A dry run says in its first line that it is one.
    """
    rows = document["rows"]
    baseline = next((row["flops"] for row in rows), 0.0)
    lines = [
        *([f"**{DRY_RUN}**", ""] if document["dry_run"] else []),
        f"| {' | '.join(_COLUMNS)} |",
        f"|---|{'--:|' * (len(_COLUMNS) - 1)}",
        *(f"| {' | '.join(_cells(row, baseline))} |" for row in rows),
        "",
        " ".join(_remarks(document)),
    ]
    return "\n".join(lines)


def _cells(row: Row, baseline: float) -> tuple[str, ...]:
    whole = [call for call in row["calls"] if not call["engine"].endswith("bypass")]
    peak = row.get("peak_bytes") or {"tensors": None, "host": None}
    return (
        row["method"],
        _figure(row["denoise_seconds"], 3),
        _figure(row["speedup"], 2),
        _figure(row["speedup_compiled"], 2),
        "" if row["flops"] is None else f"{baseline / row['flops']:.2f}",
        f"{100 * row['host_share']['median']:.1f}%",
        f"{1000 * whole[-1]['seconds']['median']:.1f} ms" if whole else "",
        f"{100 * whole[-1]['share_of_matmul']['median']:.0f}%" if whole else "",
        *("" if bytes_ is None else f"{bytes_ / 1e9:.2f}" for bytes_ in peak.values()),
    )


def _figure(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return ""
    low, high = found["low"], found["high"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


_STEP_COLUMNS = (
    "one full step",
    "image tokens",
    "milliseconds (95%)",
    "TFLOP/s",
    "of the matmul rate",
)


def step_table(document: Mapping[str, Any]) -> str:
    """Markdown: a full step of the plain transformer, eager and compiled, and of every stage's
    engine, each where it was measured first.
    """
    found: dict[tuple[str, int], Row] = {}
    for row in document["rows"]:
        plain = row["method"].rpartition(",")[0]
        for call in row["calls"]:
            label = plain if call["engine"] == TRANSFORMER else f"engine of {document['backend']}"
            if not call["engine"].endswith("bypass"):
                found.setdefault((label, call["tokens"]), call)
    lines = [
        f"| {label} | {tokens} | {_figure(_scaled(call['seconds'], 1e3), 2)} "
        f"| {call['flops_per_second']['median'] / 1e12:.1f} "
        f"| {100 * call['share_of_matmul']['median']:.0f}% |"
        for (label, tokens), call in found.items()
    ]
    head = [f"| {' | '.join(_STEP_COLUMNS)} |", f"|---|{'--:|' * (len(_STEP_COLUMNS) - 1)}"]
    return "\n".join([*([f"**{DRY_RUN}**", ""] if document["dry_run"] else []), *head, *lines])


def _scaled(found: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in found.items()}


def _remarks(document: Mapping[str, Any]) -> list[str]:
    device, layers = document["device"], document["layers"]
    width, height = document["size"]
    said = [
        f"`{document['command']}` at {document['commit']}: {device['name'] or 'a CPU'}, "
        f"`{document['model']}` at {width}x{height} with random weights, {layers[0]}+{layers[1]} "
        f"blocks, {document['precision']}, engines of {document['backend']}, torch "
        f"{document['machine']['torch']}. In brackets: 95% intervals of the median, under six "
        "rounds the whole range. Random weights draw no picture: nothing here is about quality."
    ]
    said += _on_engines(document)
    if not document["complete"]:
        said.append("The run did not end.")
    if document["dropped"]:
        said.append(
            "Not measured: " + "; ".join(each["what"] for each in document["dropped"]) + "."
        )
    if document["failed"]:
        said.append("Failed: " + "; ".join(each["what"] for each in document["failed"]) + ".")
    return said


def _on_engines(document: Mapping[str, Any]) -> list[str]:
    """Sentences on build time, memory and disk, of what was measured."""
    found = []
    seconds: dict[int, float] = {}
    for each in document.get("build", ()):
        if each["seconds"] is not None:
            seconds[each["tokens"]] = seconds.get(each["tokens"], 0.0) + each["seconds"]
    if seconds:
        built = ", ".join(f"{total:.0f} s of {tokens} tokens" for tokens, total in seconds.items())
        found.append(f"Engines built: {built}.")
    compiling = document.get("compiling")
    if compiling is not None and compiling["compiled"]:
        found.append(
            f"{compiling['compiled']} pieces compiled side by side in {compiling['seconds']:.0f} s"
            f" on {compiling['cores']} cores."
        )
    memory = [
        f"{each['all'] / 1e9:.2f} GB with {each['stages']}" for each in document.get("memory", ())
    ]
    if memory:
        found.append(f"In use with the engines of this many stages: {', '.join(memory)}.")
    disk = document.get("disk", ())
    if disk:
        weights, code = disk[-1]["weights"] / 1e9, disk[-1]["code"] / 1e6
        found.append(f"On disk {weights:.2f} GB of weights and {code:.1f} MB of code.")
    return found


def tables_of(document: Mapping[str, Any]) -> list[str]:
    """Every table of a run, in the order in which it is shown."""
    return list(
        filter(None, (gpu_table(document), step_table(document), targets_table([document])))
    )


def show(document: Mapping[str, Any]) -> None:
    """Print the tables on the terminal, and in full what was dropped and what failed."""
    print(*tables_of(document), sep="\n\n")
    for key, word in (("dropped", "not measured"), ("failed", "failed")):
        for each in document[key]:
            print(f"{word}: {each['what']}: {each['reason']}")


def main(path: Annotated[Path, typer.Argument(help="A stored result.")]) -> None:
    """Print the tables of a stored result."""
    print(*tables_of(json.loads(path.read_text(encoding="utf-8"))), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
