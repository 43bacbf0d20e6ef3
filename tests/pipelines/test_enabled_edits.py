"""One line on a FluxKontextPipeline: diffusers' own edit in one stage, our own bundle's in several,
and what only the edit touches.

A random model of two narrow blocks at 64x64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, InvalidArgument, UnsupportedSize
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.selective import EditWarning, mask_latents
from fresco_trt.run import request
from fresco_trt.run.editing import decide_by_mask
from tests.pipelines.test_edit import MODEL, SIZE, parts_around

PROMPT = "make the square blue"
AREA = SIZE[0] * SIZE[1]
FACTS = model_facts(MODEL)
STAGED: dict[str, Any] = {"stages": 3, "preset": "fast", "cache": "hicache,interval=2"}
SELECTIVE: dict[str, Any] = {"stages": 4, "preset": "specedit", "cache": "hicache"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import diffusers

    folder = tmp_path_factory.mktemp("kontext") / "pipeline"
    family_of(FACTS).components.write_random(FACTS, folder)
    untyped: Any = diffusers
    pipe = untyped.FluxKontextPipeline(**parts_around(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(shared: Any) -> Iterator[Any]:
    """A pipeline that is plain before and after the test."""
    yield shared
    fresco_trt.disable(shared)


@pytest.fixture(scope="module")
def selective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the same weights: a draft of 4x4 tokens; 4 of them refined, or 8, or all."""
    return built(tmp_path_factory.mktemp("kontext") / "selective", SELECTIVE)


def built(folder: Path, options: Mapping[str, Any]) -> Path:
    asked = BuildRequest(
        model=MODEL, weights="random", backend="eager", size=SIZE, out=folder, **options
    )
    return run(asked).bundle.folder


def source(turn: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    slope = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return Image.fromarray(slope.astype(np.uint8)).rotate(turn)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def call(pipe: Any, **given: Any) -> Any:
    """A call at 64x64 with a source of that size and a short text, as changed."""
    basics: dict[str, Any] = {"image": source(), "prompt": PROMPT, "max_area": AREA}
    basics |= {"_auto_resize": False, "max_sequence_length": 32, "generator": seeded(5)[0]}
    given = {**basics, **given}
    return pipe(**{name: each for name, each in given.items() if each is not ...})


def latents(pipe: Any, **given: Any) -> Tensor:
    found = call(pipe, **{"num_inference_steps": 2, "output_type": "latent", **given}).images
    assert isinstance(found, Tensor)
    return found


def steps_of(pipe: Any, **given: Any) -> list[int]:
    """The steps that a callback is told of."""
    seen: list[int] = []
    call(pipe, **given, callback_on_step_end=lambda _, step, *told: seen.append(step) or {})
    return seen


def pixels(image: Any) -> Any:
    return np.asarray(image).astype(int)


# --- laws -------------------------------------------------------------------------------------


def test_one_stage_draws_the_pipelines_own_edit(pipe: Any) -> None:
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    plain, turned = call(pipe, **given).images[0], latents(pipe, image=source(90))
    fresco_trt.enable(pipe, stages=1)
    drawn = call(pipe, **given)
    assert type(drawn).__name__ == "FluxPipelineOutput"
    assert drawn.images[0].size == SIZE
    assert np.abs(pixels(drawn.images[0]) - pixels(plain)).max() <= 2
    assert (latents(pipe) - turned).abs().max() > 1e-3, "the source counts"


def encoded(pipe: Any, image: Image.Image) -> Tensor:
    """The latents of a source, as a caller may pass them."""
    given = pipe.image_processor.preprocess(image, SIZE[1], SIZE[0])
    with torch.no_grad():
        found: Tensor = pipe._encode_vae_image(given, None)
    return found


HONOURED: dict[str, Callable[[], dict[str, Any]]] = {
    "true guidance": lambda: {"negative_prompt": "a pear", "true_cfg_scale": 3.0},
    "a source for each": lambda: {
        "image": [source(), source(180)],
        "prompt": [PROMPT, "a pear"],
        "generator": seeded(1, 2),
    },
    "two of one": lambda: {"num_images_per_prompt": 2},
    "an array": lambda: {"image": np.asarray(source(), np.float32)[None] / 255},
    "a tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(3)[0])},
    "another shape": lambda: {"image": source(size=(128, 32)), "width": 128, "height": 32},
    "adapter scale": lambda: {"joint_attention_kwargs": {"scale": 0.5}},
}


@pytest.mark.parametrize("name", HONOURED)
def test_an_honoured_argument_draws_what_it_draws_without(pipe: Any, name: str) -> None:
    plain = latents(pipe, **HONOURED[name]())
    fresco_trt.enable(pipe, stages=1)
    torch.testing.assert_close(latents(pipe, **HONOURED[name]()), plain, atol=1e-5, rtol=0)


def test_a_source_may_come_as_latents(pipe: Any) -> None:
    plain = latents(pipe)
    given = encoded(pipe, source())
    fresco_trt.enable(pipe, stages=1)
    torch.testing.assert_close(latents(pipe, image=given), plain, atol=1e-5, rtol=0)


def test_a_source_is_resized_as_diffusers_does(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext

    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 64), (96, 64)])
    given = {"image": source(size=(100, 102)), "_auto_resize": ...}
    plain = latents(pipe, **given)
    fresco_trt.enable(pipe, stages=1)
    torch.testing.assert_close(latents(pipe, **given), plain, atol=1e-5, rtol=0)


