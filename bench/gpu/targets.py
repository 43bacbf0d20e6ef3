"""What compiled engines are to reach on one H100 or H200, and what a run measured of it.

Each target is a line: the figure, what it should be, met or missed. Pure functions of the stored
document; the floors are those of the matrix products of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.gpu.methods import COMPILED, TRANSFORMER, name_of_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = Mapping[str, Any]

TURBO, CACHED = "fresco turbo, 3 stages", "fresco turbo, 3 stages, hicache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One figure and its bound, a maximum unless ``least``; ``measured`` None: it was not."""

    what: str
    bound: float
    unit: str
    measured: float | None
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is; None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.least else self.measured <= self.bound

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def targets_of(document: Mapping[str, Any]) -> Iterator[Target]:
    """The targets of a run in its precision."""
    rows = {row["method"]: row for row in document["rows"]}
    if document["precision"] == "fp8":
        yield Target(
            what="`turbo` with HiCache, FP8",
            bound=0.35,
            unit="s",
            measured=_seconds(rows.get(CACHED)),
        )
    else:
        yield from _steps(document, rows)
        yield from _pictures(rows)
    yield from _machine(document, rows)


def _steps(document: Mapping[str, Any], rows: Mapping[str, Row]) -> Iterator[Target]:
    """Steps of the engines: of the full grid against torch.compile's, others against floors."""
    ours = _engine_seconds(document)
    compiled = [
        call["seconds"]["median"]
        for row in rows.values()
        if row["method"].startswith(f"{COMPILED}, ") and "cache" not in row["method"]
        for call in row["calls"]
        if call["engine"] == TRANSFORMER
    ]
    full = max(ours, default=0)
    yield Target(
        what=f"a step of {full or 4096} tokens, over torch.compile's",
        bound=1.15,
        unit="x",
        measured=ours[full][0] / compiled[0] if ours and compiled else None,
    )
    for tokens in sorted(ours, reverse=True)[1:] or (1024, 256):
        seconds, floor = ours.get(tokens, (None, None))
        yield Target(
            what=f"a step of {tokens} tokens, over its floor"
            + ("" if floor is None else f" of {1000 * floor:.1f} ms"),
            bound=1.6,
            unit="x",
            measured=None if seconds is None or floor is None else seconds / floor,
        )


def _engine_seconds(document: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """By image tokens: seconds of a whole step, and those it would take at the matmul rate.

    From the requests whose calls were timed one by one; where none were, from calls alone.
    """
    found: dict[int, tuple[float, float]] = {}
    for row in document["rows"]:
        for call in row["calls"]:
            if call["engine"] != TRANSFORMER and call["engine"].endswith("full"):
                seconds = call["seconds"]["median"]
                floor = seconds * call["share_of_matmul"]["median"]
                found.setdefault(call["tokens"], (seconds, floor))
    return found


def _pictures(rows: Mapping[str, Row]) -> Iterator[Target]:
    turbo = rows.get(TURBO)
    speedup = None if turbo is None else turbo["speedup_compiled"]
    yield Target(what="`turbo`", bound=0.70, unit="s", measured=_seconds(turbo))
    yield Target(
        what=f"`turbo` over {name_of_plain(COMPILED, 50)}",
        bound=9.3,
        unit="x",
        measured=None if speedup is None else speedup["median"],
        least=True,
    )
    yield Target(
        what="`turbo` with HiCache", bound=0.50, unit="s", measured=_seconds(rows.get(CACHED))
    )


def _machine(document: Mapping[str, Any], rows: Mapping[str, Row]) -> Iterator[Target]:
    """Memory, the host's share, and the time to build."""
    weights = document.get("memory_of_weights", {}).get("tensors")
    open_ = [each["tensors"] for each in document.get("memory", ())]
    known = weights and open_ and None not in open_
    yield Target(
        what=f"tensors in memory with the engines of {len(open_) or 3} stages, over the weights",
        bound=1.05,
        unit="x",
        measured=max(open_) / weights if known else None,
    )
    shares = [row["host_share"]["median"] for row in rows.values() if "stages" in row["method"]]
    yield Target(
        what="outside engines, the worst of our methods",
        bound=1.0,
        unit="%",
        measured=100 * max(shares) if shares else None,
    )
    compiling = document.get("compiling", {"compiled": 0})
    yield Target(
        what=f"all {len(document.get('build', ())) or 9} engines compiled",
        bound=180.0,
        unit="s",
        measured=compiling["seconds"] if compiling["compiled"] else None,
    )


def _seconds(row: Row | None) -> float | None:
    return None if row is None else float(row["denoise_seconds"]["median"])


def targets_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line a target of some runs, of compiled engines and no dry ones; "" of none."""
    measured = [each for each in documents if _has_targets(each)]
    if not measured:
        return ""
    lines = ["| target | wanted | measured | |", "|---|--:|--:|---|"]
    for document in measured:
        lines += [
            f"| {each.what}{_of(document)} | {'at least' if each.least else 'at most'} "
            f"{each.bound:g} {each.unit} | {_measured(each)} | {each.verdict} |"
            for each in targets_of(document)
        ]
    return "\n".join(lines)


def _has_targets(document: Mapping[str, Any]) -> bool:
    return not document["dry_run"] and document["backend"] != "eager"


def _of(document: Mapping[str, Any]) -> str:
    return (
        ""
        if document["precision"] in ("bf16", "fp32")
        else f" ({document.get('recipe', 'fp8')} engines)"
    )


def _measured(target: Target) -> str:
    return "" if target.measured is None else f"{target.measured:.3g} {target.unit}"
