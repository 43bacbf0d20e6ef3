"""Laws of plain weights: scales are multiplied in, and what is packed or not finite is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fresco_trt.errors import UnsupportedWeights
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import load_transformer, random_transformer
from tests.models.flux.original_names import original

SMALL = replace(
    FLUX_TINY, name="small", hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
FP8 = torch.float8_e4m3fn
LAYERS = ("double_blocks.0.img_mlp.0", "single_blocks.0.linear1", "final_layer.linear")
FIRST = f"{LAYERS[0]}.weight"

Change = Callable[[dict[str, Tensor]], object]


def note(form: str) -> Tensor:
    """What ComfyUI's newer files say of a layer."""
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


def scaled(name: str = "scale_weight", rows: bool = False) -> dict[str, Tensor]:
    """Original names, three layers as FP8 codes with their scales under ``name``."""
    tensors = original(random_transformer(SMALL, seed=3))
    for layer in LAYERS:
        weight = tensors[f"{layer}.weight"]
        largest = weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()
        tensors[f"{layer}.{name}"] = largest / 448
        tensors[f"{layer}.weight"] = (weight / (largest / 448)).to(FP8)
    return tensors


def error(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> float:
    """The largest difference of what is read to the weights that the codes were made of."""
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "f.safetensors"
    )
    read = load_transformer(folder / "f.safetensors", SMALL, dtype=dtype)
    wanted = random_transformer(SMALL, seed=3).state_dict()
    assert {value.dtype for value in read.state_dict().values()} == {dtype}
    return max(
        float((value.float() - wanted[name]).abs().max())
        for name, value in read.state_dict().items()
    )


# --- scales -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True], ids=["tensor", "rows"])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scales_are_multiplied_in(tmp_path: Path, name: str, rows: bool) -> None:
    assert 0 < error(tmp_path, scaled(name, rows)) < 0.01


def test_the_companions_of_both_forms_are_known(tmp_path: Path) -> None:
    old = scaled() | {"scaled_fp8": torch.empty(0, dtype=FP8)}
    old |= {f"{layer}.scale_input": torch.ones(1) for layer in LAYERS}
    new = scaled("weight_scale")
    new |= {f"{layer}.comfy_quant": note("float8_e4m3fn") for layer in LAYERS}
    new |= {f"{layer}.input_scale": torch.ones(()) for layer in LAYERS}
    prefixed = {f"model.diffusion_model.{name}": value for name, value in old.items()}
    for tensors in (old, new, prefixed):
        assert 0 < error(tmp_path, tensors, torch.bfloat16) < 0.01


def test_plain_fp8_is_its_own_number(tmp_path: Path) -> None:
    tensors = {n: v.to(FP8) for n, v in original(random_transformer(SMALL, seed=3)).items()}
    assert 0 < error(tmp_path, tensors) < 0.1


def test_what_a_build_stored_as_codes_is_read_as_weights(tmp_path: Path) -> None:
    from fresco_trt.models.fp8 import Fp8Linear, RowwiseFp8Linear, exchange

    model = random_transformer(SMALL, seed=3)
    linear = model.get_submodule("proj_out")
    scale = linear.weight.abs().max() / 448
    codes = (linear.weight / scale).to(FP8)
    exchange(model, "proj_out", Fp8Linear(codes, scale, torch.ones(()), linear.bias))
    read = load_transformer(write_source(model, tmp_path), SMALL).get_parameter("proj_out.weight")
    assert torch.equal(read, codes.float() * scale)
    scales = linear.weight.abs().amax(dim=1) / 448
    codes = (linear.weight / scales[:, None]).to(FP8)
    exchange(model, "proj_out", RowwiseFp8Linear(codes, scales, linear.bias))
    read = load_transformer(write_source(model, tmp_path), SMALL).get_parameter("proj_out.weight")
    assert torch.equal(read, codes.float() * scales[:, None])


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(f"{LAYERS[1]}.scale_weight"), rf"without their scale.*{LAYERS[1]}"),
        (lambda t: t.pop(FIRST), f"scale_weight, and no {FIRST}"),
        (lambda t: t.update({f"{LAYERS[0]}.scale_weight": torch.ones(2, 4)}), r"shape \(2, 4\)"),
        (lambda t: t.update({f"{LAYERS[0]}.weight_scale": torch.ones(1)}), "two scales"),
        (lambda t: t.update({f"{LAYERS[0]}.comfy_quant": note("nvfp4")}), "format nvfp4"),
        (lambda t: t.update({"img_in.comfy_quant": note("float8_e4m3fn")}), "img_in.comfy_quant"),
        (lambda t: t.update({f"{LAYERS[0]}.weight_scale_2": torch.ones(1)}), "NVFP4"),
        (lambda t: t.update({f"{LAYERS[0]}.weight_scale_inv": torch.ones(1)}), "scale a block"),
        (lambda t: t.update({f"{FIRST}.absmax": torch.ones(1)}), rf"bitsandbytes.*{FIRST}.absmax"),
        (lambda t: t.update({f"{LAYERS[0]}.SCB": torch.ones(1)}), "bitsandbytes, 8 bits"),
        (lambda t: t.update({f"{LAYERS[0]}.qweight": torch.ones(1)}), "SVDQuant"),
        (lambda t: t.update({f"{FIRST}._data": torch.ones(1)}), "quanto"),
        (
            lambda t: t.update({FIRST: t[FIRST].view(torch.int8)}),
            f"type int8; the first are {FIRST}",
        ),
        (lambda t: t.update({FIRST: t[FIRST].view(torch.uint8)}), "type uint8"),
        (lambda t: t.update({f"{LAYERS[0]}.scale_weight": torch.tensor(torch.nan)}), "not finite"),
    ],
)
def test_another_form_is_refused_by_name(tmp_path: Path, change: Change, told: str) -> None:
    tensors = scaled()
    change(tensors)
    with pytest.raises(UnsupportedWeights, match=told) as caught:
        error(tmp_path, tensors)
    assert caught.value.exit_code == 2
    assert caught.value.fix.startswith("pass ")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_one_number_that_is_none_is_refused(tmp_path: Path, number: float, naming: str) -> None:
    model = random_transformer(SMALL, seed=3)
    tensors = original(model) if naming == "original" else dict(model.state_dict())
    tensors["img_in.bias" if naming == "original" else "x_embedder.bias"][7] = number
    with pytest.raises(UnsupportedWeights, match=r"1 tensors?, the first x_embedder\.bias"):
        error(tmp_path, tensors)


def test_what_a_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    tensors = original(random_transformer(SMALL, seed=3))
    tensors["img_in.bias"][7] = 1e5
    with pytest.raises(UnsupportedWeights, match="not finite in float16"):
        error(tmp_path, tensors, torch.float16)