def test_stages_and_a_cache_draw_our_own_pipelines_edit(pipe: Any, tmp_path: Path) -> None:
    folder = built(tmp_path / "staged", STAGED)
    with FrescoPipeline.from_bundle(folder) as ours:
        wanted = pixels(ours(PROMPT, image=source(), seed=5, guidance=3.0).images[0])
        text_tokens = ours.bundle.manifest.text_tokens
    given = {"guidance_scale": 3.0, "max_sequence_length": text_tokens}
    for options in (STAGED, {"engines": folder}):
        fresco_trt.enable(pipe, **options)
        assert np.abs(pixels(call(pipe, **given).images[0]) - wanted).max() <= 2


def test_a_callback_sees_the_new_pictures_tokens_alone(pipe: Any) -> None:
    seen: list[int] = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        seen.append(tensors["latents"].shape[1])
        return {"latents": tensors["latents"] * 0.9}

    plain = latents(pipe, callback_on_step_end=look)
    fresco_trt.enable(pipe, stages=1)
    drawn = latents(pipe, callback_on_step_end=look)
    torch.testing.assert_close(drawn, plain, atol=1e-5, rtol=0)
    assert seen == [64] * 4


def test_disable_gives_back_exactly_what_was_there(pipe: Any) -> None:
    kind, plain = type(pipe), latents(pipe)
    fresco_trt.enable(pipe, **STAGED)
    call(pipe)
    fresco_trt.disable(pipe)
    assert type(pipe) is kind
    assert torch.equal(latents(pipe), plain)


def test_half_precision_edits_too(shared: Any) -> None:
    import copy

    half = copy.deepcopy(shared).to(torch.bfloat16)
    fresco_trt.enable(half, **SELECTIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditWarning)
        assert call(half).images[0].size == SIZE


# --- what only the edit touches ---------------------------------------------------------------


def corner() -> Image.Image:
    """White over the upper left token of the draft."""
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 16, 16))
    return mask


