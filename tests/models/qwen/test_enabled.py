"""One line on a pipeline of Qwen-Image: diffusers' own picture in one stage, our own bundle's in
several, with true guidance and a source.

Random models of two narrow blocks at 64x64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, InvalidArgument, UnsupportedSize
from fresco_trt.models.qwen import prompts
from fresco_trt.models.qwen.family import QWEN
from fresco_trt.models.qwen.random import write_random_pipeline
from fresco_trt.models.registry import register, unregister
from fresco_trt.pipelines.checks import NO_PROMPT
from fresco_trt.pipelines.diffusers.fit import facts_of
from fresco_trt.plan.making import make_plan
from tests.models.qwen.test_pipeline import MODELS, PROMPT, SIDE, diffusers_pipe, source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from fresco_trt.plan.facts import ModelFacts

IMAGE, EDIT, PLUS = MODELS
STAGED: dict[str, Any] = {"stages": 3, "preset": "turbo", "cache": "taylor,interval=2"}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(replace(QWEN, name="small", models=MODELS))
    yield
    unregister("small")


def sized_here(module: ModuleType, size: str) -> Any:
    """What a module of diffusers computes sizes with, and its code, giving one size alone."""
    made: dict[str, Any] = {}
    text = f"def calculate_dimensions(target_area, ratio): return {size}"
    exec(compile(text, str(module.__file__), "exec"), made)
    return made["calculate_dimensions"]


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources have the size that is drawn, where a megapixel is meant."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as edit
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as plus

    monkeypatch.setattr(prompts, "SEEN_PIXELS", dict.fromkeys(prompts.PIPELINES, SIDE * SIDE))
    both = f"({SIDE}, {SIDE})"
    monkeypatch.setattr(edit, "calculate_dimensions", sized_here(edit, f"{both} + (None,)"))
    monkeypatch.setattr(plus, "calculate_dimensions", sized_here(plus, both))


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = {}
    for facts in MODELS:
        folder = write_random_pipeline(facts, tmp_path_factory.mktemp(facts.name))
        made[facts.name] = diffusers_pipe(facts, folder)
    return made


@pytest.fixture
def pipe(pipes: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The pipeline of a model, plain before and after the test; that which edits by default."""
    found = pipes[getattr(request, "param", EDIT).name]
    yield found
    fresco_trt.disable(found)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def call(pipe: Any, **given: Any) -> Any:
    basics: dict[str, Any] = {"prompt": PROMPT, "generator": seeded(7)[0]}
    if "Edit" in type(pipe).__name__:
        basics["image"] = source()
    else:
        basics |= {"width": SIDE, "height": SIDE}
    given = {**basics, **given}
    return pipe(**{name: each for name, each in given.items() if each is not ...}).images


def latents(pipe: Any, **given: Any) -> torch.Tensor:
    found = call(pipe, **{"num_inference_steps": 2, "output_type": "latent", **given})
    assert isinstance(found, torch.Tensor)
    return found


def pixels(image: Any) -> Any:
    return np.asarray(image).astype(int)


every = pytest.mark.parametrize("pipe", MODELS, indirect=True, ids=prompts.PIPELINES)
GUIDED: dict[str, Any] = {"negative_prompt": "a longer text, of what is not wanted"}


@every
def test_one_stage_draws_the_pipelines_own_picture(pipe: Any) -> None:
    """Both branches' texts have one length here, and each its own there."""
    shown = {"num_inference_steps": 2, "output_type": "np"}
    plain, picture = latents(pipe, **GUIDED), call(pipe, **shown)
    fresco_trt.enable(pipe, stages=1)
    drawn = latents(pipe, **GUIDED)
    torch.testing.assert_close(drawn, plain, atol=1e-4, rtol=1e-4)
    assert (latents(pipe, **GUIDED, true_cfg_scale=1.0) - drawn).abs().max() > 1e-3
    assert np.abs(call(pipe, **shown) - picture).max() * 255 <= 2


def several(pipe: Any) -> dict[str, Any]:
    texts: dict[str, Any] = {"prompt": [PROMPT, "a dog"], "generator": seeded(1, 2)}
    if "Edit" in type(pipe).__name__:
        texts["image"] = [source(), source().rotate(90)]
    return texts


