"""Calls of an enabled pipeline: every argument that is honoured means what diffusers means by it.

A plain pipeline is the reference, on flux-tiny at 64x64 with a step or two and short texts. The
latents are compared, exactly: in one stage the two are the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fresco_trt
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.pipelines.diffusers.fit import facts_of
from fresco_trt.plan.making import make_plan
from tests.shallow import shallow_pipeline

PROMPTS = ["a red apple on a blue background", "a pear"]
STAGED: dict[str, Any] = {"stages": 2, "preset": "turbo"}
OBSERVED = ("interrupt", "num_timesteps", "guidance_scale", "current_timestep")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one block of each kind: nothing here is about how many."""
    return shallow_pipeline(tmp_path_factory.mktemp("weights") / "shallow")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def drawn(pipe: Any, **given: Any) -> Tensor:
    """Latents: decoding them would take longer than drawing them."""
    basics: dict[str, Any] = {
        "prompt": PROMPTS[0],
        "height": 64,
        "width": 64,
        "max_sequence_length": 32,
        "num_inference_steps": 2,
        "generator": seeded(7)[0],
        "output_type": "latent",
    }
    given = {**basics, **given}
    tensor = pipe(**{name: each for name, each in given.items() if each is not ...}).images
    assert isinstance(tensor, Tensor)
    return tensor


class Change:
    """A callback that writes down what it is shown, and changes it."""

    def __init__(self, *, stop_after: int | None = None, returns: bool = True) -> None:
        self.stop_after, self.returns = stop_after, returns
        self.seen: list[Any] = []

    def __call__(self, pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> Any:
        observed = [float(getattr(pipe, name)) for name in OBSERVED]
        self.seen.append((step, float(timestep), observed, sorted(tensors)))
        if step == self.stop_after:
            pipe._interrupt = True
        if not self.returns:
            return {}
        return {name: tensor * 0.9 for name, tensor in tensors.items()}


def text(pipe: Any, prompt: str, prefix: str = "") -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(prompt, None, max_sequence_length=32)
    return {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}


# --- the laws ---------------------------------------------------------------------------------

Given = Mapping[str, Any]
HONOURED: dict[str, Callable[[Any], Given]] = {
    "nothing": lambda pipe: {},
    "prompts": lambda pipe: {"prompt": PROMPTS, "generator": seeded(1, 2)},
    "two_of_one": lambda pipe: {"num_images_per_prompt": 2},
    "two_of_each": lambda pipe: {
        "prompt": PROMPTS,
        "num_images_per_prompt": 2,
        "generator": seeded(1, 2, 3, 4),
    },
    "negative": lambda pipe: {"negative_prompt": "a pear", "true_cfg_scale": 3.0},
    "negatives": lambda pipe: {
        "prompt": PROMPTS,
        "negative_prompt": PROMPTS[::-1],
        "true_cfg_scale": 3.0,
    },
    "negative_embeds": lambda pipe: {"true_cfg_scale": 2.0, **text(pipe, "a pear", "negative_")},
    "negative_without_scale": lambda pipe: {"negative_prompt": "a pear"},
    "scale_without_negative": lambda pipe: {"true_cfg_scale": 2.0},
    "embeds": lambda pipe: {"prompt": None, **text(pipe, "a bell")},
    "second_prompt": lambda pipe: {"prompt_2": "a bell"},
    "adapter_scale": lambda pipe: {"joint_attention_kwargs": {"scale": 0.5}},
}


@pytest.mark.parametrize("name", HONOURED)
def test_an_honoured_argument_draws_what_it_draws_without(pipe: Any, name: str) -> None:
    plain = drawn(pipe, **HONOURED[name](pipe))
    fresco_trt.enable(pipe, stages=1)
    assert torch.equal(drawn(pipe, **HONOURED[name](pipe)), plain)


CALLBACKS: dict[str, Given] = {
    "latents": {},
    "text": {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
    "batch": {"prompt": PROMPTS, "negative_prompt": PROMPTS, "true_cfg_scale": 2.0},
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"stop_after": 0}, {"returns": False}],
    ids=["goes_on", "interrupts", "returns_nothing"],
)
def test_callbacks_see_and_decide_what_they_do_without(
    pipe: Any, name: str, options: dict[str, Any]
) -> None:
    ours, theirs = Change(**options), Change(**options)
    plain = drawn(pipe, callback_on_step_end=theirs, **CALLBACKS[name])
    observed = {each: getattr(pipe, each) for each in OBSERVED}
    fresco_trt.enable(pipe, stages=1)
    assert torch.equal(drawn(pipe, callback_on_step_end=ours, **CALLBACKS[name]), plain)
    assert ours.seen == theirs.seen
    assert {each: getattr(pipe, each) for each in OBSERVED} == observed


