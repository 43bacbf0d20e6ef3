"""Memory that this process and the programs it started hold and have held, as the system counts it.

Beside the data path: a build says what it took of the machine, for the next one to be planned by,
and a server what its bundles take.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Peak resident bytes since this process began: its ``own``, and of the largest of its
    ``children`` that have ended (0: none).
    """

    own: int
    children: int

    def to_json(self) -> dict[str, int]:
        """``{own_bytes, children_bytes}``."""
        return {"own_bytes": self.own, "children_bytes": self.children}


def peak_memory(status: Path = Path("/proc/self/status")) -> PeakMemory | None:
    """The peak so far; None on a system that does not count it.

    Linux's own account of this program, ``status``, where there is one: getrusage counts in what
    the process that started this one held at that moment.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return PeakMemory(own=_high_water(status) or own, children=children)


def resident_bytes(counts: Path = Path("/proc/self/statm")) -> int | None:
    """Bytes of this process that are in memory now, those of mapped files among them; None on a
    system without Linux's account of it, ``counts``.
    """
    try:
        pages = int(counts.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def physical_memory() -> int | None:
    """Bytes of memory that this machine has; None on a system that does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _high_water(status: Path) -> int | None:
    if not status.is_file():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    marks = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return next(marks, None)
