"""Laws of finding weights: the right ones, or an error that says where it looked and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from fresco_trt.errors import IncompatibleOptions, WeightsNotFound
from fresco_trt.lower.weights import write_source
from fresco_trt.models import weights as weights_module
from fresco_trt.models.checkpoint import INDEX_NAME, WEIGHTS_NAME
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import (
    load_transformer,
    random_transformer,
    transformer_from_folder,
)
from fresco_trt.models.weights import weights_digest

SMALL = replace(
    FLUX_TINY, name="small", hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5
)
HUB = replace(SMALL, name="flux")


@pytest.fixture(autouse=True)
def nothing_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package ships no weights unless a test puts some there."""
    folder = tmp_path / "packaged"
    monkeypatch.setattr(weights_module, "bundled_folder", lambda model: folder / model)
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline folder with the transformer of ``SMALL``."""
    write_source(random_transformer(SMALL, seed=3), tmp_path / "pipeline" / "transformer")
    return tmp_path / "pipeline"


WANTED = weights_digest(random_transformer(SMALL, seed=3))


# --- where weights come from ------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "transformer", f"transformer/{WEIGHTS_NAME}"])
def test_every_layout_gives_the_same_weights(pipeline: Path, inner: str) -> None:
    assert weights_digest(load_transformer(pipeline / inner, SMALL)) == WANTED


def test_packaged_weights_come_before_the_hub(pipeline: Path, nothing_packaged: Path) -> None:
    nothing_packaged.mkdir()
    pipeline.rename(nothing_packaged / HUB.name)
    assert weights_digest(load_transformer(None, HUB)) == WANTED


def test_the_hub_is_asked_for_the_transformer_alone(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def snapshot(repository: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.extend([repository, *allow_patterns])
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert weights_digest(load_transformer(None, HUB)) == WANTED
    assert asked[0] == "black-forest-labs/FLUX.1-dev"
    assert all(str(pattern).startswith("transformer/") for pattern in asked[1:])
    assert f"transformer/{INDEX_NAME}" in asked


def test_a_hub_that_does_not_answer_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsNotFound) as caught:
        load_transformer(None, HUB)
    text = str(caught.value)
    for part in ("black-forest-labs/FLUX.1-dev", "packaged/flux", "--weights random"):
        assert part in text
    assert "\n" not in text


def test_a_model_without_a_repository_names_the_package_folder() -> None:
    with pytest.raises(WeightsNotFound, match="packaged/small"):
        load_transformer(None, SMALL)


def damage_absent(folder: Path) -> Path:
    return folder / "elsewhere"


def damage_empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def damage_truncated(folder: Path) -> Path:
    file = folder / "transformer" / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-7])
    return folder


def damage_no_weights(folder: Path) -> Path:
    (folder / "transformer" / WEIGHTS_NAME).unlink()
    return folder


def damage_config(folder: Path) -> Path:
    (folder / "transformer" / "config.json").write_text("{")
    return folder


def damage_config_kind(folder: Path) -> Path:
    (folder / "transformer" / "config.json").write_text("[]")
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        damage_absent,
        damage_empty,
        damage_truncated,
        damage_no_weights,
        damage_config,
        damage_config_kind,
    ],
)
def test_a_path_without_weights_names_itself(
    pipeline: Path, damage: Callable[[Path], Path]
) -> None:
    path = damage(pipeline)
    with pytest.raises(WeightsNotFound) as caught:
        load_transformer(path, SMALL)
    assert str(path) in caught.value.given
    assert "--weights random" in caught.value.fix


# --- whose weights they are -------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", f"transformer/{WEIGHTS_NAME}"])
@pytest.mark.parametrize(
    "other",
    [
        replace(SMALL, double_blocks=2),
        replace(SMALL, single_blocks=2),
        replace(SMALL, text_dim=64),
        replace(SMALL, guidance=False, guidance_default=None),
    ],
    ids=["double", "single", "text", "guidance"],
)
def test_weights_of_another_model_are_refused(pipeline: Path, inner: str, other: object) -> None:
    assert isinstance(other, type(SMALL))
    with pytest.raises(IncompatibleOptions):
        load_transformer(pipeline / inner, other)


def test_a_folder_names_each_dimension_that_differs(pipeline: Path) -> None:
    with pytest.raises(IncompatibleOptions) as caught:
        load_transformer(pipeline, replace(SMALL, double_blocks=2, text_dim=64))
    assert "num_layers 1 (the model has 2)" in caught.value.given
    assert "joint_attention_dim 128 (the model has 64)" in caught.value.given


def test_another_architecture_is_refused_by_name(pipeline: Path) -> None:
    path = pipeline / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "OtherModel"}))
    with pytest.raises(IncompatibleOptions, match="class OtherModel"):
        load_transformer(pipeline, SMALL)


# --- random weights and digests ---------------------------------------------------------------


def test_random_weights_follow_the_seed_alone() -> None:
    assert weights_digest(load_transformer("random", SMALL, seed=3)) == WANTED
    assert weights_digest(load_transformer("random", SMALL, seed=4)) != WANTED


def test_random_weights_have_the_real_dimensions_at_the_depth_asked_for() -> None:
    model = load_transformer("random", FLUX_TINY, layers=(1, 2), dtype=torch.bfloat16)
    parameters = dict(model.named_parameters())
    assert parameters["x_embedder.weight"].shape == (FLUX_TINY.hidden, FLUX_TINY.in_channels)
    assert {name.split(".")[1] for name in parameters if name.startswith("single_")} == {"0", "1"}
    assert {value.dtype for value in parameters.values()} == {torch.bfloat16}


def test_random_weights_leave_nothing_to_fold_away() -> None:
    tensors = [value for _, value in load_transformer("random", SMALL).named_parameters()]
    assert all(value.isfinite().all() and value.std() > 0 for value in tensors)
    assert len({value.numpy().tobytes() for value in tensors}) == len(tensors)


def test_a_depth_is_for_random_weights_only(pipeline: Path) -> None:
    with pytest.raises(IncompatibleOptions, match=r"1\+1"):
        load_transformer(pipeline, SMALL, layers=(1, 1))


def test_the_digest_sees_names_types_and_every_bit() -> None:
    module = torch.nn.Linear(2, 2)
    digests = [weights_digest(module)]
    with torch.no_grad():
        module.weight[1, 1].neg_()
    digests.append(weights_digest(module))
    digests.append(weights_digest(torch.nn.Sequential(module)))
    digests.append(weights_digest(module.to(torch.bfloat16)))
    assert len(set(digests)) == len(digests)


def test_a_folder_is_read_back_in_its_own_dtype(tmp_path: Path) -> None:
    model = random_transformer(SMALL, dtype=torch.bfloat16, layers=(2, 1))
    again = transformer_from_folder(write_source(model, tmp_path))
    assert weights_digest(again) == weights_digest(model)
