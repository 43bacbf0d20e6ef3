"""What the device did: time by place, gaps between pieces of work, and kernels by their share.

Last of the folder's sums. Work comes in the order of its begin; where two pieces run side by side,
the time counts once, for the first, so that busy time and gaps add up to the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fresco_trt.profile.busy import Busy
from fresco_trt.profile.nsight.launches import Places
from fresco_trt.profile.spans import HOST, Place, in_order
from fresco_trt.profile.tracks import Bar
from fresco_trt.run.trace import REPLAY

if TYPE_CHECKING:
    from fresco_trt.profile.nsight.export import Export

KERNEL, MEMCPY, MEMSET, GRAPH = (
    f"CUPTI_ACTIVITY_KIND_{name}" for name in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")
)
WORK = (KERNEL, MEMCPY, MEMSET, GRAPH)
OTHER = "other"
OUTSIDE = Place(None, None, "outside requests")
"""Of work whose launch lies in no range of ours, or is not known."""

MOST_KERNELS, MOST_GAPS = 20, 20
LONGEST_NAME = 120
UNSEEN = 20_000
"""Nanoseconds that a timeline does not show: between kernels there is always a little."""

_COUNTED = 50_000
_BARS_KEPT = 5_000
_DEVICES = 64
_COPIES = {1: "memcpy host to device", 2: "memcpy device to host", 8: "memcpy device to device"}


class Work(NamedTuple):
    """A piece of work in nanoseconds; ``request`` is 0 for what is outside of any."""

    begin: int
    end: int
    device: int
    name: tuple[str, int | None]
    request: int
    place: Place


class Gap(NamedTuple):
    """Where the device had nothing to do: between these two places of a request, or of two."""

    before: str
    after: str


@dataclass(slots=True)
class _Total:
    count: int = 0
    nanoseconds: int = 0
    longest: int = 0

    def add(self, nanoseconds: int) -> None:
        self.count += 1
        self.nanoseconds += nanoseconds
        self.longest = max(self.longest, nanoseconds)


@dataclass(slots=True)
class _Device:
    """A device's time, and what it did last."""

    last: Work
    busy: Busy[int] = field(default_factory=Busy)


@dataclass(slots=True)
class Sums:
    """All of it, in nanoseconds."""

    places: dict[Place, _Total] = field(default_factory=lambda: defaultdict(_Total))
    gaps: dict[Gap, _Total] = field(default_factory=lambda: defaultdict(_Total))
    kernels: dict[tuple[str, int | None], _Total] = field(
        default_factory=lambda: defaultdict(_Total)
    )
    bars: list[Bar] = field(default_factory=list)
    """Of the first request on the first device: what it did at one place, without a break that
    could be seen.
    """

    _devices: dict[int, _Device] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """The next piece of work, which begins no earlier than the last."""
        _bounded(self.kernels, work.name, (OTHER, None)).add(work.end - work.begin)
        device = work.device if len(self._devices) < _DEVICES else -1
        state = self._devices.get(device)
        if state is None:
            state = self._devices[device] = _Device(last=work)
        gap, counted = state.busy.take(work.begin, work.end)
        if gap:
            _bounded(self.gaps, _gap(state.last, work), Gap(OTHER, OTHER)).add(gap)
        self.places[work.place].add(counted)
        if counted:
            self._keep_bar(work, work.end - counted)
            state.last = work

    def _keep_bar(self, work: Work, begin: int) -> None:
        first = next(iter(self._devices))
        if work.request != 1 or work.device != first or len(self.bars) >= _BARS_KEPT:
            return
        last = self.bars[-1] if self.bars else None
        if last is not None and last.place == work.place and begin - last.end <= UNSEEN:
            begin = self.bars.pop().begin
        bar = Bar(name=work.place.part, place=work.place, begin=begin, end=work.end)
        self.bars.append(bar)


_Key = TypeVar("_Key")


def _bounded(totals: dict[_Key, _Total], key: _Key, rest: _Key) -> _Total:
    """The total of a key; of the rest, where there are too many already."""
    known = key in totals or len(totals) < _COUNTED
    return totals[key if known else rest]


def _gap(before: Work, after: Work) -> Gap:
    if not before.request and not after.request:
        return Gap(OUTSIDE.part, OUTSIDE.part)
    if before.request != after.request:
        return Gap("between requests", "between requests")
    return Gap(str(before.place), str(after.place))


