"""Laws of bounds: a part's configuration is refused before a library builds anything from it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fresco_trt.errors import FrescoError, IncompatibleOptions, WeightsNotFound
from fresco_trt.models.flux.components import FluxDecoder, FluxPrompt
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.flux.loading import transformer_from_folder
from fresco_trt.models.parts import load_tokenizer
from fresco_trt.models.weights import bundled_folder
from tests.hostile import configs
from tests.hostile.digests import replaced

TINY = bundled_folder("flux-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parts of the demo, by hard links."""
    for name in (*COMPONENTS, "transformer"):
        source, target = TINY / name, tmp_path / "own" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.link)
        else:
            os.link(source, target)
    return tmp_path / "own"


def open_parts(folder: Path) -> None:
    FluxDecoder(folder)
    FluxPrompt(folder, FLUX_TINY.text_tokens)


@pytest.mark.parametrize("attack", configs.ATTACKS.values(), ids=configs.ATTACKS)
def test_what_asks_for_too_much_or_is_none_is_refused(attack: configs.Attack, folder: Path) -> None:
    attack(folder)
    with pytest.raises(FrescoError) as opened:
        open_parts(folder)
    with pytest.raises(FrescoError) as built:
        FLUX.components.check(folder, FLUX_TINY)
    for error in (opened.value, built.value):
        assert error.exit_code == 2
        assert str(error).isprintable()
        assert len(str(error).replace(str(folder), "")) <= 500


@pytest.mark.parametrize(
    "settings",
    [
        {"num_layers": 10**6},
        {"num_attention_heads": 10**9},
        {"zoo": 1},
        {"_class_name": "ZooTransformer2DModel"},
        {"num_layers": "many"},
    ],
    ids=str,
)
def test_a_transformer_of_other_settings_is_refused(
    settings: dict[str, object], folder: Path
) -> None:
    path = folder / "transformer" / "config.json"
    replaced(path, json.dumps(json.loads(path.read_bytes()) | settings).encode())
    with pytest.raises(FrescoError) as refused:
        transformer_from_folder(path.parent)
    assert isinstance(refused.value, IncompatibleOptions) or "at most" in refused.value.expected


def test_a_tokenizer_may_be_as_large_as_that_of_llama_3_and_no_larger_than_twice(
    folder: Path,
) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    data = path.read_bytes()
    replaced(path, data.ljust(17_209_920))  # what meta-llama/Llama-3.1-8B has
    assert len(load_tokenizer(path.parent)("an apple").input_ids) > 1
    os.truncate(path, 2 * 17_209_920)
    with pytest.raises(WeightsNotFound, match=r"tokenizer\.json of tokenizer has over 33554432"):
        load_tokenizer(path.parent)
