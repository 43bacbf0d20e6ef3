"""Which stage, step and part of a request a piece of work on the device is of.

Between ranges and sums. A kernel has the correlation number of the call that launched it, and that
call lies in a range of its thread. In a graph one launch has many kernels: each has the number of
its node, and where the capture was recorded, the node was made in a range of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ExportInvalid
from fresco_trt.profile.nsight.export import RUNTIMES
from fresco_trt.profile.nsight.ranges import Moment, by_thread, innermost, ranges_of
from fresco_trt.profile.spans import Place

if TYPE_CHECKING:
    from fresco_trt.profile.nsight.export import Export

NODES = "CUDA_GRAPH_NODE_EVENTS"
MOST_PLACES = 100_000

_PROCESS = 1 << 24
_CLONES = 4
"""A graph that is captured, instantiated and updated is cloned so often at most."""

_AT_ONCE = 1_000


class Places:
    """Places by a number, as SQL joins them. Raises ExportInvalid for more than a plan has."""

    def __init__(self) -> None:
        self._numbers: dict[Place, int] = {}
        self._places: list[Place] = []

    def number(self, place: Place) -> int:
        """The number of a place."""
        found = self._numbers.get(place)
        if found is None:
            if len(self._places) >= MOST_PLACES:
                raise ExportInvalid(
                    f"ranges of more than {MOST_PLACES} stages and steps",
                    expected="those of one plan, or of a few",
                    fix="record fewer requests",
                )
            found = self._numbers[place] = len(self._places)
            self._places.append(place)
        return found

    def __getitem__(self, number: int) -> Place:
        return self._places[number]


def write_launches(export: Export, places: Places, *, by_process: bool) -> bool:
    """Make the temporary tables ``launches`` (process, correlation, request, place) and ``nodes``
    (process, node, original, place); whether any call was found in our ranges.

    Without ``by_process`` all are of process 0: an export whose kernels do not say theirs.
    """
    run = export.connection.execute
    run(
        "CREATE TEMP TABLE launches (process INTEGER, correlation INTEGER, request INTEGER,"
        " place INTEGER, PRIMARY KEY (process, correlation)) WITHOUT ROWID"
    )
    run(
        "CREATE TEMP TABLE nodes (process INTEGER, node INTEGER, original INTEGER, place INTEGER,"
        " PRIMARY KEY (process, node)) WITHOUT ROWID"
    )
    found = False
    for table in RUNTIMES:
        if export.has(table, "start", "correlationId"):
            moments = _moments(export, table, ("correlationId",))
            rows = (
                (
                    _process(at.thread, by_process),
                    at.what[0],
                    held.request,
                    places.number(held.place),
                )
                for at, held in innermost(ranges_of(export), moments)
            )
            found |= _insert(export, "INSERT OR IGNORE INTO launches VALUES (?, ?, ?, ?)", rows)
    _write_nodes(export, places, by_process=by_process)
    return found


def _write_nodes(export: Export, places: Places, *, by_process: bool) -> None:
    """Nodes with the place that they were made at; clones with that of their original."""
    if not export.has(NODES, "start", "graphNodeId"):
        return
    original = "originalGraphNodeId" if export.has(NODES, "originalGraphNodeId") else "NULL"
    moments = _moments(export, NODES, ("graphNodeId", original))
    # A node may be told of twice: when it is made, and when it is cloned.
    rows = (
        (_process(at.thread, by_process), at.what[0], places.number(held.place))
        for at, held in innermost(ranges_of(export), moments)
        if at.what[1] is None
    )
    _insert(export, "INSERT OR IGNORE INTO nodes VALUES (?, ?, NULL, ?)", rows)
    if original == "NULL":
        return
    thread = _thread(export, NODES)
    process = f"{thread} / {_PROCESS}" if by_process else "0"
    export.connection.execute(
        f"INSERT OR IGNORE INTO nodes SELECT {process}, graphNodeId, {original}, NULL"
        f" FROM {NODES} WHERE typeof(graphNodeId) = 'integer' AND typeof({original}) = 'integer'"
    )
    for _ in range(_CLONES):
        export.connection.execute(
            "UPDATE nodes SET place = (SELECT made.place FROM nodes made WHERE"
            " made.process = nodes.process AND made.node = nodes.original)"
            " WHERE place IS NULL AND original IS NOT NULL"
        )


def _moments(export: Export, table: str, columns: tuple[str, ...]) -> Iterator[Moment]:
    """The rows of a table by thread and time, with some of their columns."""
    thread = _thread(export, table)
    rows = export.rows(
        f"SELECT {thread}, start, {', '.join(columns)} FROM {table}"
        f" WHERE typeof(start) = 'integer' AND typeof({thread}) = 'integer'"
        f" AND typeof({columns[0]}) = 'integer' ORDER BY 1, 2"
    )
    for thread_of, time, *what in rows:
        yield Moment(thread_of, time, tuple(what))


def _thread(export: Export, table: str) -> str:
    """The thread of a row; 0 where the table, or the ranges, do not say it."""
    return "globalTid" if by_thread(export) and export.has(table, "globalTid") else "0"


def _process(thread: int, by_process: bool) -> int:
    return thread // _PROCESS if by_process else 0


def _insert(export: Export, statement: str, rows: Iterable[tuple[Any, ...]]) -> bool:
    """Insert rows some at a time; whether there was any."""
    coming, any_row = iter(rows), False
    while some := list(islice(coming, _AT_ONCE)):
        export.connection.executemany(statement, some)
        any_row = True
    return any_row
