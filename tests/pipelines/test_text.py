"""Prompts and plans that give stages less of the text: by a bundle, and in an enabled pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fresco_trt
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import IncompatibleOptions, PromptTooLong
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.trajectories import cases, denoiser_of, drawn
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.flux.components import FluxPrompt
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import own_tokens
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.run.request import engine_name
from fresco_trt.verify import verify_bundle

PRESET = "turbo,text_tokens=32+64+128"
PROMPT = "a red apple on a plain blue background"
LONG = "a red apple " * 15

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def bundle(few_steps: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text") / "bundle"
    return fresco_trt.build(
        "flux-tiny", preset=PRESET, size=(64, 64), backend="eager", weights=None, out=out
    )


def called(pipe: Any, **given: Any) -> Any:
    basics: dict[str, Any] = {
        "prompt": PROMPT,
        "height": 64,
        "width": 64,
        "max_sequence_length": 128,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(7),
    }
    return pipe(**(basics | given)).images


def embedded(pipe: Any, length: int, prefix: str = "") -> dict[str, Tensor]:
    text, pooled, _ = pipe.encode_prompt(PROMPT, None, max_sequence_length=length)
    return {f"{prefix}prompt_embeds": text, f"{prefix}pooled_prompt_embeds": pooled}


# --- how many tokens are a prompt's own -------------------------------------------------------


def test_own_tokens_are_all_in_front_of_the_padding() -> None:
    prompt = FluxPrompt(fresco_trt.pretrained("flux-tiny"), FLUX_TINY.text_tokens)
    assert [prompt.tokens(text) for text in ("", "apple", PROMPT)] == [1, 2, 9]
    assert prompt.tokens("apple " * 500) == FLUX_TINY.text_tokens
    inputs = prompt(PROMPT)["text"], prompt(f"{PROMPT} apple")["text"]
    assert not torch.equal(inputs[0][:, 9], inputs[1][:, 9])  # the first that is padding


def test_padding_in_front_is_no_padding_behind(shared: Any) -> None:
    tokenizer = copy.deepcopy(shared.tokenizer_2)
    assert own_tokens(tokenizer, ["apple", PROMPT], 32) == 9
    tokenizer.padding_side = "left"
    assert own_tokens(tokenizer, ["apple", PROMPT], 32) == 32


# --- bundles ----------------------------------------------------------------------------------


def test_a_bundle_draws_with_less_text_and_refuses_a_prompt_that_has_more(bundle: Path) -> None:
    with FrescoPipeline.from_bundle(bundle) as pipe:
        texts = [each.signature.input("text").shape[1] for each in pipe.runners.values()]
        assert sorted(texts) == [32, 64, 128]
        first = np.asarray(pipe(PROMPT, seed=3).images[0])
        with pytest.raises(PromptTooLong, match=r"prompt of 46 text tokens for stage 1; .* 32"):
            pipe(LONG, seed=3)
        assert (np.asarray(pipe(PROMPT, seed=3).images[0]) == first).all()
    assert verify_bundle(bundle).pixels == 0


def test_a_bundle_that_lies_about_its_text_is_not_opened(bundle: Path) -> None:
    from fresco_trt.bundle import open_bundle
    from fresco_trt.errors import EnvironmentMismatch
    from fresco_trt.pipelines.environment import check_environment

    manifest = open_bundle(bundle).manifest
    plan = fresco_trt.plan("flux-tiny", stages=3, preset="turbo", size=(64, 64))
    with pytest.raises(EnvironmentMismatch, match=r"stage1.full .*text.*32.*128"):
        check_environment(manifest.model_copy(update={"plan": plan}))


def test_a_calibration_prompt_that_has_more_is_named() -> None:
    plan = fresco_trt.plan("flux-tiny", stages=3, preset=PRESET, size=(64, 64))
    reference = Reference(
        facts=FLUX_TINY,
        transformer=torch.nn.Identity(),
        weights_sha256="",
        pipeline=fresco_trt.pretrained("flux-tiny"),
        prompts=(PROMPT, LONG),
    )
    runners = {
        engine_name(index, action): FakeRunner(
            stage_signature(FLUX_TINY, plan, index, action, text_tokens=FLUX_TINY.text_tokens)
        )
        for index, action in plan.graphs
    }
    with pytest.warns(PromptWarning, match="pooled"):
        first, second = cases(reference, plan)
    denoiser = denoiser_of(reference, plan, runners)
    drawn(denoiser, first, 0)
    with pytest.raises(PromptTooLong, match=r"calibration prompt 2: a prompt of 46"):
        drawn(denoiser, second, 0)


# --- enabled pipelines ------------------------------------------------------------------------


def test_an_enabled_pipeline_draws_what_its_engines_do(pipe: Any, bundle: Path) -> None:
    fresco_trt.enable(pipe, preset=PRESET)
    ours = called(pipe)
    copied = copy.deepcopy(pipe)
    assert torch.equal(called(copied), ours)
    fresco_trt.disable(copied)
    fresco_trt.enable(pipe, preset="turbo")
    assert not torch.equal(called(pipe), ours)
    fresco_trt.enable(pipe, engines=bundle)
    assert torch.equal(called(pipe), ours)


REFUSED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "prompt": lambda pipe: {"prompt": LONG},
    "second_prompt": lambda pipe: {"prompt_2": LONG},
    "one_of_a_batch": lambda pipe: {"prompt": [PROMPT, LONG]},
    "negative": lambda pipe: {"negative_prompt": LONG, "true_cfg_scale": 2.0},
    "embeds": lambda pipe: {"prompt": None, **embedded(pipe, 128)},
    "negative_embeds": lambda pipe: {"true_cfg_scale": 2.0, **embedded(pipe, 128, "negative_")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_a_prompts_own_is_never_cut(pipe: Any, name: str) -> None:
    fresco_trt.enable(pipe, preset=PRESET)
    with pytest.raises(PromptTooLong, match="for stage 1; expected at most 32"):
        called(pipe, **REFUSED[name](pipe))


HONOURED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "batch": lambda pipe: {"prompt": [PROMPT, "a pear"]},
    "negative": lambda pipe: {"negative_prompt": "a pear", "true_cfg_scale": 2.0},
    "unread_negative": lambda pipe: {"negative_prompt": LONG},
    "short_text": lambda pipe: {"max_sequence_length": 32, "prompt": LONG},
    "short_embeds": lambda pipe: {"prompt": None, **embedded(pipe, 32)},
}


@pytest.mark.parametrize("name", HONOURED)
def test_what_loses_no_token_of_a_prompt_is_drawn(pipe: Any, name: str) -> None:
    given = HONOURED[name](pipe)
    fresco_trt.enable(pipe, preset=PRESET)
    assert called(pipe, **given).isfinite().all()


@pytest.mark.parametrize("behind", [False, True], ids=["in_front", "behind"])
def test_a_callback_may_change_the_text_that_every_stage_reads(pipe: Any, behind: bool) -> None:
    def change(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> Any:
        text = tensors["prompt_embeds"].clone()
        text[:, 32 if behind else 31] += 1.0
        return {"prompt_embeds": text}

    given = {
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    fresco_trt.enable(pipe, preset=PRESET)
    if not behind:
        assert not torch.equal(called(pipe, **given), called(pipe))
        return
    with pytest.raises(IncompatibleOptions, match="first 32 tokens"):
        called(pipe, **given)
