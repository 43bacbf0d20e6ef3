"""Stages with less of the text: each reads the front of it, and no token of the prompt is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import PromptTooLong
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning, engine_name

TEXT = 8
FACTS = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=TEXT)
SIZE = (64, 64)
CUT = (2, 4, 8)

STAGED = Preset(steps=(1, 2, 1), switch=(0.85, 0.7))
MIXED = replace(STAGED, refine=((("even", 0.25),), ()), window=1)
PRESETS = {
    "whole": STAGED,
    "mixed": MIXED,
    "aligned": replace(MIXED, positions="aligned"),
    "cached": replace(STAGED, cache=CacheConfig(name="reuse", actions=("F", "FB", "F"))),
    "trunk": replace(
        STAGED, cache=CacheConfig(name="hicache", actions=("F", "FB", "F"), site="trunk")
    ),
}


def plan_of(preset: Preset, *text: int, facts: ModelFacts = FACTS) -> StagePlan:
    return plan_from_preset(facts, replace(preset, text_tokens=text), size=SIZE)


def conditioning(batch: int = 1, **choices: Any) -> Conditioning:
    drawn = torch.Generator().manual_seed(5)

    def branch() -> dict[str, Tensor]:
        return {
            "text": torch.randn(batch, TEXT, FACTS.text_dim, generator=drawn),
            "pooled": torch.randn(batch, FACTS.pooled_dim, generator=drawn),
            "guidance": torch.full([batch], 3.5),
        }

    negative = {"negative": branch(), "true_cfg_scale": 2.0} if choices.pop("guided", False) else {}
    return Conditioning(inputs=branch(), **{"prompt_tokens": 2, **negative, **choices})


def signatures(plan: StagePlan, batch: int = 1) -> dict[str, Any]:
    return {
        engine_name(index, action): stage_signature(
            FACTS, plan, index, action, text_tokens=TEXT, batch=batch
        )
        for index, action in plan.graphs
    }


@pytest.fixture
def scope() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def fakes(plan: StagePlan, scope: ExitStack, batch: int = 1) -> dict[str, FakeRunner]:
    wanted = signatures(plan, batch)
    return {name: scope.enter_context(FakeRunner(each)) for name, each in wanted.items()}


def drawn(
    plan: StagePlan, runners: Mapping[str, Any], given: Conditioning, text: int = TEXT
) -> Any:
    denoiser = Denoiser.of(FACTS, plan, runners, text_tokens=text)
    *_, last = denoiser.steps(given, list(range(len(given.inputs["text"]))))
    return last.tokens


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_transformer(FACTS, seed=3)


def eager(plan: StagePlan, model: torch.nn.Module, scope: ExitStack) -> dict[str, Any]:
    return {
        name: scope.enter_context(module_runner(graph_from_signature(model, each), each))
        for name, each in signatures(plan).items()
    }


# --- what a stage reads -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_each_engine_gets_the_front_of_the_text_and_the_rows_for_it(
    name: str, scope: ExitStack
) -> None:
    cut, whole = plan_of(PRESETS[name], *CUT), plan_of(PRESETS[name])
    given = conditioning()
    found, all_of_it = fakes(cut, scope), fakes(whole, scope)
    drawn(cut, found, given)
    drawn(whole, all_of_it, given)
    for index, action in cut.graphs:
        shorter = found[engine_name(index, action)].calls
        longer = all_of_it[engine_name(index, action)].calls
        for ours, theirs in zip(shorter, longer, strict=True):
            assert ours.keys() == theirs.keys()
            if "text" in ours:
                assert torch.equal(ours["text"], given.inputs["text"][:, : CUT[index]])
            for table in (each for each in ours if each.startswith("rope")):
                front, behind = theirs[table][: CUT[index]], theirs[table][TEXT:]
                assert torch.equal(ours[table], torch.cat([front, behind]))


def test_coarse_velocities_read_the_text_of_their_stage(scope: ExitStack) -> None:
    cache = CacheConfig(name="coarse_velocity", actions=("FBF",))
    plan = plan_of(Preset(steps=(3,), cache=cache), 4)
    runners, given = fakes(plan, scope), conditioning()
    drawn(plan, runners, given)
    patchifier = FluxPatchifier(FACTS, 4)
    small = plan.velocity_grid
    assert small is not None
    for call in runners["stage1.bypass"].calls:
        assert torch.equal(call["text"], given.inputs["text"][:, :4])
        tables = patchifier.tables(patchifier.positions(small))
        assert torch.equal(call["rope_cos"], tables["rope_cos"])


@pytest.mark.parametrize("stacked", [False, True], ids=["apart", "stacked"])
def test_both_branches_of_a_batch_are_cut_alike(stacked: bool, scope: ExitStack) -> None:
    plan, given = plan_of(STAGED, *CUT), conditioning(batch=2, guided=True)
    runners = fakes(plan, scope, 4 if stacked else 2)
    drawn(plan, runners, given)
    assert given.negative is not None
    texts = [branch["text"][:, :2] for branch in (given.inputs, given.negative)]
    wanted = [torch.cat(texts)] if stacked else texts
    for call, text in zip(runners["stage1.full"].calls, wanted, strict=True):
        assert torch.equal(call["text"], text)


@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_cut_all_through_is_the_plan_of_a_shorter_text(
    name: str, model: torch.nn.Module, scope: ExitStack
) -> None:
    """And what stands behind the cut is never read: here it is no number."""
    given = conditioning()
    spoilt = given.inputs["text"].clone()
    spoilt[:, 4:] = torch.nan
    cut = plan_of(PRESETS[name], 4, 4, 4)
    inputs = {**given.inputs, "text": spoilt}
    ours = drawn(cut, eager(cut, model, scope), replace(given, inputs=inputs))
    front = {**given.inputs, "text": given.inputs["text"][:, :4].clone()}
    short = plan_of(PRESETS[name], facts=replace(FACTS, text_tokens=4))
    runners = {
        engine: scope.enter_context(module_runner(graph_from_signature(model, each), each))
        for index, action in short.graphs
        for engine in (engine_name(index, action),)
        for each in (stage_signature(FACTS, short, index, action, text_tokens=4),)
    }
    assert torch.equal(ours, drawn(short, runners, replace(given, inputs=front), text=4))
    uncut = plan_of(PRESETS[name])
    assert not torch.equal(ours, drawn(uncut, eager(uncut, model, scope), given))


def test_a_text_that_is_short_enough_is_not_cut(model: torch.nn.Module, scope: ExitStack) -> None:
    """A pipeline may be asked for a shorter text: a stage takes at most its own."""
    plan = plan_of(STAGED, *CUT)
    assert plan.text_tokens(2) == (2, 2, 2)
    given = replace(conditioning(), prompt_tokens=None)
    inputs = {**given.inputs, "text": given.inputs["text"][:, :2]}
    wanted = {
        name: stage_signature(FACTS, plan, index, text_tokens=2)
        for index in range(3)
        for name in (engine_name(index, "full"),)
    }
    runners = {name: scope.enter_context(FakeRunner(each)) for name, each in wanted.items()}
    drawn(plan, runners, replace(given, inputs=inputs), text=2)
    assert runners["stage3.full"].calls[0]["text"].shape[1] == 2


# --- what no stage loses ----------------------------------------------------------------------


@pytest.mark.parametrize(("own", "fits"), [(1, True), (2, True), (3, False), (8, False)])
def test_no_token_of_a_prompt_is_cut(own: int, fits: bool, scope: ExitStack) -> None:
    plan = plan_of(STAGED, 4, 2, 8)
    runners = fakes(plan, scope)
    given = conditioning(prompt_tokens=own)
    if fits:
        drawn(plan, runners, given)
        return
    with pytest.raises(PromptTooLong, match=f"prompt of {own} .* stage 2; expected at most 2"):
        drawn(plan, runners, given)
    assert not any(runner.calls for runner in runners.values())


def test_a_text_of_which_the_padding_is_not_known_is_not_cut(scope: ExitStack) -> None:
    plan = plan_of(STAGED, *CUT)
    with pytest.raises(PromptTooLong, match=r"8 tokens, of which it is not known .* stage 1"):
        drawn(plan, fakes(plan, scope), conditioning(prompt_tokens=None))
    uncut = plan_of(STAGED)
    drawn(uncut, fakes(uncut, scope), conditioning(prompt_tokens=None))


def test_a_cut_without_a_text_is_refused(scope: ExitStack) -> None:
    plan = plan_of(STAGED, *CUT)
    denoiser = Denoiser.of(FACTS, plan, fakes(plan, scope), text_tokens=TEXT)
    with pytest.raises(ValueError, match=r"cuts the text .* expected 'text'"):
        next(denoiser.steps(Conditioning(inputs={}), 0))
