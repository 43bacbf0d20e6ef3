"""Training batches of rendered scenes, drawn ahead by other processes where there are some."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fresco_trt.bench.scenes.pictures import pixels_of, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    import torch

    from fresco_trt.bench.scenes.pictures import Pixels
    from fresco_trt.bench.scenes.scene import Scene

    BatchSize = tuple[int, int, int]
    """A batch's count, width and height."""

    Job = tuple[Callable[..., Any], tuple[Any, ...]]
    """What draws a batch, and with what: it returns what the pictures show, and their pixels."""

Shown = TypeVar("Shown")

AHEAD = 4
"""Batches of each size that worker processes render before they are asked for."""


class BatchesAhead(Generic[Shown]):
    """Batches of any size, of what pictures show and the pictures.

    With worker processes, ``ahead`` batches of a size that was asked for before are drawn before
    they are asked for; with none, everything is drawn here when it is asked for. ``opened`` is what
    each process begins with.
    """

    def __init__(self, workers: int, ahead: int, opened: Job | None = None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn, _begin, (opened,)) if workers else None
        self._depth = ahead
        self._ahead: dict[BatchSize, deque[Future[tuple[list[Shown], Pixels]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(
        self, count: int, width: int, height: int, device: torch.device | str = "cpu"
    ) -> tuple[list[Shown], torch.Tensor]:
        """The next ``count`` of a size: what they show, and their pictures [count,3,height,width]
        in [-1, 1] on a device.
        """
        size = (count, width, height)
        if self._pool is None:
            draw, given = self._next(size)
            shown, pixels = draw(*given)
        else:
            queue = self._ahead.setdefault(size, deque())
            while len(queue) <= self._depth:
                draw, given = self._next(size)
                queue.append(self._pool.submit(draw, *given))
            shown, pixels = queue.popleft().result()
        return shown, scaled(pixels, device)

    def _next(self, size: BatchSize) -> Job:
        """What draws the next batch of a size."""
        raise NotImplementedError


def _begin(opened: Job | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if opened is not None:
        begin, given = opened
        begin(*given)


def _end_with_parent() -> None:
    """End a process whose parent was killed, and which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Renders(BatchesAhead["Scene"]):
    """Scenes of a stream and their pictures, in batches of any size.

    Which scenes a batch has depends on the order of the calls and on ``workers``, never on timing.
    """

    def __init__(self, scenes: Iterator[Scene], workers: int = 0) -> None:
        super().__init__(workers, AHEAD)
        self._scenes = scenes

    def _next(self, size: BatchSize) -> Job:
        count, *sides = size
        return _drawn, (list(itertools.islice(self._scenes, count)), *sides)


def _drawn(scenes: list[Scene], width: int, height: int) -> tuple[list[Scene], Pixels]:
    return scenes, pixels_of(scenes, width, height)
