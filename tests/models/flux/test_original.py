"""Laws of the original names: the same weights at every width, and each tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fresco_trt.errors import IncompatibleOptions, UnsupportedWeights
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import load_transformer, random_transformer
from fresco_trt.models.flux.original import diffusers_names
from fresco_trt.models.weights import weights_digest
from fresco_trt.plan.facts import ModelFacts
from tests.models.flux.original_names import original

SMALL = replace(
    FLUX_TINY, name="small", hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
WANTED = weights_digest(random_transformer(SMALL, seed=3))
ADDED = "double_blocks.0.img_attn.proj.lora_down.weight"
QKV, LINEAR1 = "double_blocks.0.txt_attn.qkv.weight", "single_blocks.0.linear1.weight"

Change = Callable[[dict[str, Tensor]], object]


def small() -> dict[str, Tensor]:
    """The original names of a small model of random weights."""
    return original(random_transformer(SMALL, seed=3))


def loaded(tmp_path: Path, tensors: dict[str, Tensor]) -> str:
    """The digest of the small model from a file of ``tensors``."""
    save_file(tensors, tmp_path / "file.safetensors")
    return weights_digest(load_transformer(tmp_path / "file.safetensors", SMALL))


@pytest.mark.parametrize(
    "facts",
    [
        SMALL,
        replace(SMALL, hidden=128, heads=4, double_blocks=2, single_blocks=3),
        replace(SMALL, guidance=False, guidance_default=None, double_blocks=11),
        replace(SMALL, single_blocks=0, hidden=32, heads=1),
    ],
    ids=["small", "wider", "deeper", "narrower"],
)
def test_every_width_and_depth_is_read(tmp_path: Path, facts: ModelFacts) -> None:
    model = random_transformer(facts, seed=5)
    save_file(original(model), tmp_path / "file.safetensors")
    read = load_transformer(tmp_path / "file.safetensors", facts)
    assert weights_digest(read) == weights_digest(model)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_prefix_is_taken_off_and_other_parts_are_left_out(
    tmp_path: Path, prefix: str, naming: str
) -> None:
    model = random_transformer(SMALL, seed=3)
    tensors = original(model) if naming == "original" else dict(model.state_dict())
    whole = {f"{prefix}{name}": value for name, value in tensors.items()}
    whole |= {"vae.decoder.conv_in.weight": torch.ones(1), "text_encoders.t5.x": torch.ones(1)}
    assert loaded(tmp_path, whole) == WANTED


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    tensors = {f"diffusion_model.{name}": value for name, value in small().items()}
    tensors["img_in.bias"] = torch.zeros(SMALL.hidden)
    with pytest.raises(UnsupportedWeights, match=r"img_in\.bias twice"):
        loaded(tmp_path, tensors)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("img_in.bias"), r"lacks 1 tensor, the first img_in\.bias$"),
        (lambda t: t.pop("guidance_in.in_layer.bias"), r"guidance_in\.in_layer\.bias$"),
        (lambda t: t.pop(QKV), rf"the first {QKV}$"),
        (lambda t: t.pop("single_blocks.0.norm.key_norm.scale"), r"key_norm\.scale$"),
        (lambda t: t.update({ADDED: torch.ones(1)}), rf"has also 1 tensor, the first {ADDED}$"),
        (lambda t: t.update({"vae.x": torch.ones(1)}), r"has also 1 tensor, the first vae\.x$"),
        (lambda t: t.update({"double_blocks.9999999.x": torch.ones(1)}), r"9999999\.x$"),
        (lambda t: t.update({QKV: t[QKV][:-1].clone()}), rf"{QKV} has 191 rows .* 64 wide$"),
        (lambda t: t.update({LINEAR1: t[LINEAR1][:64].clone()}), rf"{LINEAR1} has 64 rows"),
        (lambda t: t.update({QKV: torch.ones(())}), rf"{QKV} has 0 rows"),
    ],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(
    tmp_path: Path, change: Change, told: str
) -> None:
    tensors = small()
    change(tensors)
    with pytest.raises(IncompatibleOptions) as caught:
        loaded(tmp_path, tensors)
    assert caught.match(told.removesuffix("$") + ("; expected" if told.endswith("$") else ""))


def test_what_a_tensor_became_keeps_no_other_alive() -> None:
    made = diffusers_names(small(), what="the weights")
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in made.values())
