"""How often an engine was built, reused, or could not be: a process's own count, for its operator.

Beside the compilation. A fallback is logged when it happens; this is where it can be read later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Engines of this process: ``built`` new, ``reused`` from the cache on disk, and the graphs
    that torch runs in their place, ``fell_back``, by the reason.
    """

    built: int = 0
    reused: int = 0
    fell_back: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def fallbacks(self) -> int:
        """How many graphs fell back, whatever the reason."""
        return sum(self.fell_back.values())


class _Count:
    """The count itself; any thread may compile."""

    def __init__(self) -> None:
        self._lock, self._now = Lock(), Counters()

    @property
    def now(self) -> Counters:
        return self._now

    def built(self) -> None:
        with self._lock:
            self._now = replace(self._now, built=self._now.built + 1)

    def reused(self) -> None:
        with self._lock:
            self._now = replace(self._now, reused=self._now.reused + 1)

    def fell_back(self, reason: str) -> None:
        with self._lock:
            reasons = dict(self._now.fell_back)
            reasons[reason] = reasons.get(reason, 0) + 1
            self._now = replace(self._now, fell_back=MappingProxyType(reasons))


COUNT = _Count()


def counters() -> Counters:
    """What was built, reused and not compiled in this process so far; the value never changes."""
    return COUNT.now
