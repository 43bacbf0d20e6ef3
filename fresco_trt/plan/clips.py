"""Changes of a preset that only clips have.

Under :mod:`fresco_trt.plan.making`, which applies what was asked for.
"""

from __future__ import annotations

from dataclasses import replace

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.config import PresetConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.refinement import EDITED
from fresco_trt.plan.sizes import Size, format_size, frames_of


def of_a_clip(facts: ModelFacts, preset: Preset, asked: PresetConfig, size: Size) -> Preset:
    """The preset with what was ``asked`` for of a clip, itself where that is nothing. Raises
    IncompatibleOptions for what no stage would read.
    """
    if asked.tube and not preset.tube:
        preset = _in_tubes(facts, preset, size)
    return preset


def _in_tubes(facts: ModelFacts, preset: Preset, size: Size) -> Preset:
    rules = {rule for shares in preset.shares for rule, _ in shares}
    if frames_of(size) == 1 or not rules or EDITED in rules:
        raise IncompatibleOptions(
            f"tube=true with {facts.name} at {format_size(size)}",
            expected="a clip, and a preset with a mixed stage: frames to refine alike",
            fix="leave tube out, or pass --model hunyuan-video --preset fresco-18,tube=true",
        )
    return replace(preset, tube=True)
