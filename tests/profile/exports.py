"""Makes exports as ``nsys export --type=sqlite`` writes them, of requests with a known truth.

Two versions of the schema: that of 2021, whose events have their text inline and whose kernels know
of no graph; and that of 2026, with texts by number, domains, graph nodes and a table about itself.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fresco_trt.profile.spans import Place

OLD, NEW = "2021", "2026"
VERSIONS = (OLD, NEW)

_NVTX = (
    "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,"
    " category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER,"
    " textId INTEGER, domainId INTEGER, uint64Value INTEGER, int64Value INTEGER,"
    " doubleValue REAL, uint32Value INTEGER, int32Value INTEGER, floatValue REAL,"
    " jsonTextId INTEGER, jsonText TEXT"
)
_RUNTIME = (
    "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,"
    " correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL"
)
_WORK = (
    "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,"
    " contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER,"
    " globalPid INTEGER"
)
TABLES = {
    OLD: {
        "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
        "NVTX_EVENTS": _NVTX,
        "CUPTI_ACTIVITY_KIND_RUNTIME": _RUNTIME,
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{_WORK}, demangledName INTEGER NOT NULL,"
        " shortName INTEGER NOT NULL",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{_WORK}, bytes INTEGER, copyKind INTEGER",
    },
    NEW: {
        "META_DATA_EXPORT": "name TEXT NOT NULL, value TEXT",
        "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
        "NVTX_EVENTS": f"{_NVTX}, binaryData BLOB",
        "CUPTI_ACTIVITY_KIND_RUNTIME": f"{_RUNTIME}, callchainId INTEGER",
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{_WORK}, demangledName INTEGER NOT NULL,"
        " shortName INTEGER NOT NULL, mangledName INTEGER, greenContextId INTEGER,"
        " graphNodeId INTEGER, graphId INTEGER",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{_WORK}, bytes INTEGER, copyKind INTEGER,"
        " graphNodeId INTEGER",
        "CUDA_GRAPH_NODE_EVENTS": "start INTEGER NOT NULL, end INTEGER NOT NULL,"
        " eventClass INTEGER NOT NULL, globalTid INTEGER, nameId INTEGER NOT NULL,"
        " graphNodeId INTEGER NOT NULL, originalGraphNodeId INTEGER",
    },
}

PROCESS = 7
THREAD = (PROCESS << 24) | 42
DOMAIN = 3


@dataclass
class Export:
    """An export that is being made, and what is true of it: nanoseconds of the device by place, of
    its gaps, and of the host's requests.
    """

    path: Path
    version: str = NEW
    thread: int = THREAD
    domain: int = DOMAIN
    busy: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    gaps: int = 0
    until: int | None = None
    requests: list[int] = field(default_factory=list)
    correlation: int = 0

    def __post_init__(self) -> None:
        with self.connected() as file:
            for name, columns in TABLES[self.version].items():
                file.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
            if self.version == NEW:
                file.executemany(
                    "INSERT INTO META_DATA_EXPORT VALUES (?, ?)",
                    [
                        ("EXPORT_PRODUCT_NAME", "NVIDIA Nsight Systems"),
                        ("EXPORT_PRODUCT_VERSION", "2026.1.1"),
                        ("EXPORT_SCHEMA_VERSION", "3.31.0"),
                    ],
                )
        self.event(75, "fresco", 0, None, 0)

    def connected(self) -> closing[sqlite3.Connection]:
        """The file, open; every statement is committed."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=OFF")
        return closing(connection)

    def add(self, table: str, **values: object) -> None:
        """A row, of the columns that this version has."""
        columns = TABLES[self.version][table]
        known = {name: value for name, value in values.items() if f"{name} " in f" {columns}"}
        # What must not be empty and is not of interest is 0.
        required = [part.split()[0] for part in columns.split(",") if "NOT NULL" in part]
        row = {**dict.fromkeys(required, 0), **known}
        names = ", ".join(f'"{name}"' for name in row)
        with self.connected() as file:
            file.execute(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})",
                list(row.values()),
            )

    def string(self, value: str) -> int:
        """The number of a text."""
        with self.connected() as file:
            found = file.execute("SELECT id FROM StringIds WHERE value = ?", (value,)).fetchone()
            if found is None:
                found = file.execute("SELECT coalesce(max(id), 0) + 1 FROM StringIds").fetchone()
                file.execute("INSERT INTO StringIds VALUES (?, ?)", (found[0], value))
        return int(found[0])

    def event(self, kind: int, name: str, begin: int, end: int | None, payload: int) -> None:
        """A row of NVTX_EVENTS, with its text where this version has it."""
        inline = self.version == OLD or kind == 75
        self.add(
            "NVTX_EVENTS",
            eventType=kind,
            text=name if inline else None,
            textId=None if inline else self.string(name),
            start=begin,
            end=end,
            globalTid=self.thread,
            domainId=self.domain,
            int64Value=payload,
        )

    def range(self, name: str, begin: int, end: int, payload: int = 0) -> None:
        """One of our ranges."""
        self.event(59, name, begin, end, payload)
        if name == "request":
            self.requests.append(end - begin)

    def launch(self, at: int, name: str = "cudaLaunchKernel") -> int:
        """A call on the thread; its correlation number."""
        self.correlation += 1
        self.add(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=at,
            end=at + 2,
            globalTid=self.thread,
            correlationId=self.correlation,
            nameId=self.string(name),
        )
        return self.correlation

    def kernel(
        self,
        name: str,
        begin: int,
        end: int,
        correlation: int,
        place: Place | None = None,
        node: int | None = None,
    ) -> None:
        """A kernel of one stream, which is counted for ``place``."""
        self.add(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            start=begin,
            end=end,
            correlationId=correlation,
            globalPid=self.thread >> 24 << 24,
            streamId=7,
            demangledName=self.string(f"void {name}<float>()"),
            shortName=self.string(name),
            graphNodeId=node,
        )
        self.count(begin, end, place)

    def count(self, begin: int, end: int, place: Place | None) -> None:
        """What is true of the next piece of work."""
        until = begin if self.until is None else self.until
        self.gaps += max(begin - until, 0)
        if place is not None:
            self.busy[place] += max(end - max(begin, until), 0)
        self.until = max(until, end)

    def node(self, at: int, node: int, original: int | None = None) -> None:
        """A graph node that was made, or cloned from another."""
        self.add(
            "CUDA_GRAPH_NODE_EVENTS",
            start=at,
            end=at,
            globalTid=self.thread,
            graphNodeId=node,
            originalGraphNodeId=original,
        )


