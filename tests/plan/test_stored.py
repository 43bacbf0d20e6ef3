"""Plans from files: the same plan back, and every reason why one cannot be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.errors import FrescoError, InvalidPlan, PlanError
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import SUMMARY_KEYS, plan_summary
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stored import check_plan, read_plan

TINY = model_facts("flux-tiny")
PLAN = make_plan(TINY, stages=3, preset="fast", cache="hicache,interval=2,warmup_steps=1")


@pytest.mark.parametrize("steps", [(1001,), (600, 401), (40_000,)])
def test_a_plan_has_no_more_steps_than_a_model_has_levels(steps: tuple[int, ...]) -> None:
    """Whoever makes it: a preset, a file, a manifest."""
    preset = Preset(steps=steps, switch=(0.5,) * (len(steps) - 1))
    with pytest.raises(InvalidPlan, match=rf"a plan of {sum(steps)} steps; expected at most 1000"):
        plan_from_preset(TINY, preset)


def stored(folder: Path, value: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_summary_has_the_plan_and_what_is_known_to_follow() -> None:
    assert plan_summary(TINY, PLAN).keys() == {*PLAN.to_json(), *SUMMARY_KEYS}


@pytest.mark.parametrize("written", [lambda: PLAN.to_json(), lambda: plan_summary(TINY, PLAN)])
def test_what_was_written_is_read_back(tmp_path: Path, written: Callable[[], Any]) -> None:
    assert read_plan(stored(tmp_path, written())) == PLAN


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (" " * 4_000_001, "more than 4000000 bytes"),
        ("[]", "expected an object"),
        ({**PLAN.to_json(), "speed": 10}, "plan has the unknown key speed"),
        ({"flops_ratio": 1.0}, "plan lacks keys model"),
        ({**PLAN.to_json(), "nfe": 1}, "plan nfe is 1"),
    ],
)
def test_what_is_no_plan_is_refused_by_its_file(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        read_plan(stored(tmp_path, value))
    assert f"--plan {tmp_path}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        read_plan(tmp_path / "absent.json")


# --- against the model -------------------------------------------------------------------------


def late() -> Any:
    first, *others = PLAN.stages
    return replace(PLAN, stages=(replace(first, sigmas=(0.995, *first.sigmas[1:])), *others))


def unlifted() -> Any:
    preset = Preset(steps=(1, 1), switch=(0.9,), lift="haar", noise="rewind")
    plan = plan_from_preset(TINY, preset)
    return replace(plan, transitions=(replace(plan.transitions[0], lift="bilinear"),))


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: make_plan(model_facts("flux"), stages=2), "a plan of flux, for flux-tiny"),
    (lambda: make_plan(replace(TINY, vae_scale=8), stages=2, size=(64, 64)), "on the grids 4x4"),
    (lambda: make_plan(replace(TINY, max_pixels=10**7), stages=1, size=(768, 512)), "768x512"),
    (late, "starts at sigma 0.995"),
    (unlifted, "rewinds with the lift 'bilinear'"),
]


@pytest.mark.parametrize(("plan", "said"), WRONG)
def test_what_the_model_cannot_draw_is_refused(plan: Callable[[], Any], said: str) -> None:
    with pytest.raises(InvalidPlan, match=said) as caught:
        check_plan(plan(), TINY)
    assert "fresco-trt plan --json" in caught.value.fix


@pytest.mark.parametrize("model", ["flux-tiny", "flux"])
def test_every_preset_is_a_plan_that_its_model_can_draw(model: str) -> None:
    facts = model_facts(model)
    for name, schedules in facts.presets.items():
        for stages in schedules:
            try:
                plan = make_plan(facts, stages=stages, preset=name)
            except FrescoError:  # too few tokens for its refinements at the default size
                continue
            check_plan(plan, facts)