def work_of(export: Export, places: Places, *, by_process: bool) -> Iterator[Work]:
    """Every piece of work on a device, by its begin; over the tables of ``write_launches``."""
    parts = [_select(export, table, by_process) for table in WORK if _is_work(export, table)]
    if not parts:
        return
    rows = export.rows(
        "SELECT w.start, w.stop, w.device, w.source, w.name, l.request, l.place, n.place"
        f" FROM ({' UNION ALL '.join(parts)}) w"
        " LEFT JOIN launches l ON l.process = w.process AND l.correlation = w.correlation"
        " LEFT JOIN nodes n ON n.process = w.process AND n.node = w.node"
        " ORDER BY 1, 2"
    )
    for begin, end, device, source, name, request, launched, made in rows:
        place = OUTSIDE if launched is None else places[launched]
        # A node of a graph that is replayed whole was made in the step that it is of.
        if made is not None and place.step is None and place.part in (REPLAY, HOST):
            node = places[made]
            place = node if node.stage in (None, place.stage) else place
        yield Work(
            begin,
            end,
            device if isinstance(device, int) else 0,
            (WORK[source], name if isinstance(name, int) else None),
            request or 0,
            place,
        )


def says_process(export: Export) -> bool:
    """Whether all work says which process it is of."""
    return all(export.has(table, "globalPid") for table in WORK if _is_work(export, table)) and any(
        _is_work(export, table) for table in WORK
    )


def _is_work(export: Export, table: str) -> bool:
    return export.has(table, "start", "end")


def _select(export: Export, table: str, by_process: bool) -> str:
    def column(*names: str) -> str:
        return export.first(table, *names) or "NULL"

    names = {
        KERNEL: column("demangledName", "shortName", "mangledName"),
        MEMCPY: column("copyKind"),
        GRAPH: column("graphId"),
    }
    process = f"globalPid / {1 << 24}" if by_process else "0"
    return (
        f'SELECT start, "end" AS stop, {column("deviceId")} AS device,'
        f" {WORK.index(table)} AS source, {names.get(table, 'NULL')} AS name,"
        f" {process} AS process, {column('correlationId')} AS correlation,"
        f" {column('graphNodeId')} AS node FROM {table}"
        " WHERE typeof(start) = 'integer' AND typeof(\"end\") = 'integer' AND \"end\" >= start"
    )


def device_summary(sums: Sums, export: Export) -> dict[str, Any]:
    """The ``device`` of a document: its seconds, ``rows`` by place with shares of busy time, the
    longest ``gaps`` and ``kernels`` by their sums, and the rest of each as one row.
    """
    busy = sum(each.nanoseconds for each in sums.places.values())
    idle = sum(each.nanoseconds for each in sums.gaps.values())
    return {
        "seconds": {"span": _seconds(busy + idle), "busy": _seconds(busy), "gaps": _seconds(idle)},
        "rows": [
            {
                "stage": place.stage,
                "step": place.step,
                "part": place.part,
                "calls": sums.places[place].count,
                "seconds": _seconds(sums.places[place].nanoseconds),
                "share": _share(sums.places[place].nanoseconds, busy),
            }
            for place in in_order(sums.places)
        ],
        "gaps": [
            {"before": gap.before, "after": gap.after, **_told(total, idle)}
            for gap, total in _largest(sums.gaps, MOST_GAPS, Gap(OTHER, OTHER))
        ],
        "kernels": [
            {"name": _name(name, export), **_told(total, _sum(sums.kernels))}
            for name, total in _largest(sums.kernels, MOST_KERNELS, (OTHER, None))
        ],
    }


def _largest(totals: dict[Any, _Total], most: int, rest: Any) -> list[tuple[Any, _Total]]:
    """The largest totals, and the sum of all others under the name of the rest."""
    ordered = sorted(totals.items(), key=lambda item: (-item[1].nanoseconds, str(item[0])))
    found = [item for item in ordered[:most] if item[0] != rest]
    others = [total for name, total in ordered if (name, total) not in found]
    if others:
        whole = _Total()
        for each in others:
            whole.count += each.count
            whole.nanoseconds += each.nanoseconds
            whole.longest = max(whole.longest, each.longest)
        found.append((rest, whole))
    return found


def _told(total: _Total, whole: int) -> dict[str, Any]:
    return {
        "calls": total.count,
        "seconds": _seconds(total.nanoseconds),
        "longest_seconds": _seconds(total.longest),
        "share": _share(total.nanoseconds, whole),
    }


def _name(name: tuple[str, int | None], export: Export) -> str:
    table, number = name
    if table == KERNEL:
        text = None if number is None else export.text(number)
        return "a kernel without a name" if text is None else text[:LONGEST_NAME]
    if table == MEMCPY:
        return _COPIES.get(number or 0, "memcpy")
    return {MEMSET: "memset", GRAPH: f"graph {number}"}.get(table, OTHER)


def _sum(totals: dict[Any, _Total]) -> int:
    return sum(each.nanoseconds for each in totals.values())


def _share(nanoseconds: int, whole: int) -> float:
    return nanoseconds / whole if whole else 0.0


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 9)
