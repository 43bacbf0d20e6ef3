"""The cores and the memory that this process may use: its share of the machine, on Linux.

Beside the data path: a build starts as many helpers as there is room for. A container's limits
count (control groups, both versions), and so does a process's own set of cores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def usable_cores(groups: Path = _GROUPS) -> int:
    """How many cores this process may keep busy, one at least."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(groups))]))


def free_memory(groups: Path = _GROUPS, memory: Path = _MEMORY) -> int | None:
    """Bytes that this process may still take; None on a system that does not say."""
    free = [*_free_in_groups(groups)]
    if memory.is_file():
        lines = memory.read_text(encoding="ascii", errors="replace").splitlines()
        free += [int(each.split()[1]) * 1024 for each in lines if each.startswith("MemAvailable:")]
    return max(0, min(free)) if free else None


def _quotas(groups: Path) -> Iterator[float]:
    """Cores' worth of time that a group of processes gets."""
    pair = _words(groups / "cpu.max")
    if len(pair) != 2:
        folder = groups / "cpu"
        pair = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[1]):
        yield int(pair[0]) / int(pair[1])


def _free_in_groups(groups: Path) -> Iterator[int]:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        pair = [*_words(groups / limit), *_words(groups / used)]
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit():
            yield int(pair[0]) - int(pair[1])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:  # no such limit, or one that is not shown
        return []
