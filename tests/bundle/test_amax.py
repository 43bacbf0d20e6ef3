"""Stored amax: the same bytes again, refused when damaged, foreign or stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fresco_trt.bundle.amax import (
    Amax,
    AmaxRecord,
    AttentionAmax,
    LayerAmax,
    check_amax,
    check_finite,
    read_amax,
)
from fresco_trt.errors import CalibrationError
from fresco_trt.plan.recipes import RECIPES

RECORD = AmaxRecord(
    model="flux-tiny",
    weights_sha256="a" * 64,
    recipe="int8",
    kept=("proj_out", "*norm*.linear"),
    prompts=2,
    prompts_sha256="b" * 64,
    seed=0,
    plan_sha256="c" * 64,
)
LAYER = LayerAmax(input=torch.tensor([1.5, 2.0]), weight=torch.tensor([0.5, 0.25, 0.0]))
SMOOTH = replace(LAYER, smooth=torch.ones(4))
RANGES = Amax(layers={"blocks.0.to_q": LAYER, "proj": SMOOTH}, record=RECORD)
ATTENTION = AttentionAmax(
    query=torch.tensor([3.0, 4.0]), key=torch.tensor([5.0, 6.0]), value=torch.tensor([7.0, 8.0])
)


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    RANGES.store(first)
    again = read_amax(first)
    again.store(second)
    assert first.read_bytes() == second.read_bytes()
    assert again.record == RECORD
    assert again.digest() == RANGES.digest()
    assert again.layers["blocks.0.to_q"].smooth is None
    assert list(tmp_path.glob("**/*.partial")) == []


def test_attention_is_stored_beside_the_layers(tmp_path: Path) -> None:
    with_attention = replace(RANGES, attention={"blocks.0.attn": ATTENTION})
    path = tmp_path / "a.safetensors"
    with_attention.store(path)
    again = read_amax(path)
    assert again.digest() == with_attention.digest() != RANGES.digest()
    assert again.layers.keys() == RANGES.layers.keys()
    assert torch.equal(again.attention["blocks.0.attn"].key, ATTENTION.key)
    told = again.to_json()["attention"]
    assert told["blocks.0.attn.value"] == [7.0, 8.0]
    assert len(told) == 3
    assert RANGES.to_json()["attention"] == {}


@pytest.mark.parametrize("lost", ["query", "key", "value"])
def test_an_attention_without_one_of_its_ranges_is_refused(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "a.safetensors"
    replace(RANGES, attention={"blocks.0.attn": ATTENTION}).store(path)
    whole, part = f"blocks.0.attn.{lost}".encode(), f"blocks.1.attn.{lost}".encode()
    path.write_bytes(path.read_bytes().replace(whole, part))
    with pytest.raises(CalibrationError, match=r"lacks a range of blocks.0.attn"):
        read_amax(path)


def test_ranges_without_attention_are_refused_where_it_is_quantised() -> None:
    asked = {
        "model": "flux-tiny",
        "weights_sha256": "a" * 64,
        "recipe": RECIPES["fp8-attention"],
        "plan_sha256": "c" * 64,
    }
    plain = replace(RANGES, record=replace(RECORD, recipe="fp8"))
    with pytest.raises(CalibrationError, match="amax of recipe fp8;") as caught:
        check_amax(plain, **asked)  # type: ignore[arg-type]
    assert caught.value.expected == "recipe fp8-attention"
    renamed = replace(RANGES, record=replace(RECORD, recipe="fp8-attention"))
    with pytest.raises(CalibrationError, match="of no attention") as caught:
        check_amax(renamed, **asked)  # type: ignore[arg-type]
    assert "query, key and value" in caught.value.expected
    assert "calibrate --measure amax" in caught.value.fix
    check_amax(replace(renamed, attention={"a.attn": ATTENTION}), **asked)  # type: ignore[arg-type]


def test_the_digest_covers_every_number_and_the_record() -> None:
    other = Amax(layers={**RANGES.layers, "proj": LAYER}, record=RECORD)
    later = replace(RANGES, record=replace(RECORD, seed=1))
    assert len({RANGES.digest(), other.digest(), later.digest()}) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "flux"}, "model flux-tiny"),
        ({"weights_sha256": "d" * 64}, "weights aaaaaaaaaaaa"),
        ({"plan_sha256": "d" * 64}, "plan cccccccccccc"),
        ({"plan_sha256": "c" * 63 + "d"}, "plan"),
        ({"recipe": RECIPES["fp8"]}, "recipe int8"),
    ],
)
def test_ranges_of_something_else_are_refused(change: dict[str, object], words: str) -> None:
    asked = {
        "model": "flux-tiny",
        "weights_sha256": "a" * 64,
        "recipe": RECIPES["int8"],
        "plan_sha256": "c" * 64,
    }
    check_amax(RANGES, **asked)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=words) as caught:
        check_amax(RANGES, **(asked | change))  # type: ignore[arg-type]
    assert "calibrate --measure amax" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_attention_of_no_magnitudes_is_refused(value: float, kind: str) -> None:
    broken = replace(ATTENTION, **{kind: torch.tensor([1.0, value])})
    with pytest.raises(CalibrationError, match=f"{kind} range of a.attn"):
        check_finite(Amax(layers={"proj": LAYER}, attention={"a.attn": broken}, record=RECORD))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["input", "weight"])
def test_ranges_that_are_no_magnitudes_are_refused(value: float, kind: str) -> None:
    broken = replace(LAYER, **{kind: torch.tensor([1.0, value])})
    with pytest.raises(CalibrationError, match=f"{kind} range of proj"):
        check_finite(Amax(layers={"proj": broken}, record=RECORD))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    RANGES.store(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CalibrationError, match="cannot be used"):
        read_amax(path)
    with pytest.raises(CalibrationError, match="cannot be used"):
        read_amax(tmp_path / "absent.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"proj.input": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CalibrationError, match="its header is not one"):
        read_amax(tmp_path / "a.safetensors")
    header_only = Amax(layers={"proj": LAYER}, record=RECORD)
    header_only.store(tmp_path / "b.safetensors")
    text = (tmp_path / "b.safetensors").read_bytes().replace(b"proj.weight", b"proj.wEight")
    (tmp_path / "b.safetensors").write_bytes(text)
    with pytest.raises(CalibrationError, match="lacks a range"):
        read_amax(tmp_path / "b.safetensors")
