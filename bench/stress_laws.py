"""What has to hold of the rows of `bench.stress`: each function says how its row breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from bench.clients import CUT, LEFT, RIGHT, SILENT, Outcome

REFUSED = "429 queue_full"
_CLOSED = {SILENT, "503"}
"""How a server that has ended answers: not at all, or by that status."""


def load_laws(row: dict[str, Any]) -> Iterator[str]:
    """All that was asked for or a refusal, nothing lost, and no more memory than before."""
    for part in ("mixed", "overload"):
        yield from _unlawful(row[part], {RIGHT, REFUSED}, leaver={LEFT, REFUSED})
    missing = {kind for kind in ("plain", "stream") if not row["overload"].get(kind, {}).get(RIGHT)}
    yield from (f"overload: no {kind} was answered" for kind in sorted(missing))
    if not any(ends.get(REFUSED) for ends in row["overload"].values()):
        yield "overload: nothing was refused, so that it was no overload"
    if row["memory_growth"] > row["limit"]:
        yield f"memory grew by {row['memory_growth']:.1%}"
    if row["descriptors"]["end"] > row["descriptors"]["warm"]:
        yield f"descriptors are left open: {row['descriptors']}"


def kill_laws(row: dict[str, Any]) -> Iterator[str]:
    """A client has its pictures or an error of its connection, soon, and then a server again."""
    yield from _unlawful(row["in_flight"], {RIGHT, CUT, SILENT})
    if not any(_is(end, {CUT, SILENT}) for ends in row["in_flight"].values() for end in ends):
        yield "no request was cut, so that nothing was killed under load"
    if row["told_seconds"] > row["limit"]:
        yield f"a client was told {row['told_seconds']} s after the kill"
    yield from _unlawful(row["after"], {RIGHT})
    if row["left_in_temporary_folder"]:
        yield f"left behind: {row['left_in_temporary_folder']}"


def drain_laws(row: dict[str, Any]) -> Iterator[str]:
    """What was accepted is answered, nothing else is, and the process ends well and in time."""
    yield from _unlawful(row["accepted"], {RIGHT})
    if not row["answered_after_the_signal"]:
        yield "all was answered before the signal, so that nothing was drained"
    yield from _unlawful(row["newcomers"], _CLOSED, **{"at once": {RIGHT, "429", *_CLOSED}})
    if not row["newcomers"].get("later"):
        yield "nobody came after the signal"
    if any(row["exit_codes"]):
        yield f"exit codes {row['exit_codes']}"
    if row["seconds"] > row["limit"]:
        yield f"it ended {row['seconds']} s after the signal"
    if row["left_in_temporary_folder"]:
        yield f"left behind: {row['left_in_temporary_folder']}"


def counted(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """How many of each kind ended how."""
    found: dict[str, Counter[str]] = {}
    for each in outcomes:
        found.setdefault(each.kind, Counter())[each.end] += 1
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}


def _unlawful(
    ends: dict[str, dict[str, int]], lawful: set[str], **by_kind: set[str]
) -> Iterator[str]:
    for kind, found in ends.items():
        allowed = by_kind.get(kind, {"400", "404"} if kind == "wrong" else lawful)
        for end, number in found.items():
            if not _is(end, allowed):
                yield f"{kind}: {number} ended with {end!r}"


def _is(end: str, allowed: set[str]) -> bool:
    """An end is allowed as it is, or by its first part: a status, or what came before a colon."""
    return bool(allowed & {end, end.partition(":")[0], end.partition(" ")[0]})
