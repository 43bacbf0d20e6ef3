"""Weights stored as a difference: what is read is plain, and near to what was coded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from fresco_trt.errors import WeightsNotFound
from fresco_trt.lower.weights import write_source
from fresco_trt.models import difference
from fresco_trt.models.checkpoint import WEIGHTS_NAME
from fresco_trt.models.difference import DIFFERENCE_NAME, added, coded, low_rank, read_whole
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import load_transformer, random_transformer

SMALL = replace(
    FLUX_TINY, name="small", hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
BASE, OWN = (random_transformer(SMALL, seed=seed, dtype=torch.float16) for seed in (3, 4))


@pytest.fixture(params=[8, 4], ids=["8 bits", "4 bits"])
def bits(request: pytest.FixtureRequest) -> Literal[4, 8]:
    """How many a matrix's code takes."""
    found: Literal[4, 8] = request.param
    return found


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Literal[4, 8]) -> Path:
    """The transformer folder of ``OWN``, as its difference to ``BASE``, which ships."""
    monkeypatch.setattr(difference, "bundled_folder", lambda model: tmp_path / model)
    write_source(BASE, tmp_path / "base" / "transformer")
    folder = write_source(OWN, tmp_path / "own" / "transformer")
    (folder / WEIGHTS_NAME).unlink()
    save_file(coded(OWN.state_dict(), BASE.state_dict(), bits), *_file(folder))
    return folder


def _file(folder: Path, of: str = "base") -> tuple[Path, dict[str, str]]:
    return folder / DIFFERENCE_NAME, {"of": of}


@pytest.mark.parametrize("bits", [8], indirect=True)
def test_a_difference_is_read_as_plain_weights_within_half_a_step(stored: Path) -> None:
    found, codes = read_whole(stored), load_file(stored / DIFFERENCE_NAME)
    assert found.keys() == BASE.state_dict().keys()
    for name, wanted in OWN.state_dict().items():
        assert found[name].dtype == torch.float16
        step = codes.get(name + ".step", torch.zeros(()))
        error = (found[name].float() - wanted.float()).abs()
        assert (error <= step / 2 + 2e-3 * wanted.float().abs() + 2e-5).all(), name


@pytest.mark.parametrize("bits", [4], indirect=True)
def test_4_bits_keep_an_eighth_of_the_change_away(stored: Path) -> None:
    """A step of its own for each row, which need not reach to the row's largest change."""
    found, base = read_whole(stored), BASE.state_dict()
    for name, wanted in OWN.state_dict().items():
        change = (wanted.float() - base[name].float()).norm()
        assert (found[name].float() - wanted.float()).norm() <= change / 8 + 1e-3, name


def test_a_difference_takes_few_of_the_weights_bytes(stored: Path, bits: int) -> None:
    whole = sum(value.nbytes for value in OWN.state_dict().values())
    assert (stored / DIFFERENCE_NAME).stat().st_size < {8: 0.6, 4: 0.35}[bits] * whole


FACTORS = {"w": (torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[4.0], [0.25]]))}
ZERO = {"w": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(2)}


def test_factors_change_the_matrices_alone() -> None:
    found = added(ZERO, low_rank(FACTORS))
    assert found["w"].tolist() == [[5, -7, 3], [1.25, 0.5, 1.125]]
    assert found["w"].dtype == torch.bfloat16
    assert torch.equal(found["b"], ZERO["b"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"w.up": torch.ones(3, 1)}, r"w has factors of shapes \(3, 1\) and \(1, 3\)"),
        ({"w.down": torch.ones(2, 3)}, r"w has factors of shapes \(2, 1\) and \(2, 3\)"),
        ({"w.down": torch.ones(3)}, r"w has factors of shapes \(2, 1\) and \(3,\)"),
        ({"other.up": torch.ones(1)}, r"has also .*other.up"),
    ],
)
def test_factors_of_another_model_are_refused(change: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(WeightsNotFound, match=told):
        added(ZERO, low_rank(FACTORS) | change)


def test_4_bits_stand_in_pairs() -> None:
    with pytest.raises(ValueError, match="w has 3 columns"):
        coded({"w": torch.ones(2, 3)}, {"w": torch.zeros(2, 3)}, 4)
    codes = coded({"w": torch.tensor([[-7.0, 7.0, 1.0, 0.0]])}, {"w": torch.zeros(1, 4)}, 4)
    assert codes["w"].tolist() == [[0xF1, 0x89]]
    assert added({"w": torch.zeros(1, 4)}, codes)["w"].tolist() == [[-7, 7, 1, 0]]


def test_no_difference_at_all_gives_the_base(bits: Literal[4, 8]) -> None:
    base = BASE.state_dict()
    again = added(base, coded(base, base, bits))
    assert all(torch.equal(again[name], value) for name, value in base.items())


def test_the_transformer_loads_from_it(stored: Path) -> None:
    loaded = load_transformer(str(stored), SMALL, dtype=torch.float16).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in read_whole(stored).items())


def test_weights_in_full_win_over_a_difference(stored: Path) -> None:
    save_file(OWN.state_dict(), stored / WEIGHTS_NAME)
    assert all(torch.equal(v, OWN.state_dict()[k]) for k, v in read_whole(stored).items())


def of_another(folder: Path) -> None:
    save_file(load_file(folder / DIFFERENCE_NAME), *_file(folder, "nobody"))


def of_none(folder: Path) -> None:
    save_file(load_file(folder / DIFFERENCE_NAME), folder / DIFFERENCE_NAME)


def without_a_step(folder: Path) -> None:
    tensors = load_file(folder / DIFFERENCE_NAME)
    del tensors["proj_out.weight.step"]
    save_file(tensors, *_file(folder))


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / DIFFERENCE_NAME)
    tensors["proj_out.weight"] = tensors["proj_out.weight"][:, 1:].contiguous()
    save_file(tensors, *_file(folder))


def cut_short(folder: Path) -> None:
    file = folder / DIFFERENCE_NAME
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (of_another, "'nobody'"),
        (of_none, "does not say"),
        (without_a_step, r"proj_out.weight.step"),
        (of_another_shape, "proj_out.weight has shape"),
        (cut_short, "cannot be read"),
    ],
)
def test_a_wrong_difference_names_its_file(
    stored: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(stored)
    with pytest.raises(WeightsNotFound, match=told) as caught:
        load_transformer(str(stored), SMALL)
    assert str(stored / DIFFERENCE_NAME) in caught.value.given
