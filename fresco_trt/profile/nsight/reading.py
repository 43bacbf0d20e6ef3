"""An export of Nsight Systems as the document of a profile: host and device, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fresco_trt.errors import ExportInvalid
from fresco_trt.profile.files import Profile
from fresco_trt.profile.nsight.device import (
    GRAPH,
    WORK,
    Sums,
    device_summary,
    says_process,
    work_of,
)
from fresco_trt.profile.nsight.export import HOW, RUNTIMES, Export, opened
from fresco_trt.profile.nsight.launches import NODES, Places, write_launches
from fresco_trt.profile.nsight.ranges import Range, by_thread, ranges_of
from fresco_trt.profile.nvtx import DOMAIN
from fresco_trt.profile.spans import HOST, Part, Place, in_order
from fresco_trt.profile.summary import SCHEMA, parts_summary, spread
from fresco_trt.profile.tracks import Bar, Track
from fresco_trt.run.trace import REPLAY, REQUEST

if TYPE_CHECKING:
    from pathlib import Path

    Report = Callable[[str, float], None]

_LENGTHS_KEPT, _BARS_KEPT = 100_000, 20_000


def read_export(path: Path, report: Report) -> Profile:
    """The profile that an export holds: what the host did by its NVTX ranges, what the device did
    in each of them, the gaps between, and the kernels.

    Each table may be missing; what then is not known is among the document's ``notes``. Raises
    ExportInvalid for what cannot be read or holds nothing of this, and DiskFull.
    """
    name = f"reading {path.name}"
    with opened(path) as export:
        report(name, 0.0)
        host = _Host()
        for each in ranges_of(export):
            host.add(each)
        report(name, 0.3)
        places, by_process = Places(), by_thread(export) and says_process(export)
        launched = write_launches(export, places, by_process=by_process)
        report(name, 0.6)
        sums = Sums()
        for work in work_of(export, places, by_process=by_process):
            sums.add(work)
        if not host.calls and not sums.places:
            raise ExportInvalid(
                f"{path} holds neither NVTX ranges of {DOMAIN} nor work of a GPU",
                expected="an export of requests that were drawn while nsys recorded",
                fix=f"record with 'fresco-trt profile --nsys', or {HOW}",
            )
        document = {
            "schema": SCHEMA,
            "source": "nsys",
            "export": dict(export.about),
            "request_seconds": spread(host.lengths),
            **parts_summary(host.parts(), host.requests),
            "device": device_summary(sums, export),
            "notes": list(_notes(export, host, sums, launched)),
        }
        report(name, 1.0)
    return Profile(document=document, tracks=_tracks(host, sums))


@dataclass(slots=True)
class _Host:
    """The ranges' own times by place, the requests' lengths, and the bars of the first request."""

    calls: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    own: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    lengths: list[int] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    requests: int = 0

    def add(self, found: Range) -> None:
        """A range; what it lies in was added before."""
        length = found.end - found.begin
        self.calls[found.place] += 1
        self.own[found.place] += length
        if found.parent is not None:
            self.own[found.parent.place] -= length
        if found.name == REQUEST and found.parent is None:
            self.requests += 1
            if len(self.lengths) < _LENGTHS_KEPT:
                self.lengths.append(length)
        if found.request == 1 and len(self.bars) < _BARS_KEPT:
            bar = Bar(name=found.name, place=found.place, begin=found.begin, end=found.end)
            self.bars.append(bar)

    def parts(self) -> list[Part]:
        """The sums, in the order of a request."""
        return [
            Part(place=place, calls=self.calls[place], nanoseconds=self.own[place])
            for place in in_order(self.own)
        ]


def _notes(export: Export, host: _Host, sums: Sums, launched: bool) -> Iterator[str]:
    """What the export does not tell, and why."""
    work = any(table in export.tables for table in WORK)
    if not host.calls:
        yield (
            f"no NVTX range of {DOMAIN}: nothing can be attributed; record with "
            "'fresco-trt profile --nsys', or draw within fresco_trt.profile.nvtx_ranges()"
        )
    if not work:
        yield "no work of a GPU: record with --trace=cuda,nvtx"
    elif not any(table in export.tables for table in RUNTIMES):
        yield "no table of CUDA calls: work of the GPU cannot be attributed to ranges"
    elif host.calls and not launched:
        yield "no CUDA call lies in a range: work of the GPU cannot be attributed"
    if export.has(GRAPH):
        yield "graphs are one row each: record with --cuda-graph-trace=node to see their kernels"
    if NODES not in export.tables and any(place.part == REPLAY for place in sums.places):
        yield (
            "stages that were replayed whole have no steps: the capture of their graphs was not "
            "recorded"
        )


def _tracks(host: _Host, sums: Sums) -> list[Track]:
    """Of the first request, from its begin on."""
    begin = min((bar.begin for bar in (*host.bars, *sums.bars)), default=0)
    tracks = [Track(name=HOST, bars=_from(begin, host.bars))]
    return tracks + ([Track(name="GPU", bars=_from(begin, sums.bars))] if sums.bars else [])


def _from(begin: int, bars: list[Bar]) -> list[Bar]:
    return [
        Bar(name=bar.name, place=bar.place, begin=bar.begin - begin, end=bar.end - begin)
        for bar in bars
    ]
