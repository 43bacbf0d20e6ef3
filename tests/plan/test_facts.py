"""Laws of model facts: numbers that contradict one another are refused."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.schedule import ShiftRule, dynamic_mu

TINY = model_facts("flux-tiny")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "heads"),
        ({"rope_axes": (4, 14)}, "rope_axes"),
        ({"in_channels": 64}, "in_channels"),
        ({"guidance": False}, "guidance"),
        ({"guidance_default": None}, "guidance"),
        ({"fixed_shift": 3.0}, "fixed_shift"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **change)


@pytest.mark.parametrize("tokens", [(0, 4), (4, 4), (5, 4)])
def test_a_shift_rule_spans_something(tokens: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        ShiftRule(base_shift=0.5, max_shift=1.0, base_tokens=tokens[0], max_tokens=tokens[1])


@pytest.mark.parametrize("name", model_names())
def test_the_shift_factor_is_that_of_the_rule(name: str) -> None:
    facts = model_facts(name)
    rule = facts.shift
    expected = facts.fixed_shift if rule is None else math.exp(dynamic_mu(1024, rule))
    assert facts.shift_factor(1024) == expected


def test_facts_can_be_compared_and_hashed() -> None:
    assert replace(TINY) == TINY
    assert hash(replace(TINY)) == hash(TINY)
    assert replace(TINY, max_pixels=1) != TINY


def test_a_stage_count_is_offered_while_some_preset_has_it() -> None:
    presets = {name: dict(schedules) for name, schedules in TINY.presets.items()}
    del presets["fast"][2]
    assert replace(TINY, presets=presets).stage_counts == (1, 2, 3)
    fewer = {name: {3: schedules[3]} for name, schedules in presets.items()}
    assert replace(TINY, presets=fewer).stage_counts == (3,)
    assert replace(TINY, presets={}).stage_counts == ()


def test_planning_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "tensorrt", "diffusers", "transformers"}
    code = (
        "import sys, fresco_trt.models.registry, fresco_trt.plan.cost, fresco_trt.plan.signature;"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
