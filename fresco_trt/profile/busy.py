"""Time in which a device is busy, and the gaps between: pieces of work, counted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Time = TypeVar("Time", int, float)


@dataclass(slots=True)
class Busy(Generic[Time]):
    """Up to when a device's time is counted, ``until``, None before the first piece.

    Pieces come in the order of their begin; where two run side by side their time counts once, for
    the first. Busy time and gaps add up to the time from the first begin to the last end.
    """

    until: Time | None = None

    def take(self, begin: Time, end: Time) -> tuple[Time, Time]:
        """The next piece: the gap before it, and how much of it is not counted yet."""
        until = begin if self.until is None else self.until
        self.until = max(until, end)
        return max(begin, until) - until, max(end, until) - max(begin, until)
