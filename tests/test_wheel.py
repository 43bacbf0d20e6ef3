"""The wheel holds the package and what it runs with, and nothing of the repository beside it."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

LARGEST = 22_000_000
"""Bytes that people fetch to try the demo models, which ship inside."""


def test_the_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(built).stat().st_size <= LARGEST
    with ZipFile(built) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    inside = {name for name in sizes if name.startswith("fresco_trt/")}
    assert all(".dist-info/" in name for name in sizes.keys() - inside)
    for name in (
        "fresco_trt/py.typed",
        "fresco_trt/calibration/flux-tiny-kontext-edits/metadata.jsonl",
        "fresco_trt/bench/scenes/icons.json",
        "fresco_trt/bench/scenes/judge.safetensors",
        "fresco_trt/models/flux/weights/flux-tiny/model_index.json",
        "fresco_trt/models/flux/weights/flux-tiny-turbo/shares.json",
        "fresco_trt/models/flux/weights/flux-tiny-kontext/transformer/difference.safetensors",
    ):
        assert name in inside
    assert not [name for name in inside if name.split("/")[1] in ("demo", "training", "studies")]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert sum(sizes.values()) - weights < 1_000_000