@pytest.mark.parametrize("size", [(73, 66), (64.0, 64.0)])
def test_sizes_are_rounded_as_diffusers_rounds_them(pipe: Any, size: tuple[float, float]) -> None:
    given = dict(zip(("height", "width"), size, strict=True))
    plain = drawn(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    assert torch.equal(drawn(pipe, **given), plain)


@pytest.mark.parametrize("name", ["prompts", "two_of_one", "negative", "negatives"])
def test_engines_draw_what_the_pipeline_draws(pipe: Any, one_stage: Path, name: str) -> None:
    """One after the other, where the pipeline takes them together: the last digits may differ."""
    built = {"max_sequence_length": 128}
    seen = Change(returns=False), Change(returns=False)
    plain = drawn(pipe, callback_on_step_end=seen[0], **{**HONOURED[name](pipe), **built})
    fresco_trt.enable(pipe, engines=one_stage)
    ours = drawn(pipe, callback_on_step_end=seen[1], **{**HONOURED[name](pipe), **built})
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
    assert seen[0].seen == seen[1].seen


CACHES: dict[str, Callable[[Any], Any]] = {
    "FirstBlockCacheConfig": lambda kind: kind(threshold=0.8),
    "MagCacheConfig": lambda kind: kind(
        threshold=0.5, num_inference_steps=4, retention_ratio=0.2, mag_ratios=torch.ones(4)
    ),
    "PyramidAttentionBroadcastConfig": lambda kind: kind(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        spatial_attention_block_identifiers=["transformer_blocks"],
    ),
    "TaylorSeerCacheConfig": lambda kind: kind(
        cache_interval=2, disable_cache_before_step=1, max_order=1, use_lite_mode=True
    ),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("guided", [False, True], ids=["", "guided"])
def test_caches_of_diffusers_skip_what_they_skip_without(
    pipe: Any, name: str, guided: bool
) -> None:
    import diffusers

    config = CACHES[name](getattr(diffusers, name))
    config.current_timestep_callback = lambda: pipe.current_timestep
    given: dict[str, Any] = {"num_inference_steps": 4}
    given |= {"negative_prompt": "a pear", "true_cfg_scale": 2.0} if guided else {}
    uncached = drawn(pipe, **given)
    pipe.transformer.enable_cache(config)
    try:
        plain = drawn(pipe, **given)
        fresco_trt.enable(pipe, stages=1)
        for _ in range(2):  # what was kept is forgotten in between
            assert torch.equal(drawn(pipe, **given), plain)
        with pytest.raises(IncompatibleOptions, match="a transformer with hooks of its own"):
            fresco_trt.enable(pipe, **STAGED)
        with pytest.raises(IncompatibleOptions, match="a transformer with hooks of its own"):
            fresco_trt.enable(pipe, stages=1, cache="hicache")
    finally:
        pipe.transformer.disable_cache()
    assert not torch.equal(plain, uncached)
    assert torch.equal(drawn(pipe, **given), uncached)


# --- stages -----------------------------------------------------------------------------------


def test_each_picture_of_a_staged_batch_is_its_own(pipe: Any) -> None:
    fresco_trt.enable(pipe, **STAGED)
    given: dict[str, Any] = {"num_inference_steps": ...}
    both = drawn(pipe, prompt=PROMPTS, generator=seeded(1, 2), **given)
    for picture, prompt, seed in zip(both, PROMPTS, (1, 2), strict=True):
        alone = drawn(pipe, prompt=prompt, generator=seeded(seed), **given)
        torch.testing.assert_close(picture[None], alone, atol=1e-4, rtol=0)


def test_latents_of_a_callback_cross_a_transition(pipe: Any) -> None:
    """A coarse stage's last latents, replaced, are what the next stage starts from."""
    fresco_trt.enable(pipe, **STAGED)
    given: dict[str, Any] = {"num_inference_steps": ...}
    last = make_plan(facts_of(pipe), size=(64, 64), **STAGED).stages[0].steps - 1

    def change(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        assert tensors["latents"].shape[1] == (16 if step <= last else 64)
        return {"latents": tensors["latents"] * 0.5} if step == last else {}

    first = drawn(pipe, **given)
    assert not torch.equal(drawn(pipe, callback_on_step_end=change, **given), first)
    assert torch.equal(drawn(pipe, **given), first)


def test_a_callbacks_text_is_its_own(pipe: Any) -> None:
    """What a callback returns is read from then on, and never written to the caller's tensors."""
    embeds = text(pipe, "a bell")
    before = {name: tensor.clone() for name, tensor in embeds.items()}
    names = ["latents", "prompt_embeds"]
    for options in ({"stages": 1}, STAGED):
        fresco_trt.enable(pipe, **options)
        given: dict[str, Any] = {"prompt": None, "num_inference_steps": ..., **embeds}
        if options is not STAGED:
            given["num_inference_steps"] = 2
        changed = {"callback_on_step_end": Change(), "callback_on_step_end_tensor_inputs": names}
        drawn(pipe, **given, **changed)
        assert all(torch.equal(embeds[name], before[name]) for name in embeds)


@pytest.mark.parametrize("output_type", ["latent", "np"])
def test_an_interrupted_sketch_has_the_size_that_was_asked_for(pipe: Any, output_type: str) -> None:
    fresco_trt.enable(pipe, **STAGED)
    stop = Change(stop_after=0, returns=False)
    given = {"num_inference_steps": None, "height": 64, "width": 64, "max_sequence_length": 32}
    result = pipe(PROMPTS[0], callback_on_step_end=stop, output_type=output_type, **given)
    assert len(stop.seen) == 1
    assert result.images.shape == ((1, 64, 16) if output_type == "latent" else (1, 64, 64, 3))


def test_a_pipeline_stopped_once_draws_again(pipe: Any) -> None:
    plain = drawn(pipe)
    fresco_trt.enable(pipe, stages=1)
    drawn(pipe, callback_on_step_end=Change(stop_after=0))
    assert torch.equal(drawn(pipe), plain)


# --- refused ----------------------------------------------------------------------------------

OWN_CHECKS: dict[str, tuple[Given, str]] = {
    "tensor_inputs": ({"callback_on_step_end_tensor_inputs": ["x"]}, "has to be in"),
    "both": ({"prompt_embeds": torch.ones(1, 4, 8)}, "Cannot forward both `prompt`"),
    "no_prompt": ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
    "too_long": ({"max_sequence_length": 513}, "cannot be greater than 512"),
    "half": ({"negative_prompt_embeds": torch.ones(1, 4, 8)}, "also have to be passed"),
    "generators": ({"generator": seeded(1, 2)}, "list of generators of length 2"),
}


@pytest.mark.parametrize("name", OWN_CHECKS)
def test_the_pipelines_own_errors_stay(pipe: Any, name: str) -> None:
    given, told = OWN_CHECKS[name]
    for _ in range(2):
        with pytest.raises(ValueError, match=told):
            drawn(pipe, **given)
        fresco_trt.enable(pipe, stages=1)


def test_embeds_of_two_lengths_are_refused_where_they_are_compared(pipe: Any) -> None:
    fresco_trt.enable(pipe, stages=1)
    longer = {
        name: each.repeat(1, 2, 1)
        for name, each in text(pipe, "a", "negative_").items()
        if each.ndim == 3
    }
    given = {"prompt": None, **text(pipe, "a bell"), **text(pipe, "a", "negative_"), **longer}
    with pytest.raises(ValueError, match="must have the same shape when passed directly"):
        drawn(pipe, **given, true_cfg_scale=2.0)
    drawn(pipe, **given)
    words = {"prompt": "a bell", "prompt_embeds": None, "pooled_prompt_embeds": None}
    with pytest.raises(
        IncompatibleOptions, match="1 of negative_prompt or its embeds of 64 tokens"
    ):
        drawn(pipe, **{**given, **words}, true_cfg_scale=2.0)
