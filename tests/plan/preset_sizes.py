"""A size that a preset of a model can be planned at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.plan.sizes import frames_of, with_frames

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size


def size_for(facts: ModelFacts, preset: str) -> Size:
    """The model's own, or the nearest below whose grid halves where a stage is mixed."""
    mixed = any(any(each.shares) for each in facts.presets[preset].values())
    cell = 2 * facts.vae_scale * facts.patch if mixed else 1
    width, height = (side // cell * cell for side in facts.default_size[:2])
    return with_frames((width, height), frames_of(facts.default_size))
