"""Every cache there is, ours and the peers', on the model's own steps and on presets.

    python -m bench.caches --out bench/results

The command's own points have our caches where they are best, on few steps with a tuned shift, and
one or two of them on the many. Here all of them stand beside what others put on the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from bench.study import SOURCES, command
from bench.tables import caching_table
from fresco_trt.bench.job import Study
from fresco_trt.bench.methods import Point
from fresco_trt.bench.points import CACHED_PRESETS, cached_points, points_of
from fresco_trt.plan.caching import cache_names
from fresco_trt.plan.making import find_preset

if TYPE_CHECKING:
    from fresco_trt.plan import sizes
    from fresco_trt.plan.facts import ModelFacts

INTERVALS = (3, 5, 7)
PEERS = ("taylorseer", "first-block", "cache-dit")


def points(facts: ModelFacts, size: sizes.Size) -> tuple[Point, ...]:
    """The plain pipeline, the peers on as many steps, the presets as they are, and our caches."""
    plain, *others = points_of(facts, size)
    stages = max(facts.stage_counts)
    return (
        plain,
        *(each for each in others if each.method in PEERS and each.nfe == facts.default_steps),
        *(
            Point(method="fresco", settings=find_preset(facts, name, stages), preset=name)
            for name in CACHED_PRESETS
        ),
        *cached_points(facts, dict.fromkeys(cache_names("feature"), INTERVALS)),
    )


STUDY = Study(
    name="caches",
    program="python -m bench.caches",
    points="bench.caches:points",
    table=caching_table,
    sources=SOURCES,
)


main = command("Measure every cache on the plain steps and on presets.", lambda weights: STUDY)

if __name__ == "__main__":
    typer.run(main)