def test_only_what_the_edit_touches_is_drawn_and_shown(
    pipe: Any, selective: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As our own pipeline draws it with the mask that is found here."""
    with FrescoPipeline.from_bundle(selective) as ours:
        wanted = ours(PROMPT, image=source(), mask=corner(), seed=5, guidance=3.0)
        text_tokens = ours.bundle.manifest.text_tokens
    given: dict[str, Any] = {"guidance_scale": 3.0, "max_sequence_length": text_tokens}
    found = mask_latents(corner(), FACTS.vae_scale)
    monkeypatch.setattr(request, "decide", lambda plan, scores: decide_by_mask(plan, found))
    for options in ({"engines": selective}, SELECTIVE):
        fresco_trt.enable(pipe, **options)
        drawn = call(pipe, **given)
        assert np.array_equal(pixels(drawn.masks[0]), pixels(corner()))
        assert np.abs(pixels(drawn.images[0]) - pixels(wanted.images[0])).max() <= 2
    both = call(pipe, **given, prompt=[PROMPT, "a pear"], generator=seeded(5, 6))
    assert len(both.masks) == 2
    assert np.abs(pixels(both.images[0]) - pixels(drawn.images[0])).max() <= 2
    assert steps_of(pipe, **given, return_dict=False) == list(range(pipe.num_timesteps))


def test_the_draft_decides_by_the_pipelines_own_decoder(pipe: Any, selective: Path) -> None:
    """Random weights draw nothing like the source: all of it differs."""
    with FrescoPipeline.from_bundle(selective) as ours:
        text_tokens = ours.bundle.manifest.text_tokens
        with pytest.warns(EditWarning):
            wanted = ours(PROMPT, image=source(), seed=5, guidance=2.5)
    fresco_trt.enable(pipe, **SELECTIVE)
    with pytest.warns(EditWarning, match="100% of the picture.*drawn anew"):
        drawn = call(pipe, guidance_scale=2.5, max_sequence_length=text_tokens)
    assert np.array_equal(pixels(drawn.masks[0]), pixels(wanted.masks[0]))
    assert np.abs(pixels(drawn.images[0]) - pixels(wanted.images[0])).max() <= 2


@pytest.mark.parametrize("as_latents", [False, True])
def test_an_edit_that_touches_nothing_gives_the_source_and_says_so(
    pipe: Any, as_latents: bool
) -> None:
    given = encoded(pipe, source()) if as_latents else source()
    fresco_trt.enable(pipe, stages=3, preset="specedit,threshold=100")
    with pytest.warns(EditWarning, match=r"touches nothing.*threshold=50"):
        drawn = call(pipe, image=given)
    with pytest.warns(EditWarning, match="touches nothing"):
        assert steps_of(pipe, image=given) == list(range(10)), "the draft alone"
    assert pixels(drawn.masks[0]).max() == 0
    if not as_latents:
        assert np.array_equal(pixels(drawn.images[0]), pixels(source()))
    else:
        with torch.no_grad():
            decoded = pipe.vae.decode(given / pipe.vae.config.scaling_factor).sample
        shown = pipe.image_processor.postprocess(decoded)[0]
        assert np.abs(pixels(drawn.images[0]) - pixels(shown)).max() <= 2


def test_an_interrupted_edit_has_no_mask(pipe: Any) -> None:
    def stop(pipe: Any, *told: Any) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    fresco_trt.enable(pipe, **SELECTIVE)
    drawn = call(pipe, callback_on_step_end=stop)
    assert drawn.images[0].size == SIZE
    assert drawn.masks == []


# --- refused ----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": None}, IncompatibleOptions, "no image in a call of an enabled FluxKontext"),
    ({"image": ...}, IncompatibleOptions, "no image in a call.*pass image="),
    ({"mask": corner()}, IncompatibleOptions, "mask in a call.*in the result's masks"),
    ({"image": "cat.png"}, InvalidArgument, "image of the type str"),
    ({"image": []}, InvalidArgument, r"image=\[\]"),
    ({"image": [3]}, InvalidArgument, "image of the type a list of int"),
    ({"image": source().convert("RGBA")}, InvalidArgument, r'image.convert\("RGB"\)'),
    ({"image": source().convert("L")}, InvalidArgument, r'image.convert\("RGB"\)'),
    ({"image": Image.new("RGB", (3, 3))}, InvalidArgument, "smaller than a token"),
    ({"image": [source()] * 2}, IncompatibleOptions, "2 of image for a call of 1"),
    ({"_auto_resize": True}, IncompatibleOptions, "at 1024x1024.*64x64.*pass _auto_resize=False"),
    (
        {"image": source(size=(96, 40))},
        IncompatibleOptions,
        "encodes at 96x40 for a picture of 64x64.*pass width=96, height=40, max_area=3840",
    ),
    ({"image": torch.rand(1, 4, 8, 8)}, IncompatibleOptions, "encodes at 32x32"),
    ({"max_area": -1}, InvalidArgument, "max_area=-1"),
    ({"max_area": "big"}, InvalidArgument, "max_area"),
    ({"sigmas": [1.0]}, IncompatibleOptions, "the stage plan decides"),
    ({"width": 72, "height": 64, "max_area": 72 * 64}, UnsupportedSize, "max_area="),
    (
        {"prompt": [PROMPT] * 2, "callback_on_step_end": lambda *_: {}},
        IncompatibleOptions,
        "callback_on_step_end with 2 pictures of a selective edit",
    ),
]


@pytest.mark.parametrize(("given", "kind", "told"), REFUSED, ids=[each[2][:28] for each in REFUSED])
def test_a_call_that_cannot_be_honoured_is_refused(
    pipe: Any, given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    fresco_trt.enable(pipe, **SELECTIVE)
    with pytest.raises(kind, match=told):
        call(pipe, **given)


def test_a_source_and_a_mask_are_for_pipelines_that_edit() -> None:
    from tests.pipelines.demo import new_pipe

    text = new_pipe()
    fresco_trt.enable(text, preset="turbo")
    for name in ("image", "mask"):
        with pytest.raises(IncompatibleOptions, match=f"{name} in a call of an enabled FluxPipe"):
            text(PROMPT, **{name: source()})
    with pytest.raises(IncompatibleOptions, match="flux-kontext, which edits pictures, for a Flux"):
        fresco_trt.enable(text, model="flux-kontext")


def test_engines_serve_their_size_alone_and_only_edits(
    pipe: Any, selective: Path, demo_bundle: Path
) -> None:
    with pytest.raises(IncompatibleOptions, match="the model flux-tiny, which draws from text"):
        fresco_trt.enable(pipe, engines=demo_bundle)
    fresco_trt.enable(pipe, engines=selective)
    with pytest.raises(UnsupportedSize, match="expected width=64, height=64, max_area=4096"):
        call(pipe, width=128, height=128, max_area=128 * 128)


def test_other_pipelines_are_refused_with_those_that_work(pipe: Any) -> None:
    import diffusers

    class StableDiffusionXLPipeline:
        """One of another family."""

    untyped: Any = diffusers
    parts = {name: each for name, each in pipe.components.items() if each is not None}
    others = [StableDiffusionXLPipeline()]
    others += [getattr(untyped, f"Flux{name}Pipeline")(**parts) for name in ("Fill", "Control")]
    works = "expected diffusers' own FluxPipeline.* FluxKontextPipeline"
    for other in others:
        with pytest.raises(IncompatibleOptions, match=works) as caught:
            fresco_trt.enable(other)
        assert type(other).__name__ in str(caught.value)
