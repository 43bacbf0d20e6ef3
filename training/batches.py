"""Training batches of rendered scenes, drawn ahead by other processes where there are some."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.pictures import pixels_of, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    import torch

    from fresco_trt.bench.scenes.pictures import Pixels
    from fresco_trt.bench.scenes.scene import Scene

AHEAD = 4
"""Batches of each size that worker processes render before they are asked for."""


class Renders:
    """Scenes of a stream and their pictures, in batches of any size.

    With ``workers`` processes, batches of a size that was asked for before are rendered ahead; with
    none, everything is rendered here when it is asked for. Which scenes a batch has depends on the
    order of the calls and on ``workers``, never on timing.
    """

    def __init__(self, scenes: Iterator[Scene], workers: int = 0) -> None:
        self._scenes = scenes
        self._pool = (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers else None
        )
        self._ahead: dict[tuple[int, ...], deque[tuple[list[Scene], Future[Pixels]]]] = {}

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
    ) -> tuple[list[Scene], torch.Tensor]:
        """``count`` scenes, and their pictures [count,3,height,width] in [-1, 1] on a device."""
        if self._pool is None:
            scenes = self._drawn(count)
            return scenes, scaled(pixels_of(scenes, width, height), device)
        queue = self._ahead.setdefault((count, width, height), deque())
        while len(queue) <= AHEAD:
            scenes = self._drawn(count)
            queue.append((scenes, self._pool.submit(pixels_of, scenes, width, height)))
        scenes, pixels = queue.popleft()
        return scenes, scaled(pixels.result(), device)

    def _drawn(self, count: int) -> list[Scene]:
        return list(itertools.islice(self._scenes, count))
