"""Batches of captioned scenes and their pictures, drawn ahead by worker processes."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.bench.scenes.pictures import scaled
from training.scenes.captions import captioned
from training.scenes.objects import OBJECTS
from training.scenes.render import pixels_of
from training.scenes.scene import random_scene

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    import torch

    from training.scenes.captions import Captioned
    from training.scenes.render import Drawings, Pixels

MORE_AHEAD = 2
"""Batches of each size that are drawn or wait, beyond one for each process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a stream of batches is made of: its seed, which objects, which pairs kept apart.

    ``apart`` and ``detail`` are those of `random_scene` and `captioned`.
    """

    seed: int
    names: tuple[str, ...] = tuple(OBJECTS)
    apart: str | None = None
    detail: float | None = None

    def batch(self, shape: tuple[int, int, int], number: int) -> list[Captioned]:
        """Scenes of the batch so numbered among those of one shape (count, width, height)."""
        rng = random.Random(f"{self.seed} {shape} {number}")
        return [
            captioned(
                random_scene(rng, apart=self.apart, names=self.names), rng, detail=self.detail
            )
            for _ in range(shape[0])
        ]


class SceneBatches:
    """Captioned scenes and their pictures, in batches of any size.

    What the n-th batch of a size has depends on the recipe alone: not on the number of processes,
    on other sizes or on timing. Scenes are made where they are drawn, so the process that trains
    only receives them.
    """

    def __init__(self, recipe: Recipe, drawings: Drawings, workers: int = 0) -> None:
        self._recipe, self._drawings = recipe, drawings
        self._numbers: Counter[tuple[int, int, int]] = Counter()
        self._ahead: dict[tuple[int, int, int], deque[Future[tuple[list[Captioned], Pixels]]]] = {}
        self._depth = workers + MORE_AHEAD
        self._pool = (
            ProcessPoolExecutor(
                workers,
                multiprocessing.get_context("spawn"),
                initializer=_open,
                initargs=(recipe, drawings),
            )
            if workers
            else None
        )

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
    ) -> tuple[list[Captioned], torch.Tensor]:
        """``count`` scenes, and their pictures [count,3,height,width] in [-1, 1] on a device."""
        shape = (count, width, height)
        if self._pool is None:
            scenes, pixels = _drawn(self._recipe, self._drawings, shape, self._number(shape))
            return scenes, scaled(pixels, device)
        queue = self._ahead.setdefault(shape, deque())
        while len(queue) < self._depth:
            queue.append(self._pool.submit(_drawn_there, shape, self._number(shape)))
        scenes, pixels = queue.popleft().result()
        return scenes, scaled(pixels, device)

    def _number(self, shape: tuple[int, int, int]) -> int:
        self._numbers[shape] += 1
        return self._numbers[shape] - 1


def _drawn(
    recipe: Recipe, drawings: Drawings, shape: tuple[int, int, int], number: int
) -> tuple[list[Captioned], Pixels]:
    scenes = recipe.batch(shape, number)
    return scenes, pixels_of([each.scene for each in scenes], drawings, *shape[1:])


_OPENED: list[tuple[Recipe, Drawings]] = []
"""What this process draws with, where it is a worker."""


def _open(recipe: Recipe, drawings: Drawings) -> None:
    _OPENED[:] = [(recipe, drawings)]


def _drawn_there(shape: tuple[int, int, int], number: int) -> tuple[list[Captioned], Pixels]:
    ((recipe, drawings),) = _OPENED
    return _drawn(recipe, drawings, shape, number)
