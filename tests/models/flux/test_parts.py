"""Laws of a pipeline's parts: exactly the tensors of their models, from their own folder alone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fresco_trt
from fresco_trt.errors import FrescoError, UnsupportedWeights, WeightsNotFound
from fresco_trt.models.flux.components import FluxDecoder, FluxPrompt
from fresco_trt.models.flux.config import COMPONENTS
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.family import FLUX
from fresco_trt.models.flux.parts import check_parts, load_codec, load_encoder
from fresco_trt.models.weights import bundled_folder
from tests.hostile import weights as hostile
from tests.hostile.digests import make_right

TINY = bundled_folder("flux-tiny")
LACKING = partial(hostile.changed_tensors, "text_encoder_2", hostile.lacking)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parts of the demo, by hard links."""
    for name in COMPONENTS:
        source, target = TINY / name, tmp_path / "own" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target, copy_function=os.link) if source.is_dir() else os.link(
            source, target
        )
    return tmp_path / "own"


def refused_by_a_build(folder: Path) -> FrescoError:
    with pytest.raises(FrescoError) as caught:
        FLUX.components.check(folder, FLUX_TINY)
    return caught.value


def refused_when_opened(folder: Path) -> FrescoError:
    with pytest.raises(FrescoError) as caught:
        opened(folder)
    return caught.value


def opened(folder: Path) -> None:
    FluxPrompt(folder, FLUX_TINY.text_tokens)
    FluxDecoder(folder)


@pytest.mark.parametrize("attack", hostile.ATTACKS.values(), ids=hostile.ATTACKS)
def test_what_is_not_the_models_own_is_refused_at_both_doors(
    folder: Path, attack: hostile.Attack, capfd: pytest.CaptureFixture[str]
) -> None:
    attack(folder)
    for error in (refused_by_a_build(folder), refused_when_opened(folder)):
        assert isinstance(error, UnsupportedWeights | WeightsNotFound)
        assert error.exit_code == 2
        assert len(str(error).splitlines()) == 1
        assert str(folder) in str(error)
    assert capfd.readouterr() == ("", "")


def test_names_count_and_shape_are_told(folder: Path) -> None:
    part = folder / "text_encoder"
    hostile.changed_tensors("text_encoder", hostile.surplus, folder)
    hostile.changed_tensors("text_encoder", hostile.misshapen, folder)
    error = refused_when_opened(folder)
    assert error.given.startswith(f"{part} has also 1 tensor, the first more.weight; has 1 tensor")
    assert re.search(r"norm1.bias, of shape \(7,\) where \(128,\) is wanted$", error.given)
    assert isinstance(error, UnsupportedWeights)


@pytest.mark.parametrize("part", hostile.PARTS)
def test_a_pipe_is_not_waited_for(folder: Path, part: str) -> None:
    hostile.piped(part, folder)
    for error in (refused_by_a_build(folder), refused_when_opened(folder)):
        assert isinstance(error, WeightsNotFound)


def older(tensors: hostile.Tensors) -> hostile.Tensors:
    """As earlier versions stored CLIP: below a name of its own, with the positions counted."""
    named = {f"text_model.{name}": value for name, value in tensors.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(32)[None]}


def whole_model(tensors: hostile.Tensors) -> hostile.Tensors:
    """As a T5 with its decoder has it, and the embeddings under both of their names."""
    other = {"decoder.final_layer_norm.weight": torch.ones(128)}
    return tensors | other | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


@pytest.mark.parametrize(
    ("part", "change"), [("text_encoder", older), ("text_encoder_2", whole_model)]
)
def test_names_that_the_class_itself_explains_are_no_error(
    folder: Path, part: str, change: Callable[[hostile.Tensors], hostile.Tensors]
) -> None:
    hostile.changed_tensors(part, change, folder)
    check_parts(folder)
    ours, theirs = load_encoder(folder / part), load_encoder(TINY / part)
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize("part", hostile.PARTS)
def test_shards_are_read_as_the_one_file_is(folder: Path, part: str) -> None:
    hostile.indexed(part, folder)
    check_parts(folder)
    ours, theirs = (
        (load_codec if part == "vae" else load_encoder)(each / part).state_dict()
        for each in (folder, TINY)
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_an_encoder_is_what_transformers_reads_from_the_folder() -> None:
    from transformers import T5EncoderModel

    theirs = T5EncoderModel.from_pretrained(TINY / "text_encoder_2", dtype=torch.float32)
    ours = load_encoder(TINY / "text_encoder_2")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids)[0], theirs.eval()(ids)[0])


def test_links_are_followed_as_in_a_hubs_cache(folder: Path, tmp_path: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.rename(tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    check_parts(folder)
    assert load_file(file)


def test_a_build_refuses_a_part_that_lacks_a_tensor_and_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    LACKING(folder)
    shutil.copytree(TINY / "transformer", folder / "transformer", copy_function=os.link)
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=2, size=(64, 64))
    with pytest.raises(WeightsNotFound, match=r"lacks 1 tensor, the first encoder\.block"):
        fresco_trt.build(plan, weights=str(folder), backend="eager", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_whose_part_lacks_a_tensor_is_refused(eager_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(eager_bundle, bundle, copy_function=os.link)
    LACKING(bundle)
    make_right(bundle)
    with pytest.raises(WeightsNotFound, match=r"lacks 1 tensor, the first encoder\.block"):
        fresco_trt.FrescoPipeline.from_bundle(bundle)


def test_what_lies_beside_the_weights_is_not_opened(folder: Path) -> None:
    # An adapter would name another model, whose weights would be read.
    text = json.dumps({"base_model_name_or_path": "/etc"})
    (folder / "text_encoder" / "adapter_config.json").write_text(text)
    os.mkfifo(folder / "text_encoder" / "generation_config.json")
    load_encoder(folder / "text_encoder")
