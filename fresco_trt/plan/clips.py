"""Changes of a preset that only clips have.

Under :mod:`fresco_trt.plan.changes`, which applies what was asked for.
"""

from __future__ import annotations

from dataclasses import replace

from fresco_trt.errors import IncompatibleOptions, PlanError
from fresco_trt.plan.config import PresetConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.refinement import EDITED
from fresco_trt.plan.sizes import Size, format_size, frames_of
from fresco_trt.plan.stage import MAX_AMPLIFIER


def of_a_clip(facts: ModelFacts, preset: Preset, asked: PresetConfig, size: Size) -> Preset:
    """The preset with what was ``asked`` for of a clip, itself where that is nothing. Raises
    IncompatibleOptions for what no stage would read, PlanError for a number out of range.
    """
    if asked.tube and not preset.tube:
        preset = _in_tubes(facts, preset, size)
    if asked.text_amplifier is not None:
        preset = _amplified(facts, preset, asked.text_amplifier)
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


def _amplified(facts: ModelFacts, preset: Preset, amplifier: float) -> Preset:
    given, stages = f"text_amplifier={amplifier:g}", len(preset.steps)
    if not facts.text_biased or stages == 1:
        raise IncompatibleOptions(
            f"{given} of {facts.name} in {stages} {'stage' if stages == 1 else 'stages'}",
            expected="a coarse stage of hunyuan-video: its engines take a bias of the text",
            fix="leave text_amplifier out",
        )
    if not 0.0 < amplifier <= MAX_AMPLIFIER:
        raise PlanError(
            given,
            expected=f"a number above 0, up to {MAX_AMPLIFIER:g}",
            fix="pass one like --preset balanced,text_amplifier=0.5",
        )
    return replace(preset, text_amplifier=amplifier)
