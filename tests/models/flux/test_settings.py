"""Laws of configurations: what a part computes by is there, and nothing changes what it returns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco_trt.errors import FrescoError, UnsupportedWeights, WeightsNotFound
from fresco_trt.models.flux.components import FluxDecoder, FluxPrompt
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.flux.parts import load_codec, load_encoder
from fresco_trt.models.flux.settings import ClipSettings, CodecSettings, T5Settings
from fresco_trt.models.parts import check_vocabulary, load_tokenizer
from fresco_trt.models.settings import Settings, TokenizerSettings, TokenSettings, checked
from fresco_trt.models.weights import bundled_folder
from tests.hostile import configs, weights
from tests.models.flux.stored_configs import CONFIGS, TOKENIZERS, TOKENS

TINY = bundled_folder("flux-tiny")
KINDS: Mapping[str, type[Settings]] = {
    "text_encoder": ClipSettings,
    "text_encoder_2": T5Settings,
    "vae": CodecSettings,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parts of the demo, by hard links."""
    for name in COMPONENTS:
        source, target = TINY / name, tmp_path / "own" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.link)
        else:
            os.link(source, target)
    return tmp_path / "own"


def own(part: str) -> dict[str, Any]:
    """The demo's configuration of a part."""
    found: dict[str, Any] = json.loads((TINY / part / "config.json").read_bytes())
    return found


def open_parts(folder: Path) -> None:
    FluxDecoder(folder)
    FluxPrompt(folder, FLUX_TINY.text_tokens)


def refused(part: str, told: object) -> FrescoError:
    with pytest.raises(UnsupportedWeights) as caught:
        checked(KINDS[part], told, part, fix="do this")
    error = caught.value
    assert str(error).isprintable()
    assert len(str(error)) <= 500
    assert error.fix == "do this"
    return error


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [(part, key, value) for part, key, values in configs.SETTINGS for value in values],
    ids=lambda value: str(value)[:30],
)
def test_a_setting_that_is_wrong_is_named(part: str, key: str, value: object) -> None:
    assert refused(part, own(part) | {key: value}).given.startswith(f"{part} has ")


@pytest.mark.parametrize(("part", "key"), configs.NEEDED)
def test_no_default_of_a_library_stands_in(part: str, key: str) -> None:
    told = own(part)
    del told[key]
    assert refused(part, told).given == f"{part} gives no {key}"


@pytest.mark.parametrize("part", KINDS)
def test_what_is_no_configuration_is_refused(part: str) -> None:
    for told in (None, [], "text", 7):
        refused(part, told)


@pytest.mark.parametrize(
    "attack",
    [
        configs.DOORS["tokenizer: {'model_max_length': -32}"],
        configs.DOORS["tokenizer: {'unk_token': ''}"],
        configs.DOORS["text_encoder: num_attention_heads=-4"],
        configs.DOORS["text_encoder: return_dict=False"],
        configs.DOORS["text_encoder_2: relative_attention_max_distance=-1"],
        configs.DOORS["vae: no scaling_factor"],
        *weights.RETYPED.values(),
    ],
)
def test_both_doors_refuse_it(attack: configs.Attack, folder: Path) -> None:
    attack(folder)
    with pytest.raises(UnsupportedWeights) as built:
        FLUX.components.check(folder, FLUX_TINY)
    with pytest.raises(UnsupportedWeights) as opened:
        open_parts(folder)
    for error in (built.value, opened.value):
        assert error.exit_code == 2
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("part", "name", "settings"),
    configs.TOKENS,
    ids=[str(each)[:60] for *_, each in configs.TOKENS],
)
def test_what_no_tokenizer_has_is_refused(
    part: str, name: str, settings: dict[str, Any], folder: Path
) -> None:
    configs.with_tokens(part, name, settings, folder)
    encoder = tokens_of(part.replace("tokenizer", "text_encoder"))
    with pytest.raises(FrescoError) as caught:
        check_vocabulary(load_tokenizer(folder / part), encoder, folder / part)
    assert isinstance(caught.value, UnsupportedWeights | WeightsNotFound)
    assert str(caught.value).isprintable()
    assert len(str(caught.value).replace(str(folder), "")) <= 500


@cache
def tokens_of(part: str) -> Any:
    """The demo's encoder, which is not changed."""
    return load_encoder(TINY / part)


def test_a_prompt_that_does_not_end_where_its_encoder_looks_is_refused(folder: Path) -> None:
    weights.changed_config("text_encoder/config.json", {"eos_token_id": 5}, folder)
    with pytest.raises(WeightsNotFound, match="ends no prompt with the token 5"):
        open_parts(folder)


def test_another_default_cannot_be_asked_for(folder: Path) -> None:
    weights.changed_config("vae/config.json", {"_use_default_values": ["scaling_factor"]}, folder)
    assert load_codec(folder / "vae").config.scaling_factor == own("vae")["scaling_factor"]


def test_what_has_no_meaning_here_changes_nothing(folder: Path) -> None:
    more = {
        "dtype": "float16",
        "zoo": [1],
        "hidden_size": 7,
        "problem_type": "x",
        "is_gated_act": 0,
    }
    weights.changed_config("text_encoder_2/config.json", more, folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        ours, theirs = (load_encoder(each / "text_encoder_2")(ids)[0] for each in (folder, TINY))
    assert torch.equal(ours, theirs)


# --- what is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "name"), [(part, name) for part in KINDS for name in CONFIGS])
def test_what_libraries_have_stored_is_taken(part: str, name: str) -> None:
    told = CONFIGS[name][part]
    given = checked(KINDS[part], told, part, fix="").given()
    # A number that is left out is one that every model of the kind has.
    assert given == {**given, **{key: told[key] for key in given if key in told}}


@pytest.mark.parametrize("part", KINDS)
def test_what_a_library_stores_today_is_taken(part: str, folder: Path) -> None:
    load = load_codec if part == "vae" else load_encoder
    load(folder / part).save_pretrained(folder / "again" / part)
    told = json.loads((folder / "again" / part / "config.json").read_bytes())
    assert checked(KINDS[part], told, part, fix="") == checked(KINDS[part], own(part), part, fix="")


@pytest.mark.parametrize("told", TOKENIZERS)
def test_a_tokenizer_as_libraries_have_stored_it_is_taken(told: dict[str, Any]) -> None:
    checked(TokenizerSettings, told, "tokenizer", fix="")


@pytest.mark.parametrize("told", TOKENS)
def test_special_tokens_as_libraries_have_stored_them_are_taken(told: dict[str, Any]) -> None:
    checked(TokenSettings, told, "tokenizer", fix="")


@pytest.mark.parametrize("length", [77, 512, int(1e30), 1e30, None])
def test_a_length_that_libraries_write_is_taken(folder: Path, length: float | None) -> None:
    settings = {"model_max_length": length}
    weights.changed_config("tokenizer/tokenizer_config.json", settings, folder)
    ours, theirs = (FluxPrompt(each, 16)("a red apple") for each in (folder, TINY))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "T5Tokenizer"])
def test_what_a_tokenizer_stores_today_is_taken(kind: str, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    getattr(transformers, kind)(model_max_length=77).save_pretrained(tmp_path)
    load_tokenizer(tmp_path).save_pretrained(tmp_path)  # and again, with what loading adds
    assert load_tokenizer(tmp_path).model_max_length == 77
