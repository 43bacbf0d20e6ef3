"""An engine, or a stage of them, as a CUDA graph: launched plainly, then captured, then replayed.

Over ``cuda_device.py`` and under every library whose engines run on a GPU: what they launch, and
over which memory, is theirs; when it is captured, and what happens where that fails, is said here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fresco_trt.backends.cuda_device import Device

_LOG = logging.getLogger(__name__)


def _willing() -> None:
    """The check of a library that has to be tried."""


class Graph:
    """Launches on ``device`` that read and write the same memory every time: those of one engine,
    or of a stage that is ``over`` the graphs of its engines.

    The first is plain: it makes what is made only once, which a capture could not hold. The second
    captures a CUDA graph, which it and all later ones replay. Where that fails the engine is
    launched plainly every time, and a warning says so with the reason, once. With ``captures``
    False it always is. While a graph over this one is captured, its own is left out: the plain
    launch is captured in its place.
    """

    def __init__(
        self, name: str, device: Device, *, captures: bool, over: Sequence[Graph] = ()
    ) -> None:
        self.device, self.captures = device, captures
        self._over = tuple(over)
        self._above: WeakSet[Graph] = WeakSet()
        for each in over:
            each._above.add(self)
        self._name = name
        self._warm = False
        self._replay: Callable[[], None] | None = None

    def is_captured(self) -> bool:
        """Whether the next launch replays a graph."""
        return self._replay is not None

    def queue(self, launch: Callable[[], None], check: Callable[[], None] = _willing) -> None:
        """Inside the device's ``stream()``: queue all that ``launch`` queues, in one launch if it
        was captured. ``check`` raises RuntimeError where a capture is not to be tried.

        Raises as ``launch``, and RuntimeError where a graph cannot be queued.
        """
        if self.device.is_capturing():
            if not self._warm:
                raise RuntimeError(f"{self._name} has not run yet")
            check()
            launch()
            return
        if self._warm and self.captures and self._replay is None:
            self._capture(launch, check)
        (self._replay or launch)()
        self._warm = True

    def forget(self) -> None:
        """Drop the graph, and all over it: what it reads or writes is elsewhere from now on, or
        nowhere.
        """
        self._replay, self._warm = None, False
        for each in self._above:
            each.forget()

    def require_capture(self) -> None:
        """Raise RuntimeError for one that was tried and could not be captured."""
        if not self.captures:
            raise RuntimeError(f"{self._name} runs without one")

    def _capture(self, launch: Callable[[], None], check: Callable[[], None]) -> None:
        try:
            check()
            for each in self._over:
                each.require_capture()
            self._replay = self.device.capture(launch)
        except RuntimeError as error:
            self.captures = False
            _LOG.warning("%s runs without a CUDA graph: %s", self._name, error)