def embedded(pipe: Any) -> dict[str, Any]:
    text, mask = pipe.encode_prompt([PROMPT, "a dog"], max_sequence_length=512)
    return {"prompt": None, "prompt_embeds": text, "prompt_embeds_mask": mask}


HONOURED: dict[str, tuple[ModelFacts, Callable[[Any], dict[str, Any]]]] = {
    "prompts": (IMAGE, several),
    "embeds": (IMAGE, embedded),
    "cut": (IMAGE, lambda pipe: {"max_sequence_length": 9}),
    "a source for each": (EDIT, several),
    "two of one": (EDIT, lambda pipe: {"num_images_per_prompt": 2, **GUIDED}),
    "adapter scale": (EDIT, lambda pipe: {"attention_kwargs": {"scale": 0.5}}),
    "two of one source": (PLUS, lambda pipe: {"num_images_per_prompt": 2}),
    "a list of one": (PLUS, lambda pipe: {"image": [source()]}),
}


@pytest.mark.parametrize("name", HONOURED)
def test_an_honoured_argument_draws_what_it_draws_without(pipes: Any, name: str) -> None:
    facts, given = HONOURED[name]
    pipe = pipes[facts.name]
    plain = latents(pipe, **given(pipe))
    fresco_trt.enable(pipe, stages=1)
    try:
        drawn = latents(pipe, **given(pipe))
    finally:
        fresco_trt.disable(pipe)
    torch.testing.assert_close(drawn, plain, atol=1e-4, rtol=1e-4)


def test_stages_and_a_cache_draw_our_own_pipelines_edit(pipe: Any, tmp_path: Path) -> None:
    plan = make_plan(EDIT, size=(SIDE, SIDE), **STAGED)
    folder = fresco_trt.build(plan, weights="random", backend="eager", out=tmp_path / "bundle")
    with fresco_trt.FrescoPipeline.from_bundle(folder) as ours:
        wanted = pixels(ours(PROMPT, image=source(), seed=7, guidance=3.0).images[0])
    given = {"negative_prompt": NO_PROMPT, "true_cfg_scale": 3.0}
    for options in ({"model": EDIT.name, **STAGED}, {"engines": folder}):
        fresco_trt.enable(pipe, **options)
        assert np.abs(pixels(call(pipe, **given)[0]) - wanted).max() <= 2
    with pytest.raises(IncompatibleOptions, match=r"a text of .* tokens, .*engines for 320"):
        call(pipe, prompt="a " * 400)
    with pytest.raises(UnsupportedSize, match="width=96, height=64 with engines for 64x64"):
        call(pipe, width=96, height=64)


@pytest.mark.filterwarnings("ignore::fresco_trt.pipelines.selective.EditWarning")
def test_what_the_edit_touches_is_found_by_the_pipelines_own_decoder(
    pipe: Any, tmp_path: Path
) -> None:
    plan = make_plan(EDIT, size=(SIDE, SIDE), stages=3, preset="specedit")
    folder = fresco_trt.build(plan, weights="random", backend="eager", out=tmp_path / "bundle")
    with fresco_trt.FrescoPipeline.from_bundle(folder) as ours:
        wanted = ours(PROMPT, image=source(), seed=7, guidance=1.0)
    fresco_trt.enable(pipe, stages=3, preset="specedit")
    drawn = pipe(source(), PROMPT, generator=seeded(7)[0])
    assert np.array_equal(pixels(drawn.masks[0]), pixels(wanted.masks[0]))
    assert np.abs(pixels(drawn.images[0]) - pixels(wanted.images[0])).max() <= 2


