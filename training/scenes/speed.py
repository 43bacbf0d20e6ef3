"""How many pictures a second this machine draws."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from training.scenes.batches import Recipe, SceneBatches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.scenes.render import Drawings

SIDES = (64, 128, 256)


def render_rates(
    drawings: Drawings, workers: int = 0, count: int = 64, batches: int = 4
) -> Iterator[tuple[int, float]]:
    """Each side, and pictures a second of it: of all processes, or of a core's own time with none.

    A thousand small ones for each process, which read nearly all drawings, come first and do not
    count.
    """
    clock = time.monotonic if workers else time.process_time
    with SceneBatches(Recipe(seed=0), drawings, workers) as drawn:
        for _ in range(max(1, workers) * -(-1000 // count)):
            drawn.take(count, 64, 64)
        for side in SIDES:
            # What is still drawn of the size before comes out of the way, and nothing lies ready.
            for _ in range(workers + 1):
                drawn.take(count, side, side)
            begun = clock()
            for _ in range(batches):
                drawn.take(count, side, side)
            yield side, count * batches / (clock() - begun)
