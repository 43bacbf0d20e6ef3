"""One line on a diffusers pipeline: the plain picture in one stage, arguments honoured or refused.

On flux-tiny at 64x64, with few steps and short texts.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fresco_trt
from fresco_trt.bundle.svd_basis import Basis, BasisRecord
from fresco_trt.errors import (
    BundleNotFound,
    CalibrationError,
    DigestMismatch,
    FrescoError,
    IncompatibleOptions,
    PlanError,
    UnknownModel,
    UnknownPreset,
    UnsupportedSize,
    UnsupportedStages,
)
from fresco_trt.models.drivers import PLAIN, SHIFTED, PipelineDriver
from fresco_trt.models.flux.config import transformer_config
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import weights_digest
from fresco_trt.pipelines.checks import guidance_of
from fresco_trt.pipelines.diffusers.fit import facts_of
from tests.pipelines.demo import TURBO_STEPS, new_pipe
from tests.shallow import short_turbo

PROMPT = "a red apple on a blue background"
FACTS = model_facts("flux-tiny")
pytestmark = pytest.mark.usefixtures("few_steps")


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def call(pipe: Any, **given: Any) -> Any:
    """A call at 64x64 with a short text, as changed."""
    basics = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": 32}
    given = {**basics, "generator": seeded(), **given}
    return pipe(**{name: value for name, value in given.items() if value is not ...})


def pixels(pipe: Any, **given: Any) -> Any:
    return np.asarray(call(pipe, **given).images[0]).astype(int)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"num_inference_steps": 3, "guidance_scale": 1.5}])
def test_one_stage_draws_the_pipelines_own_picture(pipe: Any, given: dict[str, Any]) -> None:
    plain = pixels(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    assert np.abs(pixels(pipe, **given) - plain).max() <= 2


def test_the_usual_call_means_the_same(pipe: Any) -> None:
    """Sizes that are no square, a list of one, positional arguments, a generator already used."""
    used = [seeded(), seeded()]
    for generator in used:
        torch.randn(5, generator=generator)
    given = {"height": 96, "prompt": [PROMPT], "num_inference_steps": 2, "output_type": "np"}
    plain = call(pipe, **given, generator=[used[0]]).images
    fresco_trt.enable(pipe, stages=1)
    ours = call(pipe, **given, generator=[used[1]]).images
    assert ours.shape == plain.shape == (1, 96, 64, 3)
    assert np.abs(ours - plain).max() * 255 <= 2
    assert torch.equal(torch.randn(3, generator=used[0]), torch.randn(3, generator=used[1]))
    steps = {"num_inference_steps": 1, "max_sequence_length": 32, "return_dict": False}
    assert pipe(PROMPT, None, None, None, 1.0, 64, 64, **steps)[0][0].size == (64, 64)


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_outputs_have_diffusers_own_form(pipe: Any, output_type: str) -> None:
    given = {"num_inference_steps": 2, "output_type": output_type, "return_dict": False}
    (plain,) = call(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    (ours,) = call(pipe, **given)
    assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
    torch.testing.assert_close(ours, plain, atol=1e-3, rtol=0)


def test_embeddings_and_latents_are_taken_as_they_are(pipe: Any) -> None:
    embeds, pooled, _ = pipe.encode_prompt(PROMPT, None, max_sequence_length=24)
    latents, _ = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", seeded())
    given = {"num_inference_steps": 2, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    given |= {"prompt": None, "latents": latents, "generator": None}
    plain = pixels(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    assert np.abs(pixels(pipe, **given) - plain).max() <= 2


@pytest.mark.parametrize(
    "options",
    [{}, {"cache": "hicache"}, {"stages": 2, "cache": "taylor,max_order=1"}],
)
def test_stages_and_caches_draw_what_the_plan_says(pipe: Any, options: dict[str, Any]) -> None:
    fresco_trt.enable(pipe, **{"stages": 3, "preset": "turbo", **options})
    wanted = fresco_trt.plan(
        "flux-tiny", size=(64, 64), **{"stages": 3, "preset": "turbo", **options}
    )
    first = pixels(pipe, num_inference_steps=wanted.nfe)
    assert (pixels(pipe) == first).all()
    assert (pixels(pipe, generator=seeded(8)) != first).any()


def test_staged_pictures_are_those_of_our_own_pipeline(
    pipe: Any, demo_bundle: Path, tmp_path: Path
) -> None:
    turbo: dict[str, Any] = {"stages": 3, "preset": "turbo"}
    built = fresco_trt.build(
        "flux-tiny", **turbo, size=(64, 64), backend="eager", out=tmp_path / "turbo"
    )
    for folder, settings in ((built, turbo), (demo_bundle, {"engines": demo_bundle})):
        with fresco_trt.FrescoPipeline.from_bundle(folder) as ours:
            wanted = np.asarray(ours(PROMPT, seed=7).images[0]).astype(int)
        fresco_trt.enable(pipe, **settings)
        assert np.abs(pixels(pipe, max_sequence_length=128) - wanted).max() <= 2


def test_half_precision_pipelines_draw_too() -> None:
    half = new_pipe().to(torch.bfloat16)
    fresco_trt.enable(half, stages=3, preset="turbo")
    assert call(half).images[0].size == (64, 64)


# --- the object -------------------------------------------------------------------------------


def test_disable_gives_back_exactly_what_was_there(pipe: Any) -> None:
    kind = type(pipe)
    plain = pixels(pipe, num_inference_steps=2)
    attributes = dict(vars(pipe))  # a plain call leaves some of its own
    fresco_trt.enable(pipe, preset="turbo")
    assert isinstance(pipe, kind)
    assert (type(pipe).__name__, type(pipe).__module__) == (kind.__name__, kind.__module__)
    assert inspect.signature(type(pipe).__call__) == inspect.signature(kind.__call__)
    call(pipe)
    fresco_trt.disable(pipe)
    assert type(pipe) is kind
    assert vars(pipe).keys() == attributes.keys()
    of_a_call = {"_guidance_scale", "_joint_attention_kwargs", "_interrupt", "_num_timesteps"}
    assert all(
        vars(pipe)[name] is value for name, value in attributes.items() if name not in of_a_call
    )
    assert (pixels(pipe, num_inference_steps=2) == plain).all()


def test_a_call_leaves_what_a_plain_one_does() -> None:
    pipe = new_pipe()
    del pipe._progress_bar_config
    before = dict(vars(pipe))
    fresco_trt.enable(pipe, preset="turbo")
    call(pipe)
    left = vars(pipe).keys() - before.keys()
    fresco_trt.disable(pipe)
    assert {name: vars(pipe)[name] for name in before} == before
    for name in left:
        delattr(pipe, name)
    call(pipe, num_inference_steps=1)
    assert left == vars(pipe).keys() - before.keys() - {"_progress_bar_config"}


def test_disable_leaves_a_plain_pipeline_alone(pipe: Any) -> None:
    kind = type(pipe)
    fresco_trt.disable(pipe)
    assert type(pipe) is kind


def test_enabling_again_replaces_and_failing_to_changes_nothing(pipe: Any) -> None:
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    first = pixels(pipe)
    with pytest.raises(UnknownPreset):
        fresco_trt.enable(pipe, stages=3, preset="tubro")
    assert (pixels(pipe) == first).all()
    kind = type(pipe)
    fresco_trt.enable(pipe, stages=1)
    assert type(pipe).__bases__[0] is kind.__bases__[0]
    assert np.abs(pixels(pipe, num_inference_steps=2) - first).max() > 2
    fresco_trt.disable(pipe)
    assert type(pipe) is kind.__bases__[0]


def test_two_pipelines_share_nothing(pipe: Any) -> None:
    other = new_pipe()
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    assert type(other) is type(pipe).__bases__[0]
    fresco_trt.enable(other, stages=2, preset="fast")
    alone = pixels(other)
    call(pipe)
    assert (pixels(other) == alone).all()
    fresco_trt.disable(pipe)
    assert (pixels(other) == alone).all()


def test_a_saved_pipeline_is_diffusers_own(pipe: Any, tmp_path: Path) -> None:
    fresco_trt.enable(pipe, preset="turbo")
    pipe.save_config(tmp_path)
    assert '"_class_name": "FluxPipeline"' in (tmp_path / "model_index.json").read_text()


# --- a call that is not honoured --------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"num_inference_steps": 28},
        "num_inference_steps=28 with a plan of 8 steps",
    ),
    ({"sigmas": [1.0, 0.5]}, "sigmas in a call.*expected nothing: the stage plan decides"),
    ({"ip_adapter_image": object()}, "ip_adapter_image in a call.*the stage graphs attend"),
    ({"negative_ip_adapter_image_embeds": [1]}, "embeds in a call.*the stage graphs attend"),
    ({"joint_attention_kwargs": {"scale": 1, "mask": 2}}, "joint_attention_kwargs with mask"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt=0.*from 1 up"),
    ({"prompt": []}, "an empty list of prompts"),
    ({"callback_on_step_end": lambda *_: None}, "callback_on_step_end that returned NoneType"),
    (
        {"callback_on_step_end": lambda *_: {"latents": torch.ones(1, 2, 16)}},
        r"latents of the shape \(1, 2, 16\) from callback_on_step_end; expected .*\(1, 4, 16\)",
    ),
    (
        {"prompt": [PROMPT, PROMPT], "negative_prompt": "a pear", "true_cfg_scale": 2.0},
        "1 of negative_prompt or its embeds of 32 tokens for a call of 2",
    ),
    ({"latents": torch.randn(1, 63, 16)}, r"latents of the shape \(1, 63, 16\)"),
    ({"output_type": "jpeg"}, "output_type='jpeg'.*expected one of pil, np, pt, latent"),
    ({"guidance_scale": -1.0}, "guidance -1"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED, ids=[next(iter(each)) for each, _ in REFUSED])
def test_an_argument_that_cannot_be_honoured_is_refused(
    pipe: Any, given: dict[str, Any], told: str
) -> None:
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    with pytest.raises(PlanError, match=told):
        call(pipe, **given)


def test_defaults_may_be_spelt_out(pipe: Any) -> None:
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    neutral = {
        "sigmas": None,
        "true_cfg_scale": 1,
        "negative_prompt": "",
        "num_images_per_prompt": 1,
        "joint_attention_kwargs": {},
        "callback_on_step_end_tensor_inputs": ["latents"],
        "num_inference_steps": sum(TURBO_STEPS),
    }
    assert (pixels(pipe, **neutral) == pixels(pipe)).all()


def test_an_unknown_argument_is_a_type_error(pipe: Any) -> None:
    fresco_trt.enable(pipe, preset="turbo")
    with pytest.raises(TypeError, match="unexpected keyword argument 'seed'"):
        call(pipe, seed=3)


def test_a_size_that_the_grids_cannot_hold_is_refused_with_the_nearest(pipe: Any) -> None:
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    with pytest.raises(UnsupportedSize, match="pass width=64, height=64 or width=64, height=96"):
        call(pipe, height=72)


# --- a pipeline that is not taken -------------------------------------------------------------


def with_hook(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    handle = pipe.transformer.register_forward_hook(lambda *_: None)
    undo(handle.remove)


def with_training(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    pipe.transformer.train()
    undo(pipe.transformer.eval)


def with_diffusers_cache(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    import diffusers

    untyped: Any = diffusers
    pipe.transformer.enable_cache(untyped.FirstBlockCacheConfig(threshold=0.1))
    undo(pipe.transformer.disable_cache)


def with_another_scheduler(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    import diffusers

    scheduler, untyped = pipe.scheduler, diffusers
    kind: Any = untyped.FlowMatchHeunDiscreteScheduler
    pipe.scheduler = kind()
    undo(lambda: setattr(pipe, "scheduler", scheduler))


def with_compiled(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    transformer = pipe.transformer
    pipe.transformer = torch.compile(transformer, backend="eager")
    undo(lambda: setattr(pipe, "transformer", transformer))


def with_patched_forward(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    """As TeaCache puts itself in a forward's place, dressed as the one that it wraps."""
    kind = type(pipe.transformer)
    own = kind.forward

    @functools.wraps(own)
    def forward(*args: Any, **given: Any) -> Any:
        return own(*args, **given)

    kind.forward = forward
    undo(lambda: setattr(kind, "forward", own))


