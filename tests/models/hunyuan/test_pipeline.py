"""A one-stage plan of HunyuanVideo is diffusers' own pipeline: prompts, latents, frames."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import fresco_trt
from fresco_trt.cli.main import main
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.weights import write_source
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.hunyuan import components
from fresco_trt.models.hunyuan.components import HunyuanDecoder, HunyuanEncoder, check_folder
from fresco_trt.models.hunyuan.family import HUNYUAN
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.prompts import HunyuanPrompt
from fresco_trt.models.hunyuan.random import write_random_pipeline
from fresco_trt.models.hunyuan.signatures import BIAS
from fresco_trt.models.parts import load_tokenizer
from fresco_trt.models.registry import register, unregister
from fresco_trt.pipelines.checks import check_clips, check_pictures
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.plan.making import make_plan
from tests.models.hunyuan.small import SMALL, diffusers_pipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = (64, 48, 9)  # 3 rows of tokens, of which there is no half
STEPS = 2
PROMPT = "a red apple"
FACTS = replace(SMALL, family="small-clips", text_tokens=40, default_size=SIZE)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(replace(HUNYUAN, name="small-clips", models=(FACTS,)))
    yield
    unregister("small-clips")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline folder; read it, never write to it."""
    made = tmp_path_factory.mktemp("pipeline")
    write_random_pipeline(FACTS, made)
    write_source(load_transformer("random", FACTS), made / "transformer")
    return made


def theirs(folder: Path, prompt: str) -> dict[str, Any]:
    """Latents and frames of diffusers' own pipeline."""
    pipe = diffusers_pipe(FACTS, folder)
    return {
        kind: pipe(
            prompt=prompt,
            width=SIZE[0],
            height=SIZE[1],
            num_frames=SIZE[2],
            num_inference_steps=STEPS,
            max_sequence_length=FACTS.text_tokens,
            generator=torch.Generator().manual_seed(7),
            output_type=kind,
        ).frames
        for kind in ("latent", "np")
    }


def test_one_stage_is_diffusers_pipeline(folder: Path, tmp_path: Path) -> None:
    expected = theirs(folder, PROMPT)
    plan = make_plan(FACTS, stages=1, steps=STEPS)
    made = fresco_trt.build(plan, weights=str(folder), backend="eager", out=tmp_path / "bundle")
    steps: list[Any] = []
    with fresco_trt.FrescoPipeline.from_bundle(made) as pipe:
        result = pipe(PROMPT, seed=7, on_step=steps.append)
        latents = pipe._denoiser.latents(steps[-1])
    assert result.images == []
    frames = np.stack([np.asarray(each, dtype=np.float32) for each in result.frames[0]])
    assert frames.shape == (9, 48, 64, 3)
    torch.testing.assert_close(latents, expected["latent"], atol=1e-4, rtol=1e-4)
    assert np.abs(frames - expected["np"][0] * 255).max() <= 2


