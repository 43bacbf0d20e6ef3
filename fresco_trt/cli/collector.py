"""Python's garbage collector while a command starts.

What a command imports makes hundreds of thousands of objects that live as long as the process. The
collector, as it is set, looks through them dozens of times: a tenth of a cold start.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = (200_000, 20, 100)
_USUALLY = gc.get_threshold()


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """The scope of a command."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def collect_as_usual() -> None:
    """All is loaded, and the process goes on: what is there by now is not looked at any more."""
    gc.freeze()
    gc.set_threshold(*_USUALLY)
