"""One line on a HunyuanVideoPipeline: diffusers' own clip in one stage, our bundle's in several.

A random model of two narrow blocks at 32x48 and 5 frames.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fresco_trt
from fresco_trt.errors import (
    DigestMismatch,
    IncompatibleOptions,
    InvalidArgument,
    UnsupportedSize,
)
from fresco_trt.models.hunyuan.family import HUNYUAN
from fresco_trt.models.hunyuan.random import write_random_pipeline
from fresco_trt.models.registry import register, unregister
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.presets import Preset
from tests.models.hunyuan.small import SMALL, diffusers_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = (32, 48, 5)  # 3 rows of tokens, of which there is no half
PROMPT = "a red apple"
TEXT = 24
SHORT = Preset(steps=(2, 2), switch=(0.7,))
MIXED = Preset(steps=(1, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1)
FACTS = replace(
    SMALL,
    family="enabled-clips",
    text_tokens=TEXT,
    default_size=SIZE,  # which has no half: the size comes with a call
    presets={"balanced": {1: Preset(steps=(2,))}, "short": {2: SHORT}, "mixed": {3: MIXED}},
)
STAGED: dict[str, Any] = {
    "stages": 2,
    "preset": "short",
    "cache": "taylor,interval=2,warmup_steps=1",
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(replace(HUNYUAN, name="enabled-clips", models=(FACTS,)))
    yield
    unregister("enabled-clips")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusers_pipe(FACTS, write_random_pipeline(FACTS, tmp_path_factory.mktemp("pipeline")))


@pytest.fixture
def pipe(shared: Any) -> Iterator[Any]:
    """A pipeline that is plain before and after the test."""
    yield shared
    fresco_trt.disable(shared)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def call(pipe: Any, **given: Any) -> Any:
    basics: dict[str, Any] = {"prompt": PROMPT, "generator": seeded(7)[0]}
    basics |= dict(zip(("width", "height", "num_frames"), SIZE, strict=True))
    given = {**basics, "max_sequence_length": TEXT, **given}
    return pipe(**{name: each for name, each in given.items() if each is not ...}).frames


def latents(pipe: Any, **given: Any) -> torch.Tensor:
    found = call(pipe, **{"num_inference_steps": 2, "output_type": "latent", **given})
    assert isinstance(found, torch.Tensor)
    return found


# --- laws -------------------------------------------------------------------------------------


def changed(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
    return {name: tensor * 0.9 for name, tensor in tensors.items()}


def embedded(pipe: Any) -> dict[str, Any]:
    text, pooled, mask = pipe.encode_prompt([PROMPT, "a dog"], max_sequence_length=TEXT)
    given = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}
    return {"prompt": None, "generator": seeded(1, 2), **given}


HONOURED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "true guidance": lambda pipe: {
        "negative_prompt": "what is not wanted",
        "true_cfg_scale": 3.0,
        "guidance_scale": 2.0,
    },
    "embeds": embedded,
    "two of one": lambda pipe: {"num_videos_per_prompt": 2, "generator": seeded(1, 2)},
    "one frame": lambda pipe: {"num_frames": 1},
    "a template": lambda pipe: {
        "prompt_template": {"template": "of {}", "crop_start": 3},
        "attention_kwargs": {"scale": 0.5},
    },
    "callback": lambda pipe: {
        "callback_on_step_end": changed,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        "latents": torch.randn(1, 16, 2, 6, 4, generator=seeded(3)[0]),
    },
}


@pytest.mark.parametrize("name", HONOURED)
def test_one_stage_draws_the_pipelines_own_latents(pipe: Any, name: str) -> None:
    plain = latents(pipe, **HONOURED[name](pipe))
    fresco_trt.enable(pipe, stages=1)
    drawn = latents(pipe, **HONOURED[name](pipe))
    torch.testing.assert_close(drawn, plain, atol=1e-4, rtol=1e-4)


def test_frames_have_diffusers_own_form_and_disable_gives_it_back(pipe: Any) -> None:
    given: dict[str, Any] = {"num_inference_steps": 1, "output_type": "np"}
    plain = call(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    drawn = call(pipe, **given)
    assert drawn.shape == plain.shape == (1, 5, 48, 32, 3)
    assert np.abs(drawn - plain).max() * 255 <= 2
    fresco_trt.disable(pipe)
    assert type(pipe).__mro__[0].__module__.startswith("diffusers.")
    assert np.array_equal(call(pipe, **given), plain)


def test_half_precision_draws_too(shared: Any) -> None:
    """From noise in float32; the plain pipeline rounds its latents after each step, too."""
    pipe = copy.copy(shared)
    pipe.transformer = copy.deepcopy(shared.transformer).to(torch.bfloat16)
    plain = latents(pipe, **HONOURED["true guidance"](pipe))
    fresco_trt.enable(pipe, stages=1)
    drawn = latents(pipe, **HONOURED["true guidance"](pipe))
    assert drawn.dtype == plain.dtype == torch.bfloat16
    apart = (drawn.float() - plain.float()).abs()
    assert apart.max() < 0.1
    assert apart.mean() < 0.03


def test_stages_and_a_cache_draw_our_own_pipelines_clip(pipe: Any, tmp_path: Path) -> None:
    plan = make_plan(FACTS, size=SIZE, **STAGED)
    folder = fresco_trt.build(plan, weights="random", backend="eager", out=tmp_path / "bundle")
    with fresco_trt.FrescoPipeline.from_bundle(folder) as ours:
        wanted = np.stack([np.asarray(each, dtype=int) for each in ours(PROMPT, seed=7).frames[0]])
    shapes: list[Any] = []

    def see(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        shapes.append(tuple(tensors["latents"].shape[2:]))
        return {}

    for options in (STAGED, {"engines": folder}):
        fresco_trt.enable(pipe, **options)
        (frames,) = call(pipe, callback_on_step_end=see)
        found = np.stack([np.asarray(each, dtype=int) for each in frames])
        assert np.abs(found - wanted).max() <= 2
    assert {*shapes} == {(2, 4, 2), (2, 6, 4)}  # of each stage, one with a margin
    with pytest.raises(
        UnsupportedSize, match=r"num_frames=9 with engines for 32x48x5.*num_frames=5"
    ):
        call(pipe, num_frames=9)
    with pytest.raises(IncompatibleOptions, match=r"a text of .* tokens with engines for 24"):
        call(pipe, prompt="a " * 40, max_sequence_length=64)
    with torch.no_grad():
        pipe.transformer.proj_out.bias += 1.0
        try:
            with pytest.raises(DigestMismatch):
                call(pipe)
        finally:
            pipe.transformer.proj_out.bias -= 1.0


# --- refusals ---------------------------------------------------------------------------------

GAPS = {"prompt_attention_mask": torch.tensor([[1.0, 0.0, 1.0] * 8] * 2)}
NO_POOLED = {"pooled_prompt_embeds": None}
REFUSED: list[tuple[Any, type[Exception], str]] = [
    ({"sigmas": [1.0]}, IncompatibleOptions, "the stage plan decides"),
    ({"num_frames": 10}, UnsupportedSize, "num_frames=9 or width=32, height=48, num_frames=13"),
    ({"num_frames": 9.5}, InvalidArgument, "num_frames=9.5; expected a whole number"),
    ({"num_videos_per_prompt": 0}, IncompatibleOptions, "num_videos_per_prompt=0"),
    ({"width": 70}, InvalidArgument, "divisible by 16"),
    ({"latents": torch.zeros(1, 36, 64)}, IncompatibleOptions, r"\(1, 16, 2, 6, 4\), noise"),
    ({"attention_kwargs": {"mask": 1}}, IncompatibleOptions, "attention_kwargs with mask"),
    ({"image": 1}, IncompatibleOptions, "image in a call of an enabled HunyuanVideoPipeline"),
    ({"num_inference_steps": 3}, IncompatibleOptions, "num_inference_steps=3 with a plan of 4"),
    ((embedded, GAPS), IncompatibleOptions, "a prompt_attention_mask with gaps"),
    ((embedded, NO_POOLED), InvalidArgument, "`pooled_prompt_embeds` has to be passed"),
]


@pytest.mark.parametrize(("given", "kind", "told"), REFUSED, ids=[each[2][:24] for each in REFUSED])
def test_a_call_that_cannot_be_honoured_is_refused(
    pipe: Any, given: Any, kind: type[Exception], told: str
) -> None:
    if isinstance(given, tuple):
        made, changes = given
        given = {**made(pipe), **changes}
    fresco_trt.enable(pipe, **STAGED)
    with pytest.raises(kind, match=told):
        call(pipe, **given)


def test_a_callback_sees_no_latents_of_a_mixed_grid(pipe: Any) -> None:
    given = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": ...}
    pipe_sees = {"callback_on_step_end": changed}
    fresco_trt.enable(pipe, stages=3, preset="mixed")
    with pytest.raises(IncompatibleOptions, match="the latents of a mixed grid"):
        latents(pipe, **given, **pipe_sees)
    blind: dict[str, Any] = {**given, "callback_on_step_end_tensor_inputs": []}
    assert latents(pipe, **blind, callback_on_step_end=changed).isfinite().all()
    blind["callback_on_step_end"] = lambda pipe, step, *told: (
        {"latents": torch.zeros(1)} if step else {}
    )
    with pytest.raises(IncompatibleOptions, match="that returns the latents of a mixed grid"):
        latents(pipe, **blind)


def with_another_part(pipe: Any, owner: Any, name: str, part: Any) -> Callable[[], None]:
    own = getattr(owner, name)
    setattr(owner, name, part)
    return lambda: setattr(owner, name, own)


def with_an_adapter_on_the_embedder(pipe: Any) -> Callable[[], None]:
    class Adapted(torch.nn.Conv3d):
        pass

    embedder = pipe.transformer.x_embedder
    return with_another_part(pipe, embedder, "proj", Adapted(16, 64, (1, 2, 2), (1, 2, 2)))


def with_other_positions(pipe: Any) -> Callable[[], None]:
    class Positions(type(pipe.transformer.rope)):  # type: ignore[misc]
        pass

    return with_another_part(pipe, pipe.transformer, "rope", Positions(2, 1, [8, 12, 12]))


def with_another_scheduler(pipe: Any) -> Callable[[], None]:
    import diffusers

    untyped: Any = diffusers
    other = untyped.FlowMatchHeunDiscreteScheduler()
    return with_another_part(pipe, pipe, "scheduler", other)


def with_a_part_of_several_gpus(pipe: Any) -> Callable[[], None]:
    """As context parallelism leaves it; diffusers has no plan of it for this transformer."""
    assert pipe.transformer._cp_plan is None
    processor = pipe.transformer.transformer_blocks[0].attn.processor
    return with_another_part(pipe, processor, "_parallel_config", object())


CHANGES = {
    with_a_part_of_several_gpus: "is one part of several in parallel",
    with_an_adapter_on_the_embedder: "whose x_embedder.proj is of the class",
    with_other_positions: "whose rope is of the class",
    with_another_scheduler: "a scheduler of the class",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_what_the_stage_graphs_would_not_run_is_refused(pipe: Any, change: Any) -> None:
    undo = change(pipe)
    try:
        with pytest.raises(IncompatibleOptions, match=CHANGES[change]):
            fresco_trt.enable(pipe, stages=1)
    finally:
        undo()
