"""SIGTERM as an interrupt: what is being written is cleaned up, as after Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATED = 143  # 128 + SIGTERM, as shells report it


class Terminated(KeyboardInterrupt):
    """A SIGTERM that came: passes where a Ctrl-C passes, and is handled where one is."""


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Raise Terminated in the scope for a SIGTERM; whether one came, from then on.

    The next ones are ignored, for good: some that end a process send two, and the second would
    interrupt the cleaning up. Nothing is changed where SIGTERM is handled or ignored already.
    """
    came = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        came.set()
        raise Terminated

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield came.is_set
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield came.is_set
    finally:
        if not came.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