def test_a_callback_goes_on_from_what_it_returns(pipe: Any) -> None:
    names = ["latents", "prompt_embeds"]

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        return {name: tensor * 0.9 for name, tensor in tensors.items()}

    given = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
    plain = latents(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    torch.testing.assert_close(latents(pipe, **given), plain, atol=1e-4, rtol=1e-4)


@every
def test_a_pipeline_is_the_first_model_that_it_draws_with(pipe: Any) -> None:
    names = {"QwenImagePipeline": IMAGE, "QwenImageEditPipeline": EDIT}
    wanted = names.get(type(pipe).__name__, PLUS)
    assert facts_of(pipe).name == wanted.name
    other = EDIT if wanted is IMAGE else IMAGE
    with pytest.raises(IncompatibleOptions, match=f"the model {other.name}, which"):
        fresco_trt.enable(pipe, model=other.name)
    with pytest.raises(IncompatibleOptions, match="the model flux, which draws from text, for a"):
        fresco_trt.enable(pipe, model="flux")


REFUSED: list[tuple[ModelFacts, dict[str, Any], type[Exception], str]] = [
    (EDIT, {"image": ...}, IncompatibleOptions, "no image in a call of an enabled QwenImageEdit"),
    (EDIT, {"image": torch.rand(1, 3, 64, 64)}, InvalidArgument, "image of the type Tensor"),
    (EDIT, {"prompt": [PROMPT] * 2}, IncompatibleOptions, "1 of image for 2 of prompt"),
    (EDIT, {"width": 128}, IncompatibleOptions, "at 64x64 for a picture of 128x64.*width=64"),
    (EDIT, {"mask": source()}, IncompatibleOptions, "mask in a call"),
    (EDIT, {"attention_kwargs": {"mask": 1}}, IncompatibleOptions, "attention_kwargs with mask"),
    (PLUS, {"image": [source()] * 2}, IncompatibleOptions, "2 source pictures"),
    (PLUS, {"prompt": [PROMPT] * 2}, IncompatibleOptions, "1 of image for 2 of prompt"),
    (IMAGE, {"image": source()}, IncompatibleOptions, "image in a call of an enabled QwenImageP"),
    (IMAGE, {"max_sequence_length": 1025}, InvalidArgument, "cannot be greater than 1024"),
    (IMAGE, {"sigmas": [1.0]}, IncompatibleOptions, "the stage plan decides"),
]


@pytest.mark.parametrize(
    ("facts", "given", "kind", "told"), REFUSED, ids=[each[3][:24] for each in REFUSED]
)
def test_a_call_that_cannot_be_honoured_is_refused(
    pipes: Any, facts: ModelFacts, given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    pipe = pipes[facts.name]
    fresco_trt.enable(pipe, **STAGED)
    try:
        with pytest.raises(kind, match=told):
            call(pipe, **given)
    finally:
        fresco_trt.disable(pipe)


def with_compiled_blocks(pipe: Any) -> Callable[[], None]:
    block = pipe.transformer.transformer_blocks[0]
    block.compile(backend="eager")
    return lambda: setattr(block, "_compiled_call_impl", None)


def with_another_backend(pipe: Any) -> Callable[[], None]:
    processor = pipe.transformer.transformer_blocks[0].attn.processor
    processor._attention_backend = "flash"
    return lambda: setattr(processor, "_attention_backend", None)


def with_diffusers_cache(pipe: Any) -> Callable[[], None]:
    import diffusers

    untyped: Any = diffusers
    pipe.transformer.enable_cache(untyped.FirstBlockCacheConfig(threshold=0.1))
    return lambda: pipe.transformer.disable_cache()


def with_another_depth(pipe: Any) -> Callable[[], None]:
    own = pipe.transformer
    config = {name: value for name, value in own.config.items() if name[0] != "_"}
    pipe.transformer = type(own)(**{**config, "num_layers": 1}).eval()
    return lambda: setattr(pipe, "transformer", own)


def with_a_fixed_shift(pipe: Any) -> Callable[[], None]:
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config, use_dynamic_shifting=False)
    return lambda: setattr(pipe, "scheduler", own)


CHANGES = {
    with_compiled_blocks: "a transformer whose blocks were compiled",
    with_another_backend: "a transformer with another attention backend",
    with_diffusers_cache: "a transformer with hooks of its own",
    with_another_depth: "of other dimensions than its models have",
    with_a_fixed_shift: "shift_terminal=0.02 of a fixed shift",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_what_the_stage_graphs_would_not_run_is_refused(pipe: Any, change: Any) -> None:
    undo = change(pipe)
    try:
        with pytest.raises(IncompatibleOptions, match=CHANGES[change]):
            fresco_trt.enable(pipe, stages=1)
    finally:
        undo()
    fresco_trt.enable(pipe, stages=1)