def test_stages_draw_with_a_cache_a_size_that_has_no_half(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(FACTS, stages=3, preset="turbo", cache="taylor,interval=2,warmup_steps=1")
    assert any("bypass" in stage.actions for stage in plan.stages)
    assert [stage.grid.rows for stage in plan.stages] == [1, 2, 3]
    made = fresco_trt.build(plan, weights=str(folder), backend="eager", out=tmp_path / "bundle")
    seen: list[Any] = []
    with fresco_trt.FrescoPipeline.from_bundle(made) as pipe:
        whole = [pipe._denoiser.whole(step) for step in pipe._denoiser.steps(given(pipe), 7)]
        assert {tuple(each.shape) for each in whole} == {(1, 36, 64)}
        result = pipe([PROMPT, "a dog"], seed=7, on_stage=lambda *each: seen.append(each))
    assert [len(clip) for clip in result.frames] == [9, 9]
    assert {picture.size for _, picture in seen} == {(16, 16), (32, 32)}
    with pytest.raises(IncompatibleOptions, match="for clips of 9 frames; expected engines for pi"):
        FrescoPipelines.from_bundles(made)
    check_clips(plan)
    picture = make_plan(FACTS, stages=1, size=(64, 48))
    check_pictures(picture)
    with pytest.raises(IncompatibleOptions, match="for pictures; expected engines for clips"):
        check_clips(picture)


def test_the_command_writes_a_clip_and_a_strip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the small model, which its name builds from random weights."""
    pytest.importorskip("imageio_ffmpeg")
    made = str(tmp_path / "bundle")
    asked = ["build", "--model", "hunyuan-tiny", "--weights", "random", "--stages", "2"]
    options = ["--preset", "turbo", "--size", "32x32x5", "--backend", "eager", "--out", made]
    assert main([*asked, *options]) == 0
    capsys.readouterr()
    given = ["video", "--engines", made, "--prompt", "a pig", "--json"]
    out, picture = tmp_path / "out" / "clip.mp4", tmp_path / "strip.png"
    assert main([*given, "--out", str(out), "--strip", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["video"], told["strip"], told["frames"]) == (str(out), str(picture), 5)
    assert out.stat().st_size > 0
    with Image.open(picture) as opened:
        assert opened.size == (5 * 32, 32)
    for option, value, said in (
        ("--out", "clip.avi", "ending in .mp4"),
        ("--strip", "strip.jpg", "ending in .png"),
        ("--out", "/proc/none/clip.mp4", "/proc/none/clip.mp4"),
        ("--fps", "0", "0 frames a second"),
    ):
        assert main([*given, option, value]) == 2
        assert said in capsys.readouterr().err
    assert main(["generate", *given[1:], "--out", str(tmp_path / "x.png")]) == 2
    assert "fresco-trt video" in capsys.readouterr().err


def given(pipe: Any) -> Any:
    from fresco_trt.pipelines.request import GenerateRequest

    request = GenerateRequest(prompts=(PROMPT,), seeds=(7,), guidance=6.0)
    return pipe._conditioning(PROMPT, request)


def test_a_prompt_is_read_behind_the_words_that_frame_it(folder: Path) -> None:
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as library

    template: Any = library.DEFAULT_PROMPT_TEMPLATE
    front, tokenizer = template["template"].split("{}")[0], load_tokenizer(folder / "tokenizer")
    assert len(tokenizer(front).input_ids) == template["crop_start"] + 1  # and the mark at the end
    encode = HunyuanPrompt(folder, 40)
    short = encode("ab")
    assert encode.tokens("ab") < 40
    assert int((short[BIAS] == 0).sum()) == encode.tokens("ab")
    assert short["text"].shape == (1, 40, FACTS.text_dim)
    assert short["pooled"].shape == (1, FACTS.pooled_dim)
    assert (encode("ac")["text"] - short["text"]).abs().max() > 1e-3
    with pytest.warns(PromptWarning, match="the sequence encoder takes 40"):
        long = encode("a red apple on a wooden table, of oak")
    assert (long[BIAS] == 0).all()
    with pytest.warns(PromptWarning) as told:
        encode("a" * 90)
    assert "the pooled encoder takes 77" in str(told[0].message)


def test_the_codec_undoes_itself_and_large_clips_are_decoded_in_tiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = HunyuanEncoder(folder), HunyuanDecoder(folder)
    clip = np.random.default_rng(0).integers(0, 255, (1, 5, 32, 48, 3), dtype=np.uint8)
    latents = encoder(clip)
    assert latents.shape == (1, encoder.channels, 2, 4, 6)
    assert decoder(latents).shape == clip.shape
    picture = encoder(clip[:, 0])
    assert picture.shape == (1, encoder.channels, 4, 6)
    assert decoder(picture).shape == (1, 32, 48, 3)
    assert not decoder._vae.use_tiling
    monkeypatch.setattr(components, "TILED_FROM", 32)
    decoder(latents)
    assert decoder._vae.use_tiling


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "parts of the pipeline FluxPipel"),
        ("scheduler/scheduler_config.json", {"shift": 3.0}, "shift=3.0; expected 7.0"),
        ("vae/config.json", {"temporal_compression_ratio": 8}, "temporal_compression_ratio=8"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, "num_hidden_layers=1"),
        ("tokenizer/tokenizer_config.json", {"padding_side": "left"}, "pads on the left"),
    ],
)
def test_a_folder_of_other_parts_is_refused(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("transformer"))
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(fresco_trt.FrescoError, match=said):
        check_folder(copy, FACTS)
