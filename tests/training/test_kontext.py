"""Training of the editing demo: it begins as flux-tiny, sees its source, and can be killed."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fresco_trt.bench.scenes.edits import KINDS, random_edit
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_folder
from training import kontext
from training.assemble import read_pipeline, store_editor
from training.curriculum import TrainingPhase
from training.train import load_vae

if TYPE_CHECKING:
    from training.model import DemoModel

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

START = bundled_folder("flux-tiny")


@pytest.fixture(scope="module")
def model() -> DemoModel:
    """Untrained: flux-tiny with room for instructions."""
    return kontext.kontext_from(START).requires_grad_(False)


def shallow(model: DemoModel) -> DemoModel:
    """A copy of one block of each kind, to be trained."""
    copied = copy.deepcopy(model).requires_grad_(True)
    blocks = copied.transformer.transformer_blocks, copied.transformer.single_transformer_blocks
    for each in blocks:
        del each[1:]
    return copied


def test_it_begins_as_flux_tiny(model: DemoModel) -> None:
    known, sigma = read_pipeline(START), torch.tensor([0.7])
    latents = torch.randn(1, 4, 8, 8)
    velocities = [
        each(latents, sigma, each.encode(["a bell on a plain blue background"], 16), sigma)
        for each in (known, model)
    ]
    torch.testing.assert_close(*velocities)


def test_it_sees_the_source_and_only_draws_the_target(model: DemoModel) -> None:
    latents, sigma = torch.randn(1, 4, 8, 8), torch.tensor([0.7])
    text = model.encode(["remove the bell"], 16)
    sources = torch.randn(2, 1, 4, 8, 8).unbind()
    one, other = (model(latents, sigma, text, sigma, source) for source in sources)
    assert one.shape == other.shape == latents.shape
    assert not torch.allclose(one, other)


def test_every_instruction_is_made_of_words_that_it_knows(model: DemoModel) -> None:
    rng = random.Random(0)
    said = [random_edit(rng, kind).instruction for kind in KINDS for _ in range(20)]
    for tokenizer in (model.tokenizer, model.tokenizer_2):
        unknown = tokenizer.unk_token_id
        assert not any(unknown in ids for ids in tokenizer(said).input_ids)
        assert tokenizer.convert_tokens_to_ids("yellow") == 45  # as in flux-tiny


@pytest.mark.parametrize("coarse", [False, True])
def test_a_batch_has_the_source_beside_a_noisy_target(coarse: bool) -> None:
    edit = random_edit(random.Random(0), "replace")
    drawn = kontext.encoded([edit], load_vae(START), 32)
    batch = kontext.batch_of(drawn, coarse=coarse, length=16)
    source, target = drawn[0][1]
    if coarse:
        source, target = (
            each.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))
            for each in (source, target)
        )
    assert batch.reference is not None
    torch.testing.assert_close(batch.reference[0], source)
    clean = batch.noisy - batch.sigma.view(-1, 1, 1, 1) * batch.velocity
    torch.testing.assert_close(clean[0], target)
    assert batch.captions == [edit.instruction]


def test_what_is_stored_is_small_and_loads_as_the_model_that_was_trained(
    tmp_path: Path, model: DemoModel
) -> None:
    from diffusers import FluxKontextPipeline

    trained, folder = copy.deepcopy(model), tmp_path / "flux-tiny-kontext"
    for weight in trained.parameters():
        weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    wanted, untrained = draw(trained), draw(model)
    store_editor(trained, folder, {})
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 5_500_000
    assert not any("_name_or_path" in path.read_text() for path in folder.rglob("*.json"))
    transformer = load_transformer(str(folder), model_facts("flux-tiny"))
    pipe = FluxKontextPipeline.from_pretrained(
        folder, transformer=transformer, low_cpu_mem_usage=False
    )
    assert pipe.text_encoder.dtype == pipe.text_encoder_2.dtype == torch.float32
    for part in ("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        setattr(trained, part, getattr(pipe, part))
    assert (draw(trained) - wanted).norm() < (untrained - wanted).norm() / 3


def test_the_inputs_of_every_layer_are_seen(
    model: DemoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kontext, "SIDES", (16, 16))
    monkeypatch.setattr(kontext, "ROUNDS", 1)
    found = kontext.inputs_of(model, load_vae(START))
    matrices = {name for name, each in model.transformer.state_dict().items() if each.ndim == 2}
    assert found.keys() == matrices
    assert all(each.count % len(KINDS) == 0 for each in found.values())


def draw(model: DemoModel) -> torch.Tensor:
    """A velocity that every part has a share in."""
    latents = torch.linspace(-1, 1, 256).view(1, 4, 8, 8)
    text, sigma = model.encode(["replace the bell with a cat"], 16), torch.tensor([0.7])
    with torch.no_grad():
        return model(latents, sigma, text, sigma, latents.flip(1))


def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, model: DemoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = TrainingPhase(start=(1, 0, 0), end=(1, 0, 0), hold=0, guided=(0, 0))
    monkeypatch.setattr(kontext, "kontext_from", lambda folder: shallow(model))
    monkeypatch.setattr(kontext, "EDITING", phase)
    monkeypatch.setattr(kontext, "BATCHES", {32: 1})
    monkeypatch.setattr(kontext, "HELD_OUT", 1)
    first = kontext.train(tmp_path / "run", minutes=1e-9)
    second = kontext.train(tmp_path / "run", minutes=first.elapsed / 60 + 1e-9)
    assert (first.step, second.step) == (1, 2)
    lines = (tmp_path / "run" / "held-out.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert all(len(json.loads(line)["loss"]) == 2 for line in lines)
