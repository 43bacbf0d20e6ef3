"""Training of the video demo: its codec and text are what diffusers expects; it can be killed."""

from __future__ import annotations

import copy
import json
import random
import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import typer

from fresco_trt.bench.scenes.clips import FRAMES, clip_stream, videos_of
from fresco_trt.models.hunyuan.components import check_folder
from fresco_trt.models.hunyuan.facts import HUNYUAN_TINY
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.prompts import HunyuanPrompt
from training import video, video_vae
from training.assemble import store_video
from training.curriculum import TrainingPhase
from training.vae import picture_loss
from training.video_model import VideoModel, prompt_template

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

CAPTION = "a red apple moving left to right on blue"
CLIPS = list(islice(clip_stream(0), 2))


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    """An untrained codec in which every weight has a share."""
    codec = video_vae.new_vae().requires_grad_(False)
    for weight in codec.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
    return codec


@pytest.fixture(scope="module")
def model() -> VideoModel:
    """An untrained model in which every weight has a share."""
    model = VideoModel().requires_grad_(False)
    for weight in model.transformer.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def work(vae: AutoencoderKLHunyuanVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a stored codec."""
    folder = tmp_path_factory.mktemp("video")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def pipe(work: Path) -> HunyuanVideoPipeline:
    """What is stored, as diffusers loads it."""
    from diffusers import HunyuanVideoPipeline

    torch.manual_seed(0)
    trained, folder = VideoModel(), work / "hunyuan-tiny"
    store_video(trained, video_vae.load_vae(work), folder)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10_000_000
    pipe: HunyuanVideoPipeline = HunyuanVideoPipeline.from_pretrained(
        folder, low_cpu_mem_usage=False, dtype=torch.float32
    )
    return pipe


def test_a_build_by_the_demos_name_takes_what_is_stored(
    work: Path, pipe: HunyuanVideoPipeline
) -> None:
    check_folder(work / "hunyuan-tiny", HUNYUAN_TINY)
    load_transformer(work / "hunyuan-tiny", HUNYUAN_TINY)
    encode = HunyuanPrompt(work / "hunyuan-tiny", HUNYUAN_TINY.text_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(encode.tokens(clip.caption) < HUNYUAN_TINY.text_tokens for clip in CLIPS)
        assert encode(CAPTION)["text"].shape == (1, HUNYUAN_TINY.text_tokens, 64)


def test_a_clip_has_four_latent_frames_and_comes_back_in_its_shape(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    latents = video_vae.encoded(vae, CLIPS, 32)
    assert latents.shape == (2, 16, 4, 4, 4)
    assert vae.decode(latents).sample.shape == (2, 3, FRAMES, 32, 32)


def test_single_pictures_are_the_same_over_space_alone(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    flat = video_vae.new_vae()
    flat.load_state_dict(vae.state_dict())
    video_vae.flatten_pictures(flat)
    pictures = videos_of(CLIPS, 32, frames=1)
    rebuilt = [each.decode(each.encode(pictures).latent_dist.mean).sample for each in (vae, flat)]
    torch.testing.assert_close(*rebuilt, atol=1e-4, rtol=1e-4)


def test_latents_are_made_even_and_the_codec_stays_what_it_was(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    codec, clips = video_vae.new_vae(), videos_of(CLIPS, 32, frames=5)
    codec.load_state_dict(vae.state_dict())
    codec.requires_grad_(False)
    before = codec.encode(clips).latent_dist
    mean, deviation = before.mean.mean((0, 2, 3, 4)), before.mean.std((0, 2, 3, 4))
    rebuilt = codec.decode(before.mean).sample
    video_vae.even(codec, mean, deviation)
    after = codec.encode(clips).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3, rtol=0)
    scale = deviation.view(-1, 1, 1, 1)
    torch.testing.assert_close(after.std * scale, before.std, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(codec.decode(after.mean).sample, rebuilt, atol=1e-4, rtol=1e-3)


def test_the_codec_is_shown_parts_of_clips_of_every_kind() -> None:
    rng, clips = random.Random(0), clip_stream(0)
    for kind, frames in enumerate((1, 5, FRAMES)):
        shares = [float(index == kind) for index in range(3)]
        shown = video_vae.videos(clips, rng, shares)
        assert shown.shape == (video_vae.BATCHES[frames], 3, frames, 64, 64)
        assert len(shown) > 1


def test_an_error_that_flickers_costs_more_than_a_steady_one() -> None:
    clips = videos_of(CLIPS, 32)
    steady, flickering = 0.1 * torch.ones(FRAMES), 0.1 * torch.tensor([1.0, -1.0] * 7)[:FRAMES]
    one, other = (
        picture_loss(clips + error.view(-1, 1, 1), clips) for error in (steady, flickering)
    )
    assert other > 1.5 * one


def test_every_caption_is_made_of_words_that_it_knows(model: VideoModel) -> None:
    said = [clip.caption for clip in islice(clip_stream(0), 100)]
    for tokenizer in (model.tokenizer, model.tokenizer_2):
        assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(said).input_ids)
    longest = max(said, key=lambda caption: len(caption.split()))
    assert 8 < int(model.encode([longest], 20)[1].sum()) <= video.LENGTH


def test_text_is_what_diffusers_makes_of_the_same_prompt(
    pipe: HunyuanVideoPipeline,
) -> None:
    stored = VideoModel()
    stored.text_encoder, stored.text_encoder_2 = pipe.text_encoder, pipe.text_encoder_2
    with torch.no_grad():
        words, pooled, mask = pipe.encode_prompt([CAPTION], max_sequence_length=16)
        ours = stored.encode([CAPTION], 16)
    for one, other in zip(ours, (words, mask, pooled), strict=True):
        torch.testing.assert_close(one, other)
    template, cropped = prompt_template()
    ids = pipe.tokenizer(template.format(CAPTION)).input_ids[cropped:]
    assert pipe.tokenizer.convert_ids_to_tokens(ids) == [*CAPTION.split(), "<|eot_id|>"]
    assert mask.sum() == len(ids)


def test_padding_of_a_caption_changes_nothing(model: VideoModel) -> None:
    latents, sigma, scale = torch.randn(1, 16, 4, 4, 4), torch.tensor([0.6]), torch.tensor([3.0])
    short, long = (
        model(latents, sigma, model.encode([CAPTION], length), scale) for length in (12, 30)
    )
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-4)
    other = model.encode([CAPTION.replace("left to right", "right to left")], 12)
    assert not torch.allclose(model(latents, sigma, other, scale), short)


def test_what_is_stored_makes_a_clip(pipe: HunyuanVideoPipeline) -> None:
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        CAPTION, height=32, width=32, num_frames=FRAMES, num_inference_steps=1, output_type="np"
    ).frames
    assert frames.shape == (1, FRAMES, 32, 32, 3)
    assert pipe.text_encoder.dtype == pipe.text_encoder_2.dtype == torch.float32


@pytest.mark.parametrize(("kind", "shape"), [(0, (1, 8, 8)), (1, (4, 4, 4)), (2, (4, 8, 8))])
def test_a_batch_is_of_frames_or_of_clips_at_one_of_the_sides(
    vae: AutoencoderKLHunyuanVideo,
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    shape: tuple[int, ...],
) -> None:
    monkeypatch.setattr(video, "SIDE", 64)
    monkeypatch.setattr(video, "FRESH", 2)
    monkeypatch.setattr(video, "BATCHES", (3, 3, 3))
    share = tuple(float(index == kind) for index in range(3))
    phase = TrainingPhase(start=share, end=share, hold=0, guided=(0, 0))
    drawn = video.Clips(vae=vae, clips=iter(CLIPS * 2), rng=random.Random(1), phase=phase)
    batch = drawn.draw(0)
    assert batch.noisy.shape == batch.velocity.shape == (3, 16, *shape)
    known = {said: latents for pool in drawn.kept.values() for said, latents in pool}
    clean = batch.noisy - batch.sigma.view(-1, 1, 1, 1, 1) * batch.velocity
    for said, each in zip(batch.captions, clean, strict=True):
        if said and kind != 1:
            torch.testing.assert_close(each, known[said][:, : shape[0]], atol=1e-4, rtol=1e-4)


def test_a_run_that_was_killed_goes_on(
    work: Path, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = copy.deepcopy(model).requires_grad_(True)
    del shallow.transformer.single_transformer_blocks[1:]
    monkeypatch.setattr(video, "VideoModel", lambda: shallow)
    phase = TrainingPhase(start=(1, 0, 0), end=(1, 0, 0), hold=0, guided=(1, 1))
    monkeypatch.setattr(video, "MOVING", phase)
    monkeypatch.setattr(video, "SIDE", 64)
    for name, value in (("BATCHES", (2, 2, 2)), ("FRESH", 2), ("HELD_OUT", 2)):
        monkeypatch.setattr(video, name, value)
    first = video.train(work, minutes=1e-9)
    second = video.train(work, minutes=first.elapsed / 60 + 1e-9)
    assert (first.step, second.step) == (1, 2)
    lines = (work / "held-out.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert all(len(json.loads(line)["loss"]) == 2 for line in lines)


def test_a_codec_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_vae, "BATCHES", {1: 2})
    monkeypatch.setattr(video_vae, "SCALED", (2, 32))
    video.train_codec(tmp_path, minutes=1e-9)
    stored = (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    clips = list(islice(clip_stream(1), 2))  # those that latents are made even over
    latents = video_vae.encoded(video_vae.load_vae(tmp_path), clips, 32)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-2, rtol=0)
    video.train_codec(tmp_path, minutes=1)
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == stored


def test_time_that_the_codec_alone_would_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"45 minutes in all; expected more than .* 45,"):
        video.main(tmp_path / "run", minutes=45, codec_minutes=45)
    assert not (tmp_path / "run").exists()
