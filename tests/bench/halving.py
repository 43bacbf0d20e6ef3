"""A size of each model that every operating point can be planned at."""

from __future__ import annotations

from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Size
from fresco_trt.plan.sizes import frames_of, with_frames


def halving(facts: ModelFacts) -> Size:
    """The model's own size, or the nearest below whose grids halve twice."""
    cell = 4 * facts.vae_scale * facts.patch
    width, height = (side // cell * cell for side in facts.default_size[:2])
    return with_frames((width, height), frames_of(facts.default_size))
