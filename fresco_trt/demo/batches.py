"""Training batches of rendered scenes, endless and seeded."""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from fresco_trt.demo.render import render
from fresco_trt.demo.scenes import Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self, TypeAlias

    import numpy.typing as npt
    import torch

    Pixels: TypeAlias = npt.NDArray[np.uint8]

AHEAD = 4
"""Batches of each size that worker processes render before they are asked for."""


def pictures_of(scenes: Sequence[Scene], width: int, height: int | None = None) -> torch.Tensor:
    """Scenes as float32 pictures in [-1, 1], shape [len(scenes), 3, height, width]."""
    return _scaled(_rendered(scenes, width, height))


def _rendered(scenes: Sequence[Scene], width: int, height: int | None) -> Pixels:
    """Scenes as uint8 pictures [len(scenes), height, width, 3]."""
    return np.stack([render(scene, width, height) for scene in scenes])


def _scaled(pixels: Pixels, device: torch.device | str = "cpu") -> torch.Tensor:
    import torch

    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def scene_stream(seed: int, *, held_out: bool = False) -> Iterator[Scene]:
    """Random scenes of one seed, without end."""
    rng = random.Random(seed)
    while True:
        yield random_scene(rng, held_out=held_out)


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
            return scenes, _scaled(_rendered(scenes, width, height), device)
        queue = self._ahead.setdefault((count, width, height), deque())
        while len(queue) <= AHEAD:
            scenes = self._drawn(count)
            queue.append((scenes, self._pool.submit(_rendered, scenes, width, height)))
        scenes, pixels = queue.popleft()
        return scenes, _scaled(pixels.result(), device)

    def _drawn(self, count: int) -> list[Scene]:
        return list(itertools.islice(self._scenes, count))