def with_patched_block(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    kind = type(pipe.transformer.transformer_blocks[0])
    own = kind.forward
    kind.forward = lambda *args, **given: own(*args, **given)
    undo(lambda: setattr(kind, "forward", own))


def with_forward_on_a_block(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    block = pipe.transformer.single_transformer_blocks[3]
    block.forward = functools.partial(type(block).forward, block)
    undo(lambda: vars(block).pop("forward"))


def with_hook_on_a_block(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    block = pipe.transformer.transformer_blocks[1]
    handle = block.register_forward_hook(lambda *_: None)
    undo(handle.remove)


def with_another_processor(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    attention = pipe.transformer.transformer_blocks[0].attn
    own = attention.processor

    class FluxAttnProcessor(type(own)):  # type: ignore[misc]
        pass

    attention.set_processor(FluxAttnProcessor())
    undo(lambda: attention.set_processor(own))


def with_patched_processor(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    kind = type(pipe.transformer.transformer_blocks[0].attn.processor)
    own = kind.__call__
    kind.__call__ = lambda *args, **given: own(*args, **given)
    undo(lambda: setattr(kind, "__call__", own))


def with_other_positions(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    own = pipe.transformer.pos_embed

    class FluxPosEmbed(type(own)):  # type: ignore[misc]
        pass

    pipe.transformer.pos_embed = FluxPosEmbed(theta=own.theta, axes_dim=own.axes_dim)
    undo(lambda: setattr(pipe.transformer, "pos_embed", own))


def with_another_theta(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    positions = pipe.transformer.pos_embed
    positions.theta = 256
    undo(lambda: setattr(positions, "theta", 10000))


def with_hooked_positions(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    handle = pipe.transformer.pos_embed.register_forward_hook(lambda *_: None)
    undo(handle.remove)


def with_fewer_blocks(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    blocks = pipe.transformer.single_transformer_blocks
    pipe.transformer.single_transformer_blocks = blocks[:2]
    undo(lambda: setattr(pipe.transformer, "single_transformer_blocks", blocks))


def with_patched_pipeline(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    import diffusers

    untyped: Any = diffusers
    own = untyped.FluxPipeline.__call__
    untyped.FluxPipeline.__call__ = functools.wraps(own)(lambda *args, **given: None)
    undo(lambda: setattr(untyped.FluxPipeline, "__call__", own))


def with_patched_schedule(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    from diffusers.pipelines.flux import pipeline_flux

    own = pipeline_flux.calculate_shift
    pipeline_flux.calculate_shift = functools.partial(own, max_shift=2.0)
    undo(lambda: setattr(pipeline_flux, "calculate_shift", own))


def with_patched_step(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    kind = type(pipe.scheduler)
    own = kind.step
    kind.step = functools.partialmethod(own, s_noise=1.0)
    undo(lambda: setattr(kind, "step", own))


def with_set_timesteps_on_the_scheduler(
    pipe: Any, undo: Callable[[Callable[[], Any]], None]
) -> None:
    scheduler = pipe.scheduler
    scheduler.set_timesteps = functools.partial(scheduler.set_timesteps)
    undo(lambda: vars(scheduler).pop("set_timesteps"))


def with_scheduler_of_the_same_name(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    scheduler = pipe.scheduler
    kind = type(type(scheduler).__name__, (type(scheduler),), {})
    pipe.scheduler = kind.from_config(scheduler.config)
    undo(lambda: setattr(pipe, "scheduler", scheduler))


def with_fewer_training_steps(pipe: Any, undo: Callable[[Callable[[], Any]], None]) -> None:
    scheduler = pipe.scheduler
    pipe.scheduler = type(scheduler).from_config(scheduler.config, num_train_timesteps=500)
    undo(lambda: setattr(pipe, "scheduler", scheduler))


def with_a_setting_of_another_pipeline(
    pipe: Any, undo: Callable[[Callable[[], Any]], None]
) -> None:
    scheduler = pipe.scheduler
    pipe.scheduler = type(scheduler).from_config(scheduler.config)
    pipe.scheduler.register_to_config(use_flow_sigmas=True)
    undo(lambda: setattr(pipe, "scheduler", scheduler))


CHANGES = {
    with_patched_forward: "a transformer that has a forward of its own",
    with_patched_block: r"whose transformer_blocks\.0 has a forward of its own",
    with_forward_on_a_block: r"whose single_transformer_blocks\.3 has a forward of its own",
    with_hook_on_a_block: r"whose transformer_blocks\.1 has hooks of its own",
    with_another_processor: r"blocks\.0\.attn has a processor of the class FluxAttnProcessor",
    with_patched_processor: r"blocks\.0\.attn has a processor with a call of its own",
    with_other_positions: "whose pos_embed is of the class .*FluxPosEmbed, not diffusers",
    with_another_theta: "whose pos_embed has theta=256, not 10000",
    with_hooked_positions: "whose pos_embed has hooks of its own",
    with_fewer_blocks: "whose single_transformer_blocks has no 2",
    with_patched_pipeline: "a FluxPipeline with a __call__ of its own",
    with_patched_schedule: "a FluxPipeline with a calculate_shift of its own",
    with_patched_step: "a scheduler with a step of its own",
    with_set_timesteps_on_the_scheduler: "a scheduler with a set_timesteps of its own",
    with_scheduler_of_the_same_name: r"a scheduler of the class .*\.FlowMatchEuler",
    with_fewer_training_steps: "a scheduler with num_train_timesteps=500; expected 1000",
    with_a_setting_of_another_pipeline: "a scheduler with use_flow_sigmas=True",
    with_hook: "a transformer with hooks",
    with_training: "a transformer in training mode",
    with_diffusers_cache: "a transformer with hooks",
    with_another_scheduler: r"a scheduler of the class .*FlowMatchHeunDiscreteScheduler",
    with_compiled: "a transformer of the class OptimizedModule",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_a_pipeline_that_would_lose_something_is_refused(
    pipe: Any, change: Any, request: pytest.FixtureRequest
) -> None:
    fresco_trt.enable(pipe, preset="turbo")
    change(pipe, request.addfinalizer)
    with pytest.raises(IncompatibleOptions, match=CHANGES[change]):
        call(pipe)
    fresco_trt.disable(pipe)
    with pytest.raises(IncompatibleOptions, match=CHANGES[change]):
        fresco_trt.enable(pipe, preset="turbo")


SHIFTS: list[dict[str, Any]] = [
    {"base_shift": 0.1, "max_shift": 2.5, "max_image_seq_len": 300},
    {"use_dynamic_shifting": False},
    {"use_dynamic_shifting": False, "shift": 3.0},
]


@pytest.mark.parametrize("shift", [*SHIFTS, 0.4], ids=str)
def test_the_schedulers_own_shift_is_planned_with(
    pipe: Any, shift: Any, demo_bundle: Path, request: pytest.FixtureRequest
) -> None:
    scheduler = pipe.scheduler
    settings = shift if isinstance(shift, dict) else SHIFTS[1]
    pipe.scheduler = type(scheduler).from_config(scheduler.config, **settings)
    request.addfinalizer(lambda: setattr(pipe, "scheduler", scheduler))
    if settings is not shift:
        pipe.scheduler.set_shift(shift)
    given = {"num_inference_steps": 3, "output_type": "np"}
    plain = call(pipe, **given).images
    fresco_trt.enable(pipe, stages=1)
    assert np.abs(call(pipe, **given).images - plain).max() <= 1e-4
    fresco_trt.enable(pipe, stages=3, preset="turbo")
    call(pipe)
    with pytest.raises(IncompatibleOptions, match="a scheduler that shifts by"):
        fresco_trt.enable(pipe, engines=demo_bundle)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shift": 0.0, "use_dynamic_shifting": False}, "shift=0.0; expected a factor above 0"),
        ({"shift": "3", "use_dynamic_shifting": False}, "shift='3'; expected a number"),
        ({"max_shift": None, "use_dynamic_shifting": True}, "max_shift=None"),
        ({"base_image_seq_len": 5000, "use_dynamic_shifting": True}, "5000 and .*=4096"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas=True; expected False"),
        ({"time_shift_type": "linear"}, "time_shift_type='linear'; expected 'exponential'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True; expected nothing of that name"),
    ],
    ids=str,
)
def test_settings_of_a_scheduler_that_no_plan_has_are_refused(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(IncompatibleOptions, match=told):
        PipelineDriver().scheduled(FACTS, settings)


def test_every_setting_of_the_scheduler_is_known() -> None:
    """A field of a newer diffusers has to be planned with, or refused."""
    import diffusers

    untyped: Any = diffusers
    settings = dict(untyped.FlowMatchEulerDiscreteScheduler().config)
    assert {name: value for name, value in settings.items() if name[0] != "_"} == {
        **PLAIN,
        **SHIFTED,
    }


def test_another_class_of_pipeline_is_refused(pipe: Any) -> None:
    import diffusers

    untyped: Any = diffusers
    parts = {**pipe.components, "controlnet": None}
    del parts["image_encoder"], parts["feature_extractor"]
    other = untyped.FluxImg2ImgPipeline(
        **{name: part for name, part in parts.items() if name != "controlnet"}
    )
    with pytest.raises(IncompatibleOptions, match="a pipeline of the class FluxImg2ImgPipeline"):
        fresco_trt.enable(other)
    with pytest.raises(IncompatibleOptions, match="a pipeline of the class object"):
        fresco_trt.enable(object())


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"num_layers": 1, "num_single_layers": 2}, "num_layers=1,num_single_layers=2"),
    ({"num_layers": 1, "num_single_layers": 0, "guidance_embeds": False}, "guidance_embeds=false"),
    (
        {"num_attention_heads": 3, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)},
        "axes_dims_rope=4\\+4\\+8,vae_scale=4",
    ),
]


@pytest.mark.parametrize(("change", "named"), OTHERS, ids=[each[1] for each in OTHERS])
def test_a_transformer_of_any_dimensions_is_described_and_drawn_with(
    pipe: Any, change: dict[str, Any], named: str, request: pytest.FixtureRequest
) -> None:
    own = pipe.transformer
    config = {name: value for name, value in own.config.items() if name[0] != "_"}
    request.addfinalizer(lambda: setattr(pipe, "transformer", own))
    pipe.transformer = type(own)(**{**config, **change}).eval()
    facts = facts_of(pipe)
    assert re.search(named, facts.name)
    assert facts.presets_of == "flux"
    given = {"num_inference_steps": 2}
    plain = pixels(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    assert np.abs(pixels(pipe, **given) - plain).max() <= 2
    fresco_trt.enable(pipe, model=facts.name, stages=2, preset="turbo")
    wanted = fresco_trt.plan(facts.name, stages=2, preset="turbo", size=(64, 64))
    call(pipe, num_inference_steps=wanted.nfe)
    with pytest.raises(IncompatibleOptions, match=r"pass model='flux-tiny:.*', or leave model out"):
        fresco_trt.enable(pipe, model="flux-tiny")


def test_a_transformer_that_no_facts_describe_is_refused(
    pipe: Any, request: pytest.FixtureRequest
) -> None:
    own = pipe.transformer
    config = {name: value for name, value in own.config.items() if name[0] != "_"}
    request.addfinalizer(lambda: setattr(pipe, "transformer", own))
    pipe.transformer = type(own)(**{**config, "out_channels": 8}).eval()
    with pytest.raises(IncompatibleOptions, match="out_channels=8"):
        fresco_trt.enable(pipe)


DEV = {"shift": 3.0, "use_dynamic_shifting": True}
SCHNELL = {"shift": 1.0, "use_dynamic_shifting": False}


def real_sized(name: str, schedule: dict[str, Any]) -> Any:
    """A pipeline with the transformer and the schedule of a real model, without its weights."""
    import diffusers

    untyped: Any = diffusers
    with torch.device("meta"):
        transformer = untyped.FluxTransformer2DModel(**transformer_config(model_facts(name)))
    scheduler = untyped.FlowMatchEulerDiscreteScheduler(**schedule)
    pipeline = untyped.FluxKontextPipeline if name == "flux-kontext" else untyped.FluxPipeline
    return pipeline(
        transformer=transformer.eval(),
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


@pytest.mark.parametrize(
    ("name", "schedule"), [("flux", DEV), ("flux-schnell", SCHNELL), ("flux-kontext", DEV)]
)
def test_models_are_told_by_their_dimensions(name: str, schedule: dict[str, Any]) -> None:
    pipe = real_sized(name, schedule)
    assert facts_of(pipe).name == name
    assert facts_of(pipe) == model_facts(name)
    fresco_trt.enable(pipe)


def test_of_models_of_the_same_dimensions_the_one_that_is_asked_for(pipe: Any) -> None:
    assert facts_of(pipe).name == "flux-tiny"
    student = model_facts("flux-tiny-turbo")
    fresco_trt.enable(pipe, model=student.name, stages=2, preset="fast")
    wanted = fresco_trt.plan(student.name, stages=2, preset="fast", size=(64, 64))
    call(pipe, num_inference_steps=wanted.nfe)
    with pytest.raises(IncompatibleOptions, match="num_inference_steps=50"):
        call(pipe, num_inference_steps=50)
    with pytest.raises(IncompatibleOptions, match=r"expected the dimensions of flux[;.]"):
        fresco_trt.enable(pipe, model="flux")
    with pytest.raises(UnknownModel, match="did you mean flux-tiny"):
        fresco_trt.enable(pipe, model="flux-tinny")


def test_engines_say_whose_they_are(pipe: Any, tmp_path: Path) -> None:
    options: Any = {"stages": 2, "preset": "turbo", "size": (64, 64), "backend": "eager"}
    folder = fresco_trt.pretrained("flux-tiny")
    bundle = fresco_trt.build(
        "flux-tiny-turbo", weights=str(folder), out=tmp_path / "bundle", **options
    )
    fresco_trt.enable(pipe, engines=bundle)  # built from the pipeline's weights, under that name
    call(pipe, max_sequence_length=128, num_inference_steps=2)
    with pytest.raises(IncompatibleOptions, match="model with engines"):
        fresco_trt.enable(pipe, engines=bundle, model="flux-tiny-turbo")


def test_a_model_without_guidance_takes_none() -> None:
    facts = model_facts("flux-schnell")
    assert guidance_of(facts, None) is None
    with pytest.raises(IncompatibleOptions, match=r"guidance 3\.5 for flux-schnell"):
        guidance_of(facts, 3.5)


WRONG: list[tuple[dict[str, Any], type[FrescoError], str]] = [
    ({"stages": 7}, UnsupportedStages, "7 stages"),
    ({"cache": "hicash"}, PlanError, "did you mean hicache"),
    ({"cache": "interval=3"}, PlanError, "no name"),
    ({"stages": 1, "cache": "none,interval=3"}, PlanError, "without a cache"),
    ({"delta": 7.0}, PlanError, "delta=7"),
    ({"cache": "svd"}, IncompatibleOptions, "cache='svd' without a basis"),
    ({"cache": "reuse,max_order=1"}, IncompatibleOptions, "max_order=1"),
    ({"cache": "hicache,basis=b"}, IncompatibleOptions, "only svd reads one"),
    ({"cache": "svd,basis=no-such-file"}, CalibrationError, "no-such-file"),
    ({"engines": "nowhere"}, BundleNotFound, "nowhere"),
    ({"engines": "nowhere", "stages": 3, "cache": "none"}, IncompatibleOptions, "stages, cache"),
]


@pytest.mark.parametrize(("options", "kind", "told"), WRONG, ids=[str(each[0]) for each in WRONG])
def test_wrong_options_are_refused_and_the_pipeline_stays_plain(
    pipe: Any, options: dict[str, Any], kind: type[FrescoError], told: str
) -> None:
    before = type(pipe)
    with pytest.raises(kind, match=told):
        fresco_trt.enable(pipe, **options)
    assert type(pipe) is before


# --- quantised transformers ---------------------------------------------------------


class CodedLinear(torch.nn.Linear):
    """As GGUF's layers: codes and a scale, multiplied in a dtype that the layer names."""

    compute_dtype = torch.float32

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> CodedLinear:
        coded = cls(layer.in_features, layer.out_features)
        scale = layer.weight.detach().abs().max() / 127
        codes = (layer.weight.detach() / scale).round().to(torch.int8).view(torch.uint8)
        coded.scale, coded.bias = scale, layer.bias
        coded.weight = torch.nn.Parameter(codes, requires_grad=False)
        return coded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(torch.int8).to(self.compute_dtype) * self.scale
        return torch.nn.functional.linear(x, weight, self.bias)


class EightBitLinear(CodedLinear):
    """As bitsandbytes': the layer does not say what it computes in."""

    compute_dtype = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            x, self.weight.view(torch.int8).to(x.dtype) * self.scale, self.bias
        )


class Wrapped(torch.Tensor):
    """As torchao's: a tensor of a class of its own."""


@pytest.mark.parametrize("kind", [CodedLinear, EightBitLinear])
def test_a_quantised_transformer_draws_as_it_does_alone(
    pipe: Any, kind: type[CodedLinear], demo_bundle: Path, request: pytest.FixtureRequest
) -> None:
    own = pipe.transformer.proj_out
    request.addfinalizer(lambda: setattr(pipe.transformer, "proj_out", own))
    pipe.transformer.proj_out = kind.of(own)
    plain = pixels(pipe, num_inference_steps=2)
    fresco_trt.enable(pipe, stages=1)
    assert np.abs(pixels(pipe, num_inference_steps=2) - plain).max() <= 2
    fresco_trt.enable(pipe, stages=2, preset="turbo", cache="taylor,max_order=1")
    call(pipe)
    with pytest.raises(IncompatibleOptions, match=f"proj_out is of the class .*{kind.__name__}"):
        fresco_trt.enable(pipe, engines=demo_bundle)


@pytest.mark.parametrize(
    "wrap", [lambda each: each.as_subclass(Wrapped), lambda each: each.to("meta")]
)
def test_engines_are_not_compared_with_weights_that_are_no_plain_numbers(
    pipe: Any, wrap: Any, demo_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    layer = pipe.transformer.proj_out
    own, basis = layer.weight, basis_file(pipe, tmp_path)
    request.addfinalizer(lambda: setattr(layer, "weight", own))
    layer.weight = torch.nn.Parameter(wrap(own.detach()), requires_grad=False)
    for options in ({"engines": demo_bundle}, {"cache": f"svd,basis={basis}"}):
        with pytest.raises(IncompatibleOptions, match=r"whose proj_out\.weight holds"):
            fresco_trt.enable(pipe, **options)


def test_whole_pixels_may_be_floats(pipe: Any) -> None:
    plain = pixels(pipe, num_inference_steps=2)
    fresco_trt.enable(pipe, stages=1)
    for height in (64.0, np.int64(64), 64.5):
        assert np.abs(pixels(pipe, num_inference_steps=2, height=height) - plain).max() <= 2


# --- SVD basis and engines ---------------------------------------------------------


def basis_file(pipe: Any, folder: Path) -> Path:
    record = BasisRecord(
        model="flux-tiny",
        weights_sha256=weights_digest(pipe.transformer),
        energy=0.9,
        prompts=1,
        prompts_sha256="0" * 64,
        seed=0,
        plan_sha256="0" * 64,
    )
    directions = torch.eye(FACTS.hidden)[:, :8].contiguous()
    basis = Basis(directions=directions, values=torch.ones(FACTS.hidden), record=record)
    basis.store(folder / "basis.safetensors")
    return folder / "basis.safetensors"


@pytest.fixture
def nudged(pipe: Any) -> Iterator[Callable[[], None]]:
    """Writes to a weight, and takes it back at the end."""
    bias = pipe.transformer.proj_out.bias
    before = bias.detach().clone()

    def nudge() -> None:
        with torch.no_grad():
            bias.add_(1.0)

    yield nudge
    with torch.no_grad():
        bias.copy_(before)


def test_the_cache_svd_takes_the_directions_of_these_weights_alone(
    pipe: Any, tmp_path: Path, nudged: Callable[[], None]
) -> None:
    path = basis_file(pipe, tmp_path)
    cache = fresco_trt.CacheConfig(name="svd", basis=path)
    fresco_trt.enable(pipe, stages=2, preset="turbo", cache=cache)
    first = pixels(pipe)
    assert (pixels(pipe) == first).all()
    nudged()
    with pytest.raises(CalibrationError, match="weights that the transformer had"):
        call(pipe)
    with pytest.raises(CalibrationError, match="SVD basis of flux-tiny"):
        fresco_trt.enable(pipe, stages=2, preset="turbo", cache=f"svd,basis={path}")


def test_engines_serve_their_weights_their_size_and_their_length_alone(
    pipe: Any, demo_bundle: Path, nudged: Callable[[], None]
) -> None:
    fresco_trt.enable(pipe, engines=str(demo_bundle))
    built = {"max_sequence_length": 128}
    call(pipe, **built, num_inference_steps=short_turbo().nfe)
    with pytest.raises(UnsupportedSize, match="width=64, height=128 with engines for 64x64"):
        call(pipe, **built, height=128)
    with pytest.raises(IncompatibleOptions, match="max_sequence_length=32 with engines for 128"):
        call(pipe)
    with pytest.raises(IncompatibleOptions, match="num_inference_steps=4"):
        call(pipe, **built, num_inference_steps=4)
    nudged()
    with pytest.raises(DigestMismatch, match="engines of flux-tiny with weights"):
        call(pipe, **built)
    with pytest.raises(DigestMismatch, match="engines of flux-tiny with weights"):
        fresco_trt.enable(pipe, engines=demo_bundle)


def noise_through_data(transformer: Any) -> None:
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data += 0.05 * torch.randn_like(module.weight)


def averaged_weights(transformer: Any) -> None:
    from diffusers.training_utils import EMAModel

    average: Any = EMAModel(transformer.parameters())
    average.shadow_params = [each * 0.99 for each in average.shadow_params]
    average.copy_to(transformer.parameters())


def fused_adapter(transformer: Any) -> None:
    """What fuse_lora and unload_lora_weights leave: the weight itself, with the product added."""
    weight = transformer.transformer_blocks[1].attn.to_q.weight
    weight.data += torch.randn(len(weight), 4) @ torch.randn(4, weight.shape[1]) * 0.01


@pytest.mark.parametrize("write", [noise_through_data, averaged_weights, fused_adapter])
def test_engines_do_not_outlive_weights_that_were_written_in_any_way(
    pipe: Any, demo_bundle: Path, write: Callable[[Any], None]
) -> None:
    before = [each.detach().clone() for each in pipe.transformer.parameters()]
    fresco_trt.enable(pipe, engines=demo_bundle)
    free = {"max_sequence_length": 128}
    first = pixels(pipe, **free)
    try:
        write(pipe.transformer)
        for _ in range(2):
            with pytest.raises(DigestMismatch, match="engines of flux-tiny with weights"):
                call(pipe, **free)
    finally:
        for weight, each in zip(pipe.transformer.parameters(), before, strict=True):
            weight.data.copy_(each)
    assert (pixels(pipe, **free) == first).all()


LEFT_OUT = {
    "max_sequence_length": r"max_sequence_length=512 \(the default of the pipeline\) with engines",
    "height": r"width=64, height=512 \(the default of the pipeline\) with engines for 64x64",
    "width": r"width=512 \(the default of the pipeline\), height=64 with engines for 64x64",
    "num_inference_steps": r"num_inference_steps=28 \(the default of the pipeline\) with a plan",
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_default_that_the_engines_were_not_built_for_is_refused(
    pipe: Any, one_stage: Path, name: str
) -> None:
    fresco_trt.enable(pipe, engines=one_stage)
    given = {"max_sequence_length": 128, "num_inference_steps": 2}
    call(pipe, **given)
    with pytest.raises(PlanError, match=LEFT_OUT[name]):
        call(pipe, **{**given, name: ...})
    with pytest.raises(PlanError, match=LEFT_OUT[name]):
        call(pipe, **{**given, name: None})


def test_engines_are_freed_when_a_pipeline_is_disabled(pipe: Any, demo_bundle: Path) -> None:
    fresco_trt.enable(pipe, engines=demo_bundle)
    runners = type(pipe)._fresco_held.source.loaded
    fresco_trt.disable(pipe)
    with pytest.raises(RuntimeError, match="inside its scope only"):
        runners["stage1.full"]({})
