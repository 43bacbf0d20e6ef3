"""A one-stage plan of Qwen-Image is diffusers' own pipeline: latents, pixels, guidance, source."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import fresco_trt
from fresco_trt.errors import IncompatibleOptions, UnsupportedWeights, WeightsNotFound
from fresco_trt.lower.weights import write_source
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.parts import load_tokenizer
from fresco_trt.models.qwen import prompts
from fresco_trt.models.qwen.components import QwenDecoder, QwenEncoder, check_folder
from fresco_trt.models.qwen.family import QWEN, rescaled
from fresco_trt.models.qwen.loading import load_transformer
from fresco_trt.models.qwen.parts import load_codec, load_encoder
from fresco_trt.models.qwen.random import write_random_pipeline
from fresco_trt.models.registry import register, unregister
from fresco_trt.pipelines.checks import NO_PROMPT, guidance_of
from fresco_trt.pipelines.request import GenerateRequest
from fresco_trt.plan.making import make_plan
from tests.models.qwen.small import EDIT, EDIT_2511, IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fresco_trt.plan.facts import ModelFacts

SIDE = 64
SIZES = [(1024 + 32 * more, 1024) for more in range(65)]
SEEN_PIXELS = prompts.SEEN_PIXELS
STEPS = 3
PROMPT = "a red apple"


def nobodys(facts: ModelFacts) -> ModelFacts:
    return replace(facts, name=f"small-{facts.name}", family="small", text_tokens=320)


MODELS = tuple(map(nobodys, (IMAGE, EDIT, EDIT_2511)))
NAMES = dict(zip(MODELS, prompts.PIPELINES, strict=True))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(replace(QWEN, name="small", models=MODELS))
    yield
    unregister("small")


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see a picture of the size that is drawn, where a megapixel is meant."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as edit
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as plus

    monkeypatch.setattr(prompts, "SEEN_PIXELS", dict.fromkeys(prompts.PIPELINES, SIDE * SIDE))
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (SIDE, SIDE, None))
    monkeypatch.setattr(plus, "calculate_dimensions", lambda area, ratio: (SIDE, SIDE))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole pipeline folder of each model; read them, never write to them."""
    made = {}
    for facts in MODELS:
        folder = tmp_path_factory.mktemp(facts.name)
        write_random_pipeline(facts, folder)
        write_source(load_transformer("random", facts), folder / "transformer")
        made[facts.name] = folder
    return made


def source(side: int = SIDE) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def diffusers_pipe(facts: ModelFacts, folder: Path) -> Any:
    """diffusers' own pipeline of a folder, with a random transformer."""
    import diffusers

    untyped: Any = diffusers
    tokenizer, encoder = load_tokenizer(folder / "tokenizer"), load_encoder(folder / "text_encoder")
    parts: dict[str, Any] = {
        "scheduler": untyped.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "vae": load_codec(folder / "vae"),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "transformer": load_transformer("random", facts),
    }
    if facts.references:
        parts["processor"] = None
    pipe = getattr(untyped, NAMES[facts])(**parts)
    if facts.references:
        pipe.processor = prompts.Processor(tokenizer, encoder.config.vision_config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(facts: ModelFacts, folder: Path, scale: float) -> dict[str, Any]:
    """Latents and pixels of diffusers' own pipeline."""
    pipe = diffusers_pipe(facts, folder)
    given: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NO_PROMPT}
    if facts.references:
        given["image"] = source()
    found = {}
    for kind in ("latent", "np"):
        found[kind] = pipe(
            **given,
            true_cfg_scale=scale,
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(7),
            output_type=kind,
        ).images
    return found


