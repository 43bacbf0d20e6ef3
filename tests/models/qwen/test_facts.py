"""The facts of the Qwen-Image family are those of the models that diffusers builds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fresco_trt.bench.job import setup_of
from fresco_trt.errors import FrescoError, IncompatibleOptions, PlanError, UnsupportedPrecision
from fresco_trt.lower.calibrate.run_amax import run_amax
from fresco_trt.lower.calibrate.run_features import run_basis, run_cache_schedule
from fresco_trt.lower.calibrate.run_spectrum import run_spectrum
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.qwen.config import transformer_config
from fresco_trt.models.qwen.facts import QWEN_FACTS, QWEN_IMAGE, QWEN_IMAGE_EDIT
from fresco_trt.models.qwen.layers import graph_parameters, with_blocks
from fresco_trt.models.registry import family_of
from fresco_trt.plan.cost import flops_of_step, plan_cost
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stored import check_plan

ASKED: Any = SimpleNamespace(model="qwen-image", backend="eager", predictor=None, size=None)


@pytest.mark.parametrize("facts", QWEN_FACTS, ids=lambda facts: facts.name)
def test_parameters_are_those_of_the_transformer(facts: ModelFacts) -> None:
    from diffusers import QwenImageTransformer2DModel

    kind: Any = QwenImageTransformer2DModel
    with torch.device("meta"):
        model = kind(**transformer_config(with_blocks(facts, (1,))))
    one = sum(each.numel() for each in model.parameters())
    block = sum(each.numel() for each in model.transformer_blocks.parameters())
    assert one + (facts.double_blocks - 1) * block == facts.parameters
    assert graph_parameters(facts).whole == facts.parameters
    assert model.config.zero_cond_t == facts.references_at_zero


def test_a_plan_counts_both_passes_and_both_pictures() -> None:
    plan = make_plan(QWEN_IMAGE_EDIT, stages=1, steps=3)
    step = flops_of_step(QWEN_IMAGE_EDIT, 4096, references=4096)
    assert plan_cost(QWEN_IMAGE_EDIT, plan).flops == 3 * 2 * step
    assert step == flops_of_step(replace(QWEN_IMAGE, text_tokens=4096 + 1664), 4096)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (
            lambda: make_plan(QWEN_IMAGE, stages=1, cache="svd,interval=3"),
            IncompatibleOptions,
            "the cache svd for qwen-image",
        ),
        (
            lambda: make_plan(QWEN_IMAGE, stages=2, preset="text_tokens=256+512"),
            PlanError,
            r"text_tokens=256\+512 for 2 stages of qwen-image",
        ),
        (
            lambda: resolve(BuildRequest(model="qwen-image", precision="int8")),
            UnsupportedPrecision,
            "--precision int8 of qwen-image",
        ),
        (
            lambda: resolve(BuildRequest(model="qwen-image-edit", precision="fp8")),
            UnsupportedPrecision,
            "--precision fp8 of qwen-image-edit",
        ),
        *(
            (
                lambda run=run: run(ASKED, None),
                IncompatibleOptions,
                "a calibration of qwen-image; expected a model of the FLUX family",
            )
            for run in (run_amax, run_basis, run_cache_schedule)
        ),
        (
            lambda: run_spectrum(ASKED, None, None),
            IncompatibleOptions,
            "a calibration of qwen-image",
        ),
        (lambda: setup_of(ASKED, None, None), IncompatibleOptions, "a benchmark of qwen-image"),
        (lambda: with_blocks(QWEN_IMAGE, (1, 1)), PlanError, "one number from 1 to 60"),
        (lambda: with_blocks(QWEN_IMAGE, (61,)), PlanError, "--blocks 61 of qwen-image"),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_name(
    call: Any, kind: type[FrescoError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call()


def test_a_plan_from_a_file_with_a_cache_by_a_basis_is_refused() -> None:
    plan = make_plan(replace(QWEN_IMAGE, calibrated=True), stages=1, cache="svd,interval=3")
    with pytest.raises(PlanError, match="the cache svd"):
        check_plan(plan, QWEN_IMAGE)


def test_only_models_that_edit_have_a_preset_of_selective_edits() -> None:
    with pytest.raises(PlanError, match="preset 'specedit' for qwen-image;"):
        make_plan(QWEN_IMAGE, stages=3, preset="specedit")


@pytest.mark.parametrize("option", ["aligned", "coarse_velocity"])
def test_a_plan_that_no_graph_is_for_is_refused(option: str) -> None:
    if option == "aligned":
        preset = Preset(
            steps=(1, 1, 1),
            switch=(0.8, 0.5),
            refine=((("even", 0.25),), ()),
            window=1,
            positions="aligned",
        )
        plan = plan_from_preset(QWEN_IMAGE, preset)
    else:
        plan = make_plan(QWEN_IMAGE, stages=1, cache=option)
    stage = len(plan.stages) // 2
    with pytest.raises(PlanError, match="of a Qwen-Image model"):
        family_of(QWEN_IMAGE).graphs.signature(QWEN_IMAGE, plan, stage, text_tokens=512)
