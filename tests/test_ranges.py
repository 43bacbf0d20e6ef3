"""Stored ranges: the same bytes again, refused when damaged, foreign or stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fresco_trt.errors import CalibrationError
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.ranges import (
    LayerRange,
    Ranges,
    RangesRecord,
    check_finite,
    check_ranges,
    read_ranges,
)

RECORD = RangesRecord(
    model="flux-tiny",
    weights_sha256="a" * 64,
    recipe="int8",
    kept=("proj_out", "*norm*.linear"),
    prompts=2,
    prompts_sha256="b" * 64,
    seed=0,
    plan_sha256="c" * 64,
)
LAYER = LayerRange(input=torch.tensor([1.5, 2.0]), weight=torch.tensor([0.5, 0.25, 0.0]))
SMOOTH = replace(LAYER, smooth=torch.ones(4))
RANGES = Ranges(layers={"blocks.0.to_q": LAYER, "proj": SMOOTH}, record=RECORD)


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    RANGES.store(first)
    again = read_ranges(first)
    again.store(second)
    assert first.read_bytes() == second.read_bytes()
    assert again.record == RECORD
    assert again.digest() == RANGES.digest()
    assert again.layers["blocks.0.to_q"].smooth is None
    assert list(tmp_path.glob("**/*.partial")) == []


def test_the_digest_covers_every_number_and_the_record() -> None:
    other = Ranges(layers={**RANGES.layers, "proj": LAYER}, record=RECORD)
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
    check_ranges(RANGES, **asked)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=words) as caught:
        check_ranges(RANGES, **(asked | change))  # type: ignore[arg-type]
    assert "calibrate --measure ranges" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("kind", ["input", "weight"])
def test_ranges_that_are_no_magnitudes_are_refused(value: float, kind: str) -> None:
    broken = replace(LAYER, **{kind: torch.tensor([1.0, value])})
    with pytest.raises(CalibrationError, match=f"{kind} range of proj"):
        check_finite(Ranges(layers={"proj": broken}, record=RECORD))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    RANGES.store(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CalibrationError, match="cannot be used"):
        read_ranges(path)
    with pytest.raises(CalibrationError, match="cannot be used"):
        read_ranges(tmp_path / "absent.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"proj.input": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CalibrationError, match="its header is not one"):
        read_ranges(tmp_path / "a.safetensors")
    header_only = Ranges(layers={"proj": LAYER}, record=RECORD)
    header_only.store(tmp_path / "b.safetensors")
    text = (tmp_path / "b.safetensors").read_bytes().replace(b"proj.weight", b"proj.wEight")
    (tmp_path / "b.safetensors").write_bytes(text)
    with pytest.raises(CalibrationError, match="lacks a range"):
        read_ranges(tmp_path / "b.safetensors")
