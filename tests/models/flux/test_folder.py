"""Laws of a pipeline folder: what a bundle would carry is what its engines take, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fresco_trt
from fresco_trt.errors import FrescoError, IncompatibleOptions, UnsupportedWeights, WeightsNotFound
from fresco_trt.models.flux.components import FluxPrompt
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_DEV, FLUX_SCHNELL, FLUX_TINY
from fresco_trt.models.flux.folder import check_folder
from fresco_trt.models.flux.random import write_random_pipeline
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.facts import ModelFacts

TINY = bundled_folder("flux-tiny")
SHORT_DEV = replace(FLUX_DEV, text_tokens=16)
SHORT_SCHNELL = replace(FLUX_SCHNELL, text_tokens=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parts of the demo, to be changed."""
    for name in COMPONENTS:
        source, target = TINY / name, tmp_path / "own" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    return tmp_path / "own"


def change(folder: Path, file: str, **settings: Any) -> None:
    """Store other settings in a configuration of the folder."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder: Path, kind: type[FrescoError] = IncompatibleOptions) -> str:
    """What is said of a folder."""
    with pytest.raises(kind) as caught:
        check_folder(folder, FLUX_TINY)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"the pipeline folder {folder}: ")
    return caught.value.given


def test_the_demo_is_its_own(folder: Path) -> None:
    check_folder(TINY, FLUX_TINY)
    check_folder(folder, FLUX_TINY)


@pytest.mark.parametrize("facts", [FLUX_TINY, SHORT_DEV, SHORT_SCHNELL], ids=lambda f: f.name)
def test_what_is_made_up_for_random_weights_is_the_models(
    tmp_path: Path, facts: ModelFacts
) -> None:
    check_folder(write_random_pipeline(facts, tmp_path), facts)


# --- scheduler --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 3.0, "use_dynamic_shifting": False},
        {"num_train_timesteps": 500},
        {"base_shift": 0.25},
        {"max_image_seq_len": 4096},
        {"time_shift_type": "linear"},
        {"use_karras_sigmas": True},
        {"shift_terminal": 0.02},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        {"_class_name": "EulerDiscreteScheduler"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_scheduler_that_plans_do_not_hear_is_refused(
    folder: Path, settings: dict[str, Any]
) -> None:
    change(folder, "scheduler/scheduler_config.json", **settings)
    assert "scheduler" in refused(folder)


def test_a_setting_that_is_not_read_where_others_are_is_no_matter(folder: Path) -> None:
    change(folder, "scheduler/scheduler_config.json", shift=3.0)  # FLUX.1-dev has it, and a rule
    check_folder(folder, FLUX_TINY)


def test_a_build_refuses_it_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    change(folder, "scheduler/scheduler_config.json", shift=3.0, use_dynamic_shifting=False)
    shutil.copytree(TINY / "transformer", folder / "transformer")
    out = tmp_path / "out" / "bundle"
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=2, size=(64, 64))
    with pytest.raises(IncompatibleOptions, match=r"shifts the sigmas by 3\.0"):
        fresco_trt.build(plan, weights=str(folder), backend="eager", out=out)
    assert not out.exists()


# --- the other parts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "settings", "told"),
    [
        ("model_index.json", {"_class_name": "FluxControlNetPipeline"}, "FluxControlNetPipeline"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "vae is AutoencoderTiny"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "text_encoder_2 is None"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae is AutoencoderTiny"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels=16"),
        ("vae/config.json", {"block_out_channels": [16, 32, 64, 64]}, "enlarges by 8"),
        ("text_encoder/config.json", {"hidden_size": 768}, "text_encoder with hidden_size=768"),
        ("text_encoder_2/config.json", {"d_model": 4096}, "text_encoder_2 with d_model=4096"),
    ],
)
def test_parts_of_another_model_are_refused(
    folder: Path, file: str, settings: dict[str, Any], told: str
) -> None:
    change(folder, file, **settings)
    assert told in refused(folder)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_a_part_that_is_quantised_is_refused(folder: Path, part: str) -> None:
    change(folder, f"{part}/config.json", quantization_config={"load_in_8bit": True})
    assert part in refused(folder, UnsupportedWeights)


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/tokenization.py",
        "scheduler/x.safetensors",
    ],
)
def test_a_file_that_nobody_would_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert name.split("/")[1] in refused(folder, UnsupportedWeights)


@pytest.mark.parametrize("name", ["text_encoder/notes.txt", "tokenizer_2/more.json"])
def test_a_large_file_that_holds_no_weights_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(60 * 2**30)
    assert f"{Path(name).name} of {60 * 2**30} bytes" in refused(folder, UnsupportedWeights)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("x.bias", torch.tensor([0.0, torch.nan]), "not finite in float32: 1 tensor, the first x"),
        ("x.weight", torch.ones(2, 2, dtype=torch.int8), "codes of the type int8"),
        ("x.scale_weight", torch.ones(1), "x.scale_weight, which nothing would multiply in"),
        ("x.weight.absmax", torch.ones(1), "bitsandbytes"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    folder: Path, part: str, name: str, value: torch.Tensor, told: str
) -> None:
    file = next((folder / part).glob("*.safetensors"))
    save_file(load_file(file) | {name: value}, file, {"format": "pt"})
    assert told in refused(folder, UnsupportedWeights)


def test_positions_that_are_listed_and_plain_fp8_are_read(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    more = {"position_ids": torch.arange(3), "x.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    save_file(load_file(file) | more, file, {"format": "pt"})
    check_folder(folder, FLUX_TINY)


def test_a_truncated_part_is_refused(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert f"{file} cannot be read" in refused(folder, WeightsNotFound)


def absent_weights(folder: Path) -> str:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    return "vae lacks diffusion_pytorch_model.safetensors"


def absent_shard(folder: Path) -> str:
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00001.safetensors"}}
    (folder / "text_encoder_2" / "model.safetensors.index.json").write_text(json.dumps(index))
    return "text_encoder_2 lacks model-00001-of-00001.safetensors"


def broken_config(folder: Path) -> str:
    (folder / "text_encoder" / "config.json").write_text("{")
    return "config.json of text_encoder cannot be read"


def list_config(folder: Path) -> str:
    (folder / "scheduler" / "scheduler_config.json").write_text("[]")
    return "scheduler_config.json of scheduler holds a list"


@pytest.mark.parametrize("damage", [absent_weights, absent_shard, broken_config, list_config])
def test_a_part_that_is_not_whole_is_refused(folder: Path, damage: Callable[[Path], str]) -> None:
    told = damage(folder)
    assert told in refused(folder, WeightsNotFound)


def test_the_text_has_the_engines_length_whatever_its_tokenizer_says(folder: Path) -> None:
    change(folder, "tokenizer_2/tokenizer_config.json", model_max_length=64)
    inputs = FluxPrompt(folder, FLUX_TINY.text_tokens)("a red apple")
    assert inputs["text"].shape[1] == FLUX_TINY.text_tokens
