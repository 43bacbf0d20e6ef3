"""Which files were looked at, told from others that take their names later.

Between the check of a bundle and the libraries that load it by name: an ordinary rebuild in between
puts another folder there. A file is the same one while its device, inode, size and time of change
are, to the nanosecond; a folder likewise, so that a name that was taken away and put back shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_State = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """Files and folders as they were at one moment, by their path from a folder (or absolute)."""

    states: tuple[tuple[str, _State], ...]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> Seen:
        """What is there now. Raises OSError for what is not."""
        return cls(tuple((name, _state(folder / name)) for name in names))

    def changed(self, folder: Path) -> str | None:
        """The first path below ``folder`` that is another one now, or gone; None if all stayed."""
        for name, state in self.states:
            try:
                same = _state(folder / name) == state
            except OSError:
                same = False
            if not same:
                return name
        return None


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
