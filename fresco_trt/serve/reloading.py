"""Bundles read again while the server runs: on a SIGHUP, in a thread of its own.

Requests go on meanwhile. What does not open, or does not load, changes nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING

from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    from fresco_trt.pipelines.several import WarmUp

_LOG = logging.getLogger(__name__)

Reload = Callable[[], "Sequence[WarmUp]"]
Reloaded = Callable[["Sequence[WarmUp] | Exception"], None]


class Reloader:
    """Reads the bundles again whenever it is asked to, once for all that ask meanwhile."""

    def __init__(self, reload: Reload, told: Reloaded) -> None:
        """`reload` puts the bundles in service and says what the new ones cost; `told` gets that,
        or what it raised. Both are called in the thread, and `told` must not raise.
        """
        self._reload, self._told = reload, told
        # Of all ways to wake a thread, the one that a signal handler may take at any moment.
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reloading", daemon=True)

    def ask(self) -> None:
        """Read them again, as soon as it was started and has done what it was asked before."""
        self._asked.put(True)

    def start(self) -> None:
        """Begin, with whatever was asked already."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End after the reload that is under way; wait so long for it at most."""
        self._asked.put(False)
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while self._next():
            try:
                self._told(self._reload())
            except Exception as error:
                if not isinstance(error, FrescoError):
                    _LOG.exception("reading the bundles again failed")
                self._told(error)

    def _next(self) -> bool:
        """Wait to be asked; false when that was the last time."""
        going = self._asked.get()
        while going and not self._asked.empty():
            going = self._asked.get()
        return going


@contextmanager
def on_hangup(reload: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Within the scope a SIGHUP calls `reload`; one that comes because the terminal was closed
    calls `stop`, unless this process was told to outlive it (nohup).

    Only the main thread of a system that has the signal is asked; elsewhere nothing is done.
    """
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGHUP)
    attached = before is not signal.SIG_IGN and _has_terminal()

    def hung_up(number: int, frame: object) -> None:
        if attached and not _has_terminal():
            stop()
        else:
            reload()

    signal.signal(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    """Whether a terminal controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
