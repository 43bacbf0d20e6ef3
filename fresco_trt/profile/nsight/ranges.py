"""The NVTX ranges of an export that are ours, and which of them a moment of a thread lies in.

Between the tables and their sums. Ranges and moments are read in the order of their threads and
times, side by side, so that memory holds the ranges that are open at one moment and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fresco_trt.errors import ExportInvalid
from fresco_trt.profile.nsight.export import RUNTIMES, STRINGS, Export
from fresco_trt.profile.nvtx import DOMAIN
from fresco_trt.profile.spans import Place, place_within
from fresco_trt.run.trace import HOLDERS, NAMES, REQUEST, STAGE, STEP

PUSH_POP, DOMAIN_MADE = 59, 75
"""Event types of NVTX_EVENTS."""

DEEPEST = 100
"""Ranges in one another: ours are four deep, and eight with a request in a callback of another."""

TABLE = "NVTX_EVENTS"
PAYLOADS = ("int64Value", "uint64Value", "int32Value", "uint32Value")
_PROCESS = 1 << 24
"""Threads of a process have its number above these bits."""


class Range(NamedTuple):
    """A range of a thread in nanoseconds, ``request`` counted from 1 in the order of the threads
    and their times, 0 outside of any; and the range that it lies in.
    """

    thread: int
    begin: int
    end: int
    name: str
    number: int
    request: int
    place: Place
    parent: Range | None


class Moment(NamedTuple):
    """A time on a thread, and what happened then."""

    thread: int
    time: int
    what: tuple[object, ...]


@dataclass(slots=True)
class _Counted:
    """Requests so far, and in the last one stages and steps: for exports without payloads."""

    requests: int = 0
    stages: int = 0
    steps: int = 0

    def number(self, name: str, payload: int) -> int:
        """The number of a range that begins: its payload, or else its place in the order."""
        if name == REQUEST:
            self.requests, self.stages, self.steps = self.requests + 1, 0, 0
        elif name == STAGE:
            self.stages += 1
            return payload if payload > 0 else self.stages
        elif name == STEP:
            self.steps += 1
            return payload if payload > 0 else self.steps
        return payload


def by_thread(export: Export) -> bool:
    """Whether ranges and calls say which thread they are of. Else all are taken for one."""
    tables = (TABLE, *(table for table in RUNTIMES if table in export.tables))
    return all(export.has(table, "globalTid") for table in tables)


def ranges_of(export: Export) -> Iterator[Range]:
    """Our ranges, thread by thread in the order of their begin, the outer before the inner.

    Those that never ended are left out. Raises ExportInvalid for ranges too deep in one another.
    """
    stack: list[Range] = []
    counted = _Counted()
    for thread, begin, end, name, payload in _rows(export):
        while stack and (stack[-1].thread != thread or stack[-1].end <= begin):
            stack.pop()
        if len(stack) >= DEEPEST:
            raise ExportInvalid(
                f"NVTX ranges {DEEPEST} deep in one another",
                expected=f"at most 4 of the domain {DOMAIN}",
                fix="record requests one after another on each thread",
            )
        number = counted.number(name, payload)
        parent = stack[-1] if stack else None
        request = counted.requests if name == REQUEST else parent.request if parent else 0
        lineage = [(name, number), *((each.name, each.number) for each in reversed(stack))]
        place = place_within(name, lineage)
        # The outer one may end first, where samplers took turns on a thread.
        end = min(end, parent.end) if parent else end
        stack.append(Range(thread, begin, end, name, number, request, place, parent))
        yield stack[-1]


def innermost(ranges: Iterator[Range], moments: Iterator[Moment]) -> Iterator[tuple[Moment, Range]]:
    """The moments that lie in ranges, each with the innermost; both come by thread, then time."""
    stack: list[Range] = []
    coming = next(ranges, None)
    for moment in moments:
        here = (moment.thread, moment.time)
        while coming is not None and (coming.thread, coming.begin) <= here:
            while stack and (stack[-1].thread, stack[-1].end) < (coming.thread, coming.begin):
                stack.pop()
            stack.append(coming)
            coming = next(ranges, None)
        while stack and (stack[-1].thread, stack[-1].end) < here:
            stack.pop()
        if stack and stack[-1].thread == moment.thread:
            yield moment, stack[-1]


def _rows(export: Export) -> Iterator[tuple[int, int, int, str, int]]:
    """Thread, begin, end, name and payload of our ranges."""
    if not export.has(TABLE, "start", "end"):
        return
    name = _name(export, "n")
    if name is None:
        return
    payloads = [f"n.{each}" for each in PAYLOADS if export.has(TABLE, each)]
    payload = f"coalesce({', '.join(payloads)}, 0)" if payloads else "0"
    thread = "n.globalTid" if by_thread(export) else "0"
    kind = f"n.eventType = {PUSH_POP}" if export.has(TABLE, "eventType") else "TRUE"
    domain, numbers = _in_domain(export)
    rows = export.rows(
        f'SELECT {thread}, n.start, n."end", {name}, {payload} FROM {TABLE} n{_join(export)}'
        f" WHERE {name} IN ({', '.join('?' * len(NAMES))}) AND {kind} AND {domain}"
        " AND typeof(n.start) = 'integer' AND typeof(n.\"end\") = 'integer'"
        f" AND n.\"end\" >= n.start AND typeof({thread}) = 'integer'"
        f" ORDER BY 1, 2, 3 DESC, {_outer_first(name)}",
        (*NAMES, *numbers),
    )
    for thread_of, begin, end, text, value in rows:
        yield thread_of, begin, end, text, value if isinstance(value, int) else 0


def _outer_first(name: str) -> str:
    """An order of ranges that begin and end together."""
    holders = " ".join(f"WHEN '{each}' THEN {rank}" for rank, each in enumerate(HOLDERS))
    return f"CASE {name} {holders} ELSE {len(HOLDERS)} END"


def _in_domain(export: Export) -> tuple[str, list[int]]:
    """A condition that a range is of our domain, with its numbers; true where none is named."""
    domains = _domains(export)
    if not domains:
        return "TRUE", []
    threads = by_thread(export)
    one = f"(n.domainId = ? AND n.globalTid / {_PROCESS} = ?)" if threads else "n.domainId = ?"
    numbers = [
        number
        for process, domain in domains
        for number in ((domain, process) if threads else (domain,))
    ]
    return f"({' OR '.join([one] * len(domains))})", numbers


def _domains(export: Export) -> list[tuple[int, int]]:
    """Processes and their numbers of our domain, where the export names domains: some hundred."""
    if not export.has(TABLE, "eventType", "domainId"):
        return []
    name = _name(export, "n")
    process = f"n.globalTid / {_PROCESS}" if by_thread(export) else "0"
    found = export.rows(
        f"SELECT DISTINCT {process}, n.domainId FROM {TABLE} n{_join(export)} "
        f"WHERE n.eventType = {DOMAIN_MADE} AND {name} = ? LIMIT 100",
        (DOMAIN,),
    )
    return [(process, domain) for process, domain in found if process is not None]


def _name(export: Export, alias: str) -> str | None:
    """The text of an event: its own, or by its number."""
    texts = [f"{alias}.text"] if export.has(TABLE, "text") else []
    if export.has(TABLE, "textId") and export.has(STRINGS, "id", "value"):
        texts.append("t.value")
    if not texts:
        return None
    return texts[0] if len(texts) == 1 else f"coalesce({', '.join(texts)})"


def _join(export: Export) -> str:
    if export.has(TABLE, "textId") and export.has(STRINGS, "id", "value"):
        return f" LEFT JOIN {STRINGS} t ON t.id = n.textId"
    return ""
