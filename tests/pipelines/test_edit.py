"""A picture edited: diffusers' own at one stage, and sources of every kind read or refused."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fresco_trt.bundle import open_bundle
from fresco_trt.cli import main as cli
from fresco_trt.errors import IncompatibleOptions, InvalidArgument, PictureInvalid
from fresco_trt.files import picture_file
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.pipelines.edit import SourceWarning, example_source, source_picture
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import FrescoPipelines

MODEL = (
    "flux-kontext:num_layers=1,num_single_layers=1,num_attention_heads=2,attention_head_dim=16,"
    "axes_dims_rope=4+6+6,joint_attention_dim=32,pooled_projection_dim=32,in_channels=16,vae_scale=4"
)
SIZE = (64, 64)
PROMPT = "make the square blue"


def built(folder: Path, **options: Any) -> Path:
    request = BuildRequest(
        model=MODEL, weights="random", backend="eager", size=SIZE, out=folder, **options
    )
    return run(request).bundle.folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage: the plain sampler."""
    return built(tmp_path_factory.mktemp("kontext") / "plain", stages=1, steps=3)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages with a cache."""
    folder = tmp_path_factory.mktemp("kontext") / "staged"
    return built(folder, stages=3, preset="fast", cache="hicache,interval=2,warmup_steps=1")


@pytest.fixture(scope="module")
def source(plain: Path) -> Image.Image:
    found = example_source(open_bundle(plain))
    assert found is not None
    return found


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def parts_around(folder: Path) -> dict[str, Any]:
    """Parts of a diffusers pipeline from a bundle's own, with the random transformer."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    facts = model_facts(MODEL)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder_2": T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        "tokenizer_2": AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
        "transformer": family_of(facts).weights.load("random", facts),
    }


# --- pictures ---------------------------------------------------------------------------------


def test_one_stage_is_diffusers_own_pipeline(plain: Path, source: Image.Image) -> None:
    from diffusers import FluxKontextPipeline

    with FrescoPipeline.from_bundle(plain) as ours:
        folder, steps = ours.bundle.pipeline_folder, ours.plan.nfe
        kept: list[Any] = []
        drawn, _ = (
            ours(
                PROMPT,
                image=given,
                seed=5,
                guidance=3.0,
                on_step=lambda step: kept.append(step.tokens.clone()),
            ).images[0]
            for given in (source, source.rotate(90))
        )
    mine, turned = kept[steps - 1], kept[-1]
    untyped: Any = FluxKontextPipeline
    theirs = untyped(**parts_around(folder))
    theirs.set_progress_bar_config(disable=True)
    import torch

    latents, expected = (
        theirs(
            image=source,
            prompt=PROMPT,
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(5),
            max_area=SIZE[0] * SIZE[1],
            _auto_resize=False,
            output_type=form,
        ).images[0]
        for form in ("latent", "pil")
    )
    assert (mine - latents).abs().max() < 1e-5
    assert (turned - latents).abs().max() > 1e-3  # the source counts
    assert expected.size == drawn.size == SIZE
    assert np.abs(pixels(drawn) - pixels(expected)).max() <= 2


def test_stages_and_a_cache_draw_and_repeat(staged: Path, source: Image.Image) -> None:
    with FrescoPipeline.from_bundle(staged) as pipe:
        assert len(pipe.plan.stages) == 3
        assert "bypass" in {action for stage in pipe.plan.stages for action in stage.actions}
        seen: list[tuple[int, int]] = []
        first = pipe(PROMPT, image=source, on_stage=lambda _, each: seen.append(each.size))
        again = pipe(PROMPT, image=source)
        assert seen == [(16, 16), (32, 32)]
        assert (pixels(first.images[0]) == pixels(again.images[0])).all()
    with FrescoPipelines.from_bundles(staged) as pipes:
        (cost,) = pipes.warm_up()  # with a source of its own
        assert cost.first > 0


def test_engines_verify_against_eager(plain: Path) -> None:
    from fresco_trt.verify import verify_bundle

    comparison = verify_bundle(plain)
    assert {error.engine for error in comparison.engines} == {"stage1.full"}
    assert max(error.relative for error in comparison.engines) == 0
    assert comparison.pixels == 0


