"""What `fresco-trt profile` shows: a table of places and their shares, gaps, kernels, and files."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from fresco_trt.cli.display import say, table
from fresco_trt.profile.spans import HOST, tenths
from fresco_trt.run.trace import DECODE, ENGINES, TEXT, TRANSITION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Row = Mapping[str, Any]

_HEAD = ("stage", "step", "part")


def profile_tables(document: Mapping[str, Any]) -> None:
    """Everything that a document says, for people."""
    if document["rows"]:
        table(
            _title(document), (*_HEAD, "in engines", "outside", "share"), _lines(document["rows"])
        )
        for line in _sums(document):
            say(line)
    if "device" in document:
        _device_tables(document["device"])
    for engine in document.get("layers", ()):
        say(_layers(engine))
    for note in document.get("notes", ()):
        say(f"note: {note}")
    for name, path in document["files"].items():
        say(f"{name}: {path}")
    for each in document["left_out"]:
        say(f"not written: {each['what']}: {each['reason']}")


def _title(document: Mapping[str, Any]) -> str:
    if document["source"] == "nsys":
        return f"host, by NVTX ranges of {document['requests']} requests, each in the mean"
    width, height = document["size"][:2]
    drawn = "step by step" if document["drawn_by"] == "steps" else "a stage in one launch"
    waits = ", waiting for the device" if document["waits_for_device"] else ""
    return (
        f"{document['model']} {width}x{height}, {document['backend']}: a request of "
        f"{document['requests']} in the mean, {drawn}{waits}"
    )


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line for each step, with what its engines and what the host took, and for all else."""
    grouped = [list(each) for _, each in groupby(rows, _step_or_part)]
    shares = tenths([_nanoseconds(each) for each in grouped])
    for group, share in zip(grouped, shares, strict=True):
        engines = [row for row in group if row["part"] in ENGINES]
        outside = [row for row in group if row["part"] not in ENGINES]
        yield (
            _number(group[0]["stage"]),
            _number(group[0]["step"]),
            ", ".join(row["part"] for row in engines or group),
            _milliseconds(engines),
            _milliseconds(outside),
            f"{share / 10:.1f}%",
        )


def _step_or_part(row: Row) -> tuple[Any, ...]:
    step = row["step"]
    return row["stage"], step, row["part"] if step is None else None


def _sums(document: Mapping[str, Any]) -> Iterator[str]:
    seconds, length = document["seconds"], document["request_seconds"]
    names = ("engines", TEXT, TRANSITION, DECODE, HOST)
    shares = tenths([round(1e9 * seconds[name]) for name in names])
    of = dict(zip(names, shares, strict=True))
    spread = ""
    if length is not None:
        low, high = 1e3 * length["low"], 1e3 * length["high"]
        spread = f" (median {1e3 * length['median']:.4g}, {low:.4g} to {high:.4g})"
    yield f"a request takes {1e3 * seconds['total']:.4g} ms{spread}"
    outside = ", ".join(f"{name} {of[name] / 10:.1f}%" for name in names[1:])
    inside = of["engines"] / 10
    yield f"in engines {inside:.1f}%, outside {100 - inside:.1f}%: {outside}"


def _device_tables(device: Mapping[str, Any]) -> None:
    if not device["rows"]:
        return
    seconds = device["seconds"]
    title = (
        f"GPU, all requests: {1e3 * seconds['busy']:.4g} ms busy, {1e3 * seconds['gaps']:.4g} ms "
        "of gaps"
    )
    rows = [(_number(row["stage"]), _number(row["step"]), row["part"]) for row in device["rows"]]
    table(title, (*_HEAD, "pieces", "ms", "share"), _counted(rows, device["rows"]))
    gaps = [(each["before"], each["after"]) for each in device["gaps"]]
    if gaps:
        table(
            "gaps of the GPU",
            ("after", "before", "count", "ms", "share"),
            _counted(gaps, device["gaps"]),
        )
    kernels = [(each["name"],) for each in device["kernels"]]
    table("kernels", ("name", "calls", "ms", "share"), _counted(kernels, device["kernels"]))


def _counted(cells: Sequence[tuple[str, ...]], rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Lines that begin with these cells, with calls, milliseconds and shares behind."""
    shares = tenths([_nanoseconds([row]) for row in rows])
    for begin, row, share in zip(cells, rows, shares, strict=True):
        yield (*begin, str(row["calls"]), _milliseconds([row]), f"{share / 10:.1f}%")


def _layers(engine: Row) -> str:
    """One engine's layers, by what they multiply in."""
    found = ", ".join(f"{name} {count}" for name, count in engine["precisions"].items())
    products = ", ".join(f"{name} {count}" for name, count in engine["products"].items())
    return (
        f"{engine['engine']}: {engine['layers']} layers by precision: {found or 'not told'}; "
        f"matrix products: {products or 'none told'}"
    )


def _nanoseconds(rows: Iterable[Row]) -> int:
    return sum(round(1e9 * row["seconds"]) for row in rows)


def _milliseconds(rows: Sequence[Row]) -> str:
    return f"{_nanoseconds(rows) / 1e6:.3f} ms" if rows else ""


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
