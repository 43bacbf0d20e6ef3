"""Where one request's time goes on the device: kernels, launches and gaps, from torch's profiler.

The profiler's trace of a request has some ten thousand events; a table of a few lines is kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fresco_trt.profile.busy import Busy

MOST_KERNELS = 12
LONGEST_NAME = 120

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""What the trace calls work of a GPU. Without one, a CPU's operators stand in for it."""


def profiled(device: str, call: Callable[[], object]) -> dict[str, Any]:
    """One ``call`` under torch's profiler, as :func:`reduced`."""
    import torch

    # Torn down and set up again, the driver's tracing does not see graphs captured before.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    untyped: Any = torch.profiler
    kinds = untyped.ProfilerActivity
    activities = [kinds.CUDA] if device == "cuda" else [kinds.CPU]
    with untyped.profile(activities=activities) as profiler:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return reduced(trace["traceEvents"])


def reduced(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a Chrome trace (times in microseconds): seconds from the first piece of work on the device
    to the end of the last, those of them in which it was ``busy`` or in a ``gap``, the longest gap,
    how often the host launched what, and the kernels by their total time, the longest first.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    work = [event for event in spans if event.get("cat") in _ON_DEVICE]
    work = work or [event for event in spans if event.get("cat") == "cpu_op"]
    device, busy, gaps = Busy[float](), 0.0, [0.0]
    for begin, duration in sorted((float(each["ts"]), float(each["dur"])) for each in work):
        gap, counted = device.take(begin, begin + duration)
        busy += counted
        gaps.append(gap)
    launches = Counter(
        str(event["name"])
        for event in spans
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "Launch" in str(event["name"])
    )
    return {
        "seconds": _seconds(busy + sum(gaps)),
        "busy_seconds": _seconds(busy),
        "gap_seconds": _seconds(sum(gaps)),
        "longest_gap_seconds": _seconds(max(gaps)),
        "launches": dict(launches.most_common()),
        "kernels": _kernels(work),
    }


def _kernels(work: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = defaultdict(list)
    for event in work:
        taken[str(event["name"])].append(float(event["dur"]))
    longest = sorted(taken.items(), key=lambda item: -sum(item[1]))
    return [
        {"name": name[:LONGEST_NAME], "calls": len(each), "seconds": _seconds(sum(each))}
        for name, each in longest[:MOST_KERNELS]
    ]


def _seconds(microseconds: float) -> float:
    return round(microseconds / 1e6, 7)