def test_the_command_edits_a_file(
    plain: Path, source: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "in.png", tmp_path / "out.png"
    source.resize((80, 64)).save(given)
    arguments = ["edit", "--engines", str(plain), "--image", str(given), "--prompt", PROMPT]
    assert cli.main([*arguments, "--out", str(out), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["image"] == str(out)
    assert "80x64: resized to 64x64, which changes its aspect" in shown.err
    with FrescoPipeline.from_bundle(plain) as pipe, warnings.catch_warnings():
        warnings.simplefilter("ignore", SourceWarning)
        expected = pipe(PROMPT, image=given).images[0]
    assert (pixels(Image.open(out)) == pixels(expected)).all()
    out.unlink()
    assert cli.main(["edit", *arguments[1:4], str(tmp_path / "none.png"), *arguments[5:]]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["generate", *arguments[1:3], "--prompt", PROMPT, "--out", str(out)]) == 2
    assert "'fresco-trt edit'" in capsys.readouterr().err
    assert not out.exists()


# --- refusals ---------------------------------------------------------------------------------


def test_a_model_that_edits_wants_a_source_and_another_wants_none(
    plain: Path, eager_bundle: Path, source: Image.Image
) -> None:
    with FrescoPipeline.from_bundle(plain) as pipe:
        with pytest.raises(IncompatibleOptions, match="no source picture") as caught:
            pipe(PROMPT)
        assert "pass image=" in str(caught.value)
    with (
        FrescoPipeline.from_bundle(eager_bundle) as pipe,
        pytest.raises(IncompatibleOptions, match="image for flux-tiny"),
    ):
        pipe(PROMPT, image=source)


def saved(tmp_path: Path, image: Image.Image, **options: Any) -> Path:
    path = tmp_path / f"picture.{options.pop('ending', 'png')}"
    image.save(path, **options)
    return path


COLOUR = (200, 40, 90)


def test_every_form_of_a_picture_is_read(tmp_path: Path) -> None:
    flat = Image.new("RGB", SIZE, COLOUR)
    forms: list[tuple[Image.Image, tuple[int, ...]]] = [
        (flat, COLOUR),
        (flat.convert("P"), flat.convert("P").convert("RGB").getpixel((0, 0))),
        (flat.convert("CMYK"), COLOUR),
        (Image.new("L", SIZE, 77), (77, 77, 77)),
        (Image.new("1", SIZE, 1), (255, 255, 255)),
        (Image.fromarray(np.full(SIZE, 257 * 99, np.uint16)), (99, 99, 99)),
        (Image.fromarray(np.full(SIZE, 257 * 99, np.int32)), (99, 99, 99)),
        (Image.new("RGBA", SIZE, (*COLOUR, 255)), COLOUR),
    ]
    for given, expected in forms:
        ending = "tiff" if given.mode in ("CMYK", "I") else "png"
        for form in (given, saved(tmp_path, given, ending=ending)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = source_picture(form, SIZE)
            assert (found.mode, found.size) == ("RGB", SIZE)
            assert np.abs(pixels(found)[0, 0] - np.array(expected)).max() <= 1, given.mode


def test_what_is_changed_of_a_source_is_said(tmp_path: Path) -> None:
    clear = Image.new("RGBA", SIZE, (*COLOUR, 0))
    with pytest.warns(SourceWarning, match="transparent"):
        assert source_picture(clear, SIZE).getpixel((0, 0)) == (255, 255, 255)
    wide = Image.new("RGB", (128, 64), COLOUR)
    with pytest.warns(SourceWarning, match=r"128x64: resized to 64x64, which changes its aspect"):
        assert source_picture(wide, SIZE).size == SIZE
    with pytest.warns(SourceWarning, match=r"128x128: resized to 64x64$"):
        source_picture(Image.new("RGB", (128, 128)), SIZE)
    frames = [Image.new("RGB", SIZE, (level, 0, 0)) for level in (250, 10)]
    moving = saved(tmp_path, frames[0], ending="webp", save_all=True, append_images=frames[1:])
    with pytest.warns(SourceWarning, match="several frames: the first"):
        assert source_picture(moving, SIZE).getpixel((0, 0))[0] > 200


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    given = Image.new("RGB", SIZE)
    given.paste((255, 255, 255), (0, 0, 64, 8))  # the first rows
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    found = pixels(source_picture(saved(tmp_path, given, exif=exif), SIZE))
    assert found[32, 63].min() == 255
    assert found[32, 0].max() == 0


def test_a_source_is_not_written_to() -> None:
    given = Image.new("RGB", SIZE, COLOUR)
    found = source_picture(given, SIZE)
    found.putpixel((0, 0), (0, 0, 0))
    assert given.getpixel((0, 0)) == COLOUR


def cut_short(path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise(SIZE, 50).save(stream, format="PNG")
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture"),
    "cut short": cut_short,
    "a folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "floats": lambda path: Image.fromarray(np.ones(SIZE, np.float32)).save(path, format="TIFF"),
    "negative": lambda path: Image.fromarray(np.full(SIZE, -5, np.int32)).save(path, format="TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_picture_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "source.png"
    BROKEN[kind](path)
    with pytest.raises(PictureInvalid) as caught:
        source_picture(path, SIZE)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, Image.new("1", (20_000, 20_000)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was read"))
    with pytest.raises(PictureInvalid, match=f"at most {picture_file.MAX_SOURCE_PIXELS} pixels"):
        source_picture(path, SIZE)
    middling = tmp_path / "middling.png"
    monkeypatch.undo()
    Image.new("1", (10_000, 10_000)).save(middling)
    with pytest.raises(PictureInvalid, match="10000x10000"):
        source_picture(middling, SIZE)


@pytest.mark.parametrize("given", [3, b"picture.png", np.zeros((4, 4, 3), np.uint8)])
def test_another_type_is_the_callers_mistake(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="a picture of PIL"):
        source_picture(given, SIZE)