LAG = 500
"""The device is that far behind the host."""


def requests(made: Export, count: int = 2, stages: Sequence[int] = (2, 1)) -> Export:
    """Requests of as many steps a stage, drawn step by step: every part launches what it does."""
    now = 1_000
    for _ in range(count):
        begin, step = now, 0
        now = _part(made, "text", now + 10, 80, Place(None, None, "text"))
        for number, steps in enumerate(stages, start=1):
            entered = now + 5
            now = entered + 5
            for _ in range(steps):
                step += 1
                stepped = now + 3
                action = "full" if step % 2 else "bypass"
                now = _part(made, action, stepped + 4, 40 * step, Place(number, step, action))
                # The solver's own kernel, outside of the engine.
                call = made.launch(now + 1)
                made.kernel("axpy", now + LAG, now + LAG + 6, call, Place(number, step, "host"))
                now += 10
                made.range("step", stepped, now, step)
            if number < len(stages):
                now = _part(
                    made, "transition", now + 2, 30, Place(number, None, "transition"), number
                )
            now += 4
            made.range("stage", entered, now, number)
        now = _part(made, "decode", now + 6, 60, Place(None, None, "decode"))
        now += 20
        made.range("request", begin, now)
        now += 300
    return made


def _part(made: Export, name: str, begin: int, length: int, place: Place, payload: int = 0) -> int:
    """A range with a kernel that is as long as it; its end."""
    call = made.launch(begin + 1)
    made.kernel(f"{name}_kernel", begin + LAG, begin + LAG + length - 5, call, place)
    made.range(name, begin, begin + length, payload)
    return begin + length
