"""Laws of the shared weight file and of the eager source folder."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel

from fresco_trt.errors import OutputNotWritable
from fresco_trt.lower.weights import LINE, PAGE, weight_file, write_source
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.weights import weights_digest

SMALL = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1)


@pytest.mark.parametrize("seed", range(5))
def test_every_placed_tensor_is_read_back_and_equal_ones_share(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 63, 64, 1000, 65_535, 65_536, 100_001]) for _ in range(12)]
    different = [rng.randbytes(size) for size in sizes]
    tensors = [rng.choice(different) for _ in range(30)]
    with weight_file(tmp_path) as weights:
        places = [weights.place(data) for data in tensors]
    stored = weights.path.read_bytes()
    for data, (offset, length) in zip(tensors, places, strict=True):
        assert stored[offset : offset + length] == data
        assert offset % (PAGE if length >= 64 * 1024 else LINE) == 0
    assert len(set(places)) == len(set(tensors))
    assert len(stored) < sum(map(len, set(tensors))) + PAGE * len(set(tensors))


def test_a_new_weight_file_leaves_the_old_bytes_to_who_opened_them(tmp_path: Path) -> None:
    with weight_file(tmp_path) as weights:
        weights.place(b"old")
    with weights.path.open("rb") as reader:
        with weight_file(tmp_path) as weights:
            weights.place(b"new")
        assert reader.read() == b"old"
    assert weights.path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputNotWritable, match="file"), weight_file(tmp_path / "file"):
        pass
    with pytest.raises(OutputNotWritable):
        write_source(random_transformer(SMALL), tmp_path / "file")


def test_diffusers_loads_the_source_folder(tmp_path: Path) -> None:
    model = random_transformer(SMALL)
    folder = write_source(model, tmp_path / "transformer")
    loaded = FluxTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    assert weights_digest(loaded) == weights_digest(model)


def test_the_source_folder_depends_on_the_weights_alone(tmp_path: Path) -> None:
    first = write_source(random_transformer(SMALL), tmp_path / "first")
    second = write_source(random_transformer(SMALL).requires_grad_(True), tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