@pytest.mark.parametrize("facts", MODELS, ids=lambda facts: facts.name)
def test_one_stage_is_diffusers_pipeline(
    facts: ModelFacts, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[facts.name]
    expected = theirs(facts, folder, 4.0)
    plan = make_plan(facts, stages=1, steps=STEPS, size=(SIDE, SIDE))
    made = fresco_trt.build(plan, weights=str(folder), backend="eager", out=tmp_path / "bundle")
    image = source() if facts.references else None
    with fresco_trt.FrescoPipeline.from_bundle(made) as pipe:
        guided, unguided = (latents(pipe, scale, image) for scale in (4.0, 1.0))
        pixels = np.asarray(pipe(PROMPT, image=image, seed=7).images[0], dtype=np.float32)
    torch.testing.assert_close(guided, expected["latent"], atol=1e-4, rtol=1e-4)
    assert (guided - unguided).abs().max() > 1e-3
    assert np.abs(pixels - expected["np"][0] * 255).max() <= 2


def latents(pipe: Any, scale: float, image: Image.Image | None) -> torch.Tensor:
    asked = GenerateRequest(prompts=(PROMPT,), seeds=(7,), guidance=scale, source=image)
    *_, last = pipe._denoiser.steps(pipe._conditioning(PROMPT, asked), 7)
    found: torch.Tensor = last.tokens
    return found


@pytest.mark.parametrize("facts", MODELS[:2], ids=lambda facts: facts.name)
def test_stages_draw_and_edit_with_a_cache(
    facts: ModelFacts, folders: dict[str, Path], tmp_path: Path
) -> None:
    plan = make_plan(
        facts, stages=3, preset="turbo", size=(SIDE, SIDE), cache="taylor,interval=2,warmup_steps=1"
    )
    assert any("bypass" in stage.actions for stage in plan.stages)
    made = fresco_trt.build(
        plan, weights=str(folders[facts.name]), backend="eager", out=tmp_path / "bundle"
    )
    image = source() if facts.references else None
    with fresco_trt.FrescoPipeline.from_bundle(made) as pipe:
        first, second = (
            np.asarray(pipe([PROMPT, "a dog"], image=image, seed=7).images[0]) for _ in range(2)
        )
    assert first.shape == (SIDE, SIDE, 3)
    assert first.std() > 0
    assert np.array_equal(first, second)


def test_guidance_has_the_length_of_the_velocity_with_the_prompt() -> None:
    given, negative = torch.randn(2, 1, 5, 64)
    found = rescaled(given, negative, 4.0)
    torch.testing.assert_close(found.norm(dim=-1), given.norm(dim=-1))
    plain = negative + 4.0 * (given - negative)
    torch.testing.assert_close(torch.cosine_similarity(found, plain, dim=-1), torch.ones(1, 5))
    torch.testing.assert_close(rescaled(given, negative, 1.0), given)
    assert guidance_of(MODELS[0], None) == 4.0
    assert guidance_of(MODELS[0], 2.5) == 2.5


def test_a_text_that_is_too_long_is_cut_with_a_word_and_a_picture_must_be_read(
    folders: dict[str, Path],
) -> None:
    encode = prompts.QwenPrompt(folders[MODELS[0].name], 150)
    whole = encode(PROMPT)
    assert whole["text"].shape == (1, 150, 24)
    own = int(whole["text_mask"].sum())
    assert own == encode.tokens(PROMPT) < 150
    assert not whole["text"][:, own:].any()
    with pytest.warns(PromptWarning, match="the engines take 150"):
        long = encode(PROMPT * 20)
    assert long["text_mask"].all()
    with pytest.raises(IncompatibleOptions, match="with a picture for a QwenImagePipeline"):
        encode(PROMPT, source())
    with pytest.raises(IncompatibleOptions, match="without a picture for a QwenImageEditPipeline"):
        prompts.QwenPrompt(folders[MODELS[1].name], 150)(PROMPT)


def test_the_picture_that_the_encoder_sees_is_diffusers_size() -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import calculate_dimensions

    seen = dict(SEEN_PIXELS)
    assert seen[prompts.PIPELINES[2]] == plus.CONDITION_IMAGE_SIZE
    for size in ((1024, 1024), (1664, 928), (300, 801)):
        width, height, *_ = calculate_dimensions(1024 * 1024, size[0] / size[1])
        assert prompts.seen_size(size, seen[prompts.PIPELINES[1]]) == (width, height)
    tokens = [
        math.prod(round(side / 28) for side in prompts.seen_size(size, 1024**2)) for size in SIZES
    ]
    assert max(tokens) < 1410  # the others of the bucket are for the prompt


def test_the_processor_is_transformers_own(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = folders[MODELS[1].name]
    tokenizer, encoder = load_tokenizer(folder / "tokenizer"), load_encoder(folder / "text_encoder")
    untyped: Any = transformers
    # It looks for a video processor's class too, which needs torchvision, to compare it.
    monkeypatch.setattr(untyped.ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    pictures: Any = Qwen2VLImageProcessorPil
    own = prompts.Processor(tokenizer, encoder.config.vision_config)
    their = untyped.Qwen2VLProcessor(image_processor=pictures(), tokenizer=tokenizer)
    given = {"text": ["a <|image_pad|> b", "c"], "images": [source(84)], "padding": True}
    found, expected = (each(**given, return_tensors="pt") for each in (own, their))
    for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(found[name], expected[name])


def test_codec_undoes_codec_up_to_its_own_loss(folders: dict[str, Path]) -> None:
    folder = folders[MODELS[0].name]
    encoder, decoder = QwenEncoder(folder), QwenDecoder(folder)
    latents = encoder(np.array(source())[None])
    assert latents.shape == (1, encoder.channels, SIDE // encoder.scale, SIDE // encoder.scale)
    assert decoder(latents).shape == (1, SIDE, SIDE, 3)
    assert [tuple(each.shape[-2:]) for each in decoder.features(latents)] == [
        (8, 8),
        (8, 8),
        (16, 16),
    ]
    vae = load_codec(folder / "vae")
    pictures = torch.from_numpy(np.array(source())).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        plain = vae.encode(pictures).latent_dist.mode()[:, :, 0]
    scaling, shift = (
        torch.tensor(each).view(1, -1, 1, 1) for each in (encoder.scaling, encoder.shift)
    )
    torch.testing.assert_close(latents, (plain - shift) * scaling)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model_index.json", {"_class_name": "QwenImageEditPipeline"}, "parts of the pipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "the pipeline FluxPipeline"),
        ("scheduler/scheduler_config.json", {"shift_terminal": None}, "shift_terminal=None"),
        ("scheduler/scheduler_config.json", {"max_shift": 1.15}, "max_shift=1.15"),
        ("vae/config.json", {"z_dim": 8}, "latents_mean"),
    ],
)
def test_a_folder_of_other_parts_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    facts = MODELS[0]
    copy = tmp_path / "pipeline"
    shutil.copytree(folders[facts.name], copy)
    check_folder(copy, facts)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(fresco_trt.FrescoError, match=said):
        check_folder(copy, facts)


def test_a_folder_holds_no_weights_that_nobody_reads_and_no_part_of_another_family(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, copy = MODELS[0], tmp_path / "pipeline"
    shutil.copytree(folders[facts.name], copy)
    stray = copy / "tokenizer" / "pytorch_model.bin"
    stray.write_bytes(b"weights")
    with pytest.raises(UnsupportedWeights, match=r"tokenizer holds pytorch_model\.bin"):
        check_folder(copy, facts)
    stray.unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(fresco_trt.FrescoError) as caught:
        check_folder(copy, facts)
    assert "text_encoder_2" not in str(caught.value), "that is FLUX's"
    monkeypatch.chdir(copy)
    with pytest.raises(WeightsNotFound, match="no VAE"):  # and not that of where one is
        QWEN.components.find_vae("nowhere", facts.name)
