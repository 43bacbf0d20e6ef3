"""Laws of a checkpoint's files: those that diffusers would load, each tensor once, or an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fresco_trt.errors import UnsupportedWeights, WeightsNotFound
from fresco_trt.lower.weights import write_source
from fresco_trt.models.checkpoint import INDEX_NAME, MAX_INDEX_BYTES, WEIGHTS_NAME, read_weights
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import load_transformer, random_transformer
from fresco_trt.models.weights import weights_digest

SMALL = replace(
    FLUX_TINY, name="small", hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
WANTED = weights_digest(random_transformer(SMALL, seed=3))
SHARDS = tuple(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformer folder with the weights of ``WANTED`` in one file."""
    return write_source(random_transformer(SMALL, seed=3), tmp_path / "transformer")


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two files, with their index."""
    tensors = sorted(load_file(folder / WEIGHTS_NAME).items())
    (folder / WEIGHTS_NAME).unlink()
    weight_map = {}
    for number, file in enumerate(SHARDS):
        save_file(dict(tensors[number::2]), folder / file)
        weight_map |= {name: file for name, _ in tensors[number::2]}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def digest(folder: Path) -> str:
    """Of the weights that a folder is read as."""
    return weights_digest(load_transformer(folder, SMALL))


def others(file: Path) -> None:
    """Write a whole file of other weights."""
    save_file(dict(random_transformer(SMALL, seed=4).state_dict()), file)


# --- which files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beside", [WEIGHTS_NAME, "zzz.safetensors", "diffusion_pytorch_model.fp16.safetensors", "x.bin"]
)
def test_the_files_of_the_index_are_read_and_no_others(sharded: Path, beside: str) -> None:
    others(sharded / beside)
    assert digest(sharded) == WANTED


@pytest.mark.parametrize(
    "beside", [*SHARDS, "zzz.safetensors", "diffusion_pytorch_model.fp16.safetensors", "x.bin"]
)
def test_without_an_index_it_is_the_file_of_diffusers_name(folder: Path, beside: str) -> None:
    others(folder / beside)
    assert digest(folder) == WANTED


def test_diffusers_reads_the_same_ones(sharded: Path) -> None:
    from diffusers import FluxTransformer2DModel

    others(sharded / WEIGHTS_NAME)
    theirs = FluxTransformer2DModel.from_pretrained(sharded, low_cpu_mem_usage=False)
    assert weights_digest(theirs) == WANTED


@pytest.mark.parametrize("names", [SHARDS, ("diffusion_pytorch_model.fp16.safetensors",)])
def test_no_other_file_stands_in(folder: Path, names: tuple[str, ...]) -> None:
    (folder / WEIGHTS_NAME).unlink()
    for name in names:
        others(folder / name)
    with pytest.raises(WeightsNotFound, match=f"neither .* only {names[0]}"):
        digest(folder)


def damage_shard(folder: Path) -> str:
    (folder / SHARDS[1]).unlink()
    return SHARDS[1]


def damage_twice(folder: Path) -> str:
    tensors = load_file(folder / SHARDS[1])
    save_file(tensors | {"proj_out.bias": torch.ones(16)}, folder / SHARDS[1])
    save_file(load_file(folder / SHARDS[0]) | {"proj_out.bias": torch.ones(16)}, folder / SHARDS[0])
    return "proj_out.bias"


def damage_lacking(folder: Path) -> str:
    tensors = load_file(folder / SHARDS[0])
    name = min(tensors)
    del tensors[name]
    save_file(tensors, folder / SHARDS[0])
    return f"lacks what the index says it holds: 1 tensor, the first {name}"


def damage_stranger(folder: Path) -> str:
    save_file(load_file(folder / SHARDS[0]) | {"more": torch.ones(1)}, folder / SHARDS[0])
    return "holds what the index does not say: 1 tensor, the first more"


def damage_text(folder: Path) -> str:
    (folder / INDEX_NAME).write_text("{")
    return f"{INDEX_NAME} cannot be read"


def damage_depth(folder: Path) -> str:
    (folder / INDEX_NAME).write_text('{"a":' * 100_000)
    return f"{INDEX_NAME} is nested too deeply"


def damage_size(folder: Path) -> str:
    with (folder / INDEX_NAME).open("wb") as file:
        file.truncate(60 * 2**30)
    return f"{INDEX_NAME} has over {MAX_INDEX_BYTES} bytes"


def damage_map(folder: Path) -> str:
    (folder / INDEX_NAME).write_text('{"weight_map": {}}')
    return "no weight_map"


def damage_outside(folder: Path) -> str:
    others(folder.parent / "outside.safetensors")
    text = json.dumps({"weight_map": {"proj_out.bias": "../outside.safetensors"}})
    (folder / INDEX_NAME).write_text(text)
    return "names '../outside.safetensors'"


@pytest.mark.parametrize(
    "damage",
    [
        damage_shard,
        damage_twice,
        damage_lacking,
        damage_stranger,
        damage_text,
        damage_depth,
        damage_size,
        damage_map,
        damage_outside,
    ],
)
def test_an_index_that_its_files_do_not_bear_out_is_refused(
    sharded: Path, damage: Callable[[Path], str]
) -> None:
    told = damage(sharded)
    with pytest.raises(WeightsNotFound) as caught:
        read_weights(sharded)
    assert told in caught.value.given


# --- forms that are not read ------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flux-Q4_K_S.gguf", "GGUF"),
        ("flux.ckpt", "pickle"),
        ("flux.pt", "pickle"),
        ("diffusion_pytorch_model.bin", "pickle"),
    ],
)
def test_a_form_that_is_not_read_is_named(
    tmp_path: Path, name: str, told: str, inside: bool
) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UnsupportedWeights, match=told) as caught:
        load_transformer(tmp_path if inside else tmp_path / name, SMALL)
    assert caught.value.exit_code == 2
    assert "safetensors" in caught.value.fix


def test_a_folder_of_diffusers_with_pickled_weights_says_so(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsupportedWeights, match=r"diffusion_pytorch_model\.bin is a pickle"):
        digest(folder)


@pytest.mark.parametrize(
    ("begins", "told"),
    [
        (b"GGUF\x03\x00", "it is a GGUF file"),
        (b"PK\x03\x04", "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ],
)
def test_a_file_that_is_called_safetensors_and_is_none_is_known(
    tmp_path: Path, begins: bytes, told: str
) -> None:
    (tmp_path / "file.safetensors").write_bytes(begins + bytes(100))
    with pytest.raises(WeightsNotFound, match=told):
        read_weights(tmp_path / "file.safetensors")
