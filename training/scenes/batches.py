"""Batches of captioned scenes and their pictures, drawn ahead by worker processes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.scenes.pictures import scaled
from training.batches import BatchesAhead
from training.scenes.captions import captioned
from training.scenes.objects import OBJECTS
from training.scenes.render import pixels_of
from training.scenes.scene import random_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from training.batches import BatchSize, Job
    from training.scenes.captions import Captioned
    from training.scenes.render import Drawings, Pixels

MORE_AHEAD = 1
"""Batches of each size that wait, beyond one that each process draws."""


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


class SceneBatches(BatchesAhead["Captioned"]):
    """Captioned scenes and their pictures, in batches of any size.

    What the n-th batch of a size has depends on the recipe alone: not on the number of processes,
    on other sizes or on timing. Scenes are made where they are drawn, so the process that trains
    only receives them.
    """

    def __init__(self, recipe: Recipe, drawings: Drawings, workers: int = 0) -> None:
        super().__init__(workers, workers + MORE_AHEAD, (_open, (recipe, drawings)))
        self._recipe, self._drawings = recipe, drawings
        self._numbers: Counter[BatchSize] = Counter()

    def begun(self, size: BatchSize) -> bool:
        """Whether a batch of a size was asked for, or is to begin with a number."""
        return size in self._numbers

    def begin(self, size: BatchSize, number: int) -> None:
        """Let the next batch of a size (count, width, height) that is not drawn yet be the one so
        numbered.
        """
        self._numbers[size] = number

    def numbered(
        self, size: BatchSize, numbers: Sequence[int], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[list[Captioned], torch.Tensor]]:
        """Batches of a size by their numbers; what `take` gives next stays what it was."""
        jobs = [self._job(size, number) for number in numbers]
        if self._pool is None:
            drawn: Iterator[Any] = (draw(*given) for draw, given in jobs)
        else:
            waited = [self._pool.submit(draw, *given) for draw, given in jobs]
            drawn = (each.result() for each in waited)
        for scenes, pixels in drawn:
            yield scenes, scaled(pixels, device)

    def _next(self, size: BatchSize) -> Job:
        self._numbers[size] += 1
        return self._job(size, self._numbers[size] - 1)

    def _job(self, size: BatchSize, number: int) -> Job:
        if self._pool is not None:
            return _drawn_there, (size, number)
        return _drawn, (self._recipe, self._drawings, size, number)


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
