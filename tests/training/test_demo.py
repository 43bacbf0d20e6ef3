"""Training of the next demo: stages share the minutes, and what was killed goes on the same."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco_trt.errors import ContentInvalid, FrescoError, IncompatibleOptions
from fresco_trt.models import difference
from fresco_trt.models.flux.loading import load_transformer
from fresco_trt.models.registry import model_facts
from tests.training.discs import Discs
from training.curriculum import Shape
from training.demo import __main__ as command
from training.demo import checkpoint, data, held_out, run, stages
from training.demo.coding import coded, decoded
from training.demo.learner import MOMENTS, Learner
from training.demo.low_rank import add_factors, factors_of
from training.demo.model import CLIP_TOKENS, Dimensions, SceneModel
from training.demo.run import DemoRun, Options, is_inner_matrix
from training.demo.speed import table_of
from training.demo.stages import FLOW, STAGES, Ledger
from training.demo.storing import MOST_BYTES, STUDENT, TEACHER, store_demo
from training.objective import flow_loss
from training.scenes.batches import SceneBatches
from training.scenes.captions import captioned
from training.scenes.scene import APART, kept_apart, random_scene
from training.vae import new_vae

TINY = Dimensions(double=1, single=1, heads=1, text=32, layers=(1, 1))
OPTIONS = Options(minutes=0.08, dimensions=TINY)
STEPS = {"codec": 1, "64px": 2, "128px": 1, "256px": 1, "guidance": 1, "turbo": 1}
"""Of a run of so many minutes in which a step takes a second."""


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """Pictures of some pixels, and a checkpoint after every step."""
    with pytest.MonkeyPatch.context() as patch:
        for group, width in (("COARSE", 16), ("MIDDLE", 24), ("FINE", 32)):
            shape = Shape(width=width, height=16, batch=2, weight=1)
            patch.setattr(stages, group, (shape,))
        patch.setattr(data, "CODEC_SIDES", (16,))
        patch.setattr(data, "CODEC_BATCHES", {16: 2})
        patch.setattr(data, "WARM", 1)
        patch.setattr(held_out, "COUNTS", {16: 2})
        patch.setattr(held_out, "CODEC_SIDE", 16)
        patch.setattr(held_out, "STUDENT_SIDE", 16)
        patch.setattr(run, "SAVE_SECONDS", 0)
        yield patch


class Killed(Exception):
    """In place of the end of a process."""


def trained(folder: Path, steps: int | None = None, **other: Any) -> DemoRun:
    """A run in which each step takes a second, killed during a step if one is given."""
    told: list[str] = []

    def seconds() -> Iterator[float]:
        for second in count():
            if steps is not None and sum(begun.ledger.steps.values()) == steps:
                raise Killed
            yield float(second)

    clock = seconds()
    begun = DemoRun(
        replace(OPTIONS, **other), Discs(), folder, report=told.append, clock=lambda: next(clock)
    )
    begun.train()
    return begun


def curve(of: DemoRun) -> list[dict[str, Any]]:
    """Lines of a run's held-out curve."""
    lines = (of.folder / checkpoint.CURVE_NAME).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def shown(small: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every batch of latents that was drawn, as its captions, noise levels and noise."""
    drawn: list[tuple[Any, ...]] = []

    def spied(*given: Any, **more: Any) -> Any:
        batch = data.batch_of(*given, **more)
        drawn.append((*batch.captions, *batch.sigma.tolist(), batch.noisy.sum().item()))
        return batch

    small.setattr(run, "batch_of", spied)
    return drawn


@pytest.fixture(scope="module")
def whole_and_shown(
    shown: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DemoRun, list[tuple[Any, ...]]]:
    """A run that nothing interrupted, and its batches."""
    shown.clear()
    return trained(tmp_path_factory.mktemp("whole")), list(shown)


@pytest.fixture
def whole(whole_and_shown: tuple[DemoRun, list[tuple[Any, ...]]]) -> DemoRun:
    """A run that nothing interrupted."""
    return whole_and_shown[0]


def test_each_stage_has_its_share_of_the_minutes() -> None:
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
    ledger = Ledger(minutes=10)
    assert sum(map(ledger.budget, STAGES)) == pytest.approx(600) == pytest.approx(ledger.left())
    for stage in STAGES:
        assert ledger.is_due(stage)
        ledger.count(stage, 0.9 * ledger.budget(stage))
        assert ledger.is_due(stage)
        ledger.count(stage, 0.1 * ledger.budget(stage) + 1e-9)
        assert not ledger.is_due(stage)
    assert ledger.progress(*FLOW) == 1
    longer = Ledger(minutes=20, seconds=ledger.seconds, steps=ledger.steps)
    assert all(map(longer.is_due, STAGES))
    assert longer.progress(*FLOW) == pytest.approx(0.5)
    assert Ledger(minutes=1e-9).is_due(STAGES[0])  # one step at least


def test_stages_run_on_from_each_other_and_say_how_good_they_are(whole: DemoRun) -> None:
    assert whole.ledger.steps == STEPS
    lines = curve(whole)
    assert [line["stage"] for line in lines] == [n for n, k in STEPS.items() for _ in range(k)]
    assert lines[0]["held_out"].keys() == {"loss", "kl", "psnr"}
    assert lines[1]["held_out"].keys() == {"16px new", "16px apart"}
    assert lines[-1]["held_out"].keys() == {"new", "apart"}


def test_a_killed_run_goes_on_with_the_same_batches_to_the_same_weights(
    whole_and_shown: tuple[DemoRun, list[tuple[Any, ...]]],
    shown: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    whole, without = whole_and_shown
    shown.clear()
    shutil.copytree(whole.folder / "vae", tmp_path / "vae")
    with pytest.raises(Killed):
        trained(tmp_path, 1)  # in the second step at 64 pixels
    (tmp_path / ".0a.partial").touch()
    again = trained(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert list(dict.fromkeys(shown)) == without
    assert len(shown) == len(without) + 1  # that of the step that was not finished
    for one, other in ((whole.teacher, again.teacher), (whole.student, again.student)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    changed = [up for _, up in factors_of(again.student.transformer).values()]
    assert any(up.any() for up in changed)


def test_a_run_that_is_over_is_only_read_until_it_has_more_minutes(
    whole: DemoRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    over = trained(folder)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, over.student.state_dict()[name]), name
    longer = trained(folder, minutes=0.12)
    assert longer.ledger.steps == {**STEPS, "64px": 3, "128px": 2, "256px": 2}
    assert curve(longer)[-2]["stage"] == "256px"
    assert [line["step"] for line in curve(longer) if line["stage"] == "turbo"] == [1, 1]
    there = longer.teacher.transformer.proj_out.weight
    assert not torch.equal(there, whole.teacher.transformer.proj_out.weight)


def test_a_checkpoint_and_what_ships_stay_small() -> None:
    with torch.device("meta"):
        model, codec = SceneModel(), new_vae()
    learner = Learner(model, is_inner_matrix)
    for optimiser, _ in learner._optimisers:
        kinds = list(MOMENTS)[:1] if optimiser is learner._optimisers[-1][0] else list(MOMENTS)[1:]
        for group in optimiser.param_groups:
            for weight in group["params"]:
                optimiser.state[weight] = {kind: torch.zeros_like(weight) for kind in kinds}
    stored = learner.settle()
    assert {name.split("/")[0] for name in stored} == {"weights", "average", *MOMENTS, "step"}
    whole_bytes = 2 * sum(p.numel() for p in model.parameters())
    codec_bytes = 2 * sum(p.numel() for p in codec.parameters())
    assert sum(value.nbytes for value in stored.values()) + codec_bytes < 54_000_000
    assert 10_000_000 < sum(p.numel() for p in model.transformer.parameters()) < 16_000_000
    assert whole_bytes + codec_bytes < MOST_BYTES[TEACHER] - 500_000
    add_factors(model.transformer)
    factors = factors_of(model.transformer).values()
    assert sum(2 * (down.numel() + up.numel()) for down, up in factors) < MOST_BYTES[STUDENT]


def test_codes_are_near_and_stay_what_they_are() -> None:
    arrays = {"w": torch.randn(80, 8, 8) * torch.logspace(-6, 2, 80).view(-1, 1, 1)}
    arrays["b"], arrays["zero"] = torch.randn(5), torch.zeros(80, 80)
    once = decoded(coded(arrays))
    largest = arrays["w"].abs().amax((1, 2), keepdim=True)
    assert bool(((once["w"] - arrays["w"]).abs() <= largest / 253).all())
    assert torch.equal(once["b"], arrays["b"])
    assert not once["zero"].any()
    torch.testing.assert_close(decoded(coded(once)), once, rtol=1e-6, atol=0)


def test_pairs_kept_apart_are_looked_at_and_never_trained(small: pytest.MonkeyPatch) -> None:
    recipe = data.training_recipe(3, "scenes")
    scenes = [each.scene for each in recipe.batch((60, 64, 64), 0)]
    assert not any(map(kept_apart, scenes))
    small.setitem(held_out.COUNTS, 16, 6)
    looked = held_out.HeldOut(Discs(), "cpu").scenes(16)
    small.setitem(held_out.COUNTS, 16, 2)
    apart = [kept_apart(each.scene) for each in looked["apart"][0]]
    assert sorted(kind for (kind,) in apart) == sorted(APART)
    assert not any(kept_apart(each.scene) for each in looked["new"][0])


def test_a_batch_is_a_quarter_new_and_the_same_whenever_it_is_drawn() -> None:
    shape, vae = Shape(width=16, height=16, batch=8, weight=1), new_vae().requires_grad_(False)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)

    def drawn(*numbers: int) -> list[list[str]]:
        batches = SceneBatches(data.training_recipe(0), Discs())
        latents = data.Latents(batches=batches, vae=vae, seed=0)
        return [[caption for caption, _ in latents.take(shape, number)] for number in numbers]

    first, second, again, third = drawn(0, 1, 1, 2)
    assert second == again  # drawn ahead by a stage that ended, and asked for by the next
    assert [third] == drawn(2)
    recipe = data.training_recipe(0)
    for number, batch in enumerate((first, second, third)):
        new = recipe.batch((2, 16, 16), number + data.WARM)
        assert batch[:2] == [each.caption for each in new]


def test_on_a_gpu_batches_are_drawn_ahead_in_order() -> None:
    for ahead in (False, True):
        with closing(run._drawn(lambda step: step * step, 3, ahead=ahead)) as drawn:
            assert list(islice(drawn, 3)) == [9, 16, 25]


def test_both_tokenizers_know_every_caption() -> None:
    model, rng = SceneModel(TINY), random.Random(0)
    said = [captioned(random_scene(rng), rng, detail=1.0).caption for _ in range(60)]
    for tokenizer in (model.tokenizer, model.tokenizer_2):
        ids = tokenizer(said).input_ids
        assert not any(tokenizer.unk_token_id in each for each in ids)
        assert max(map(len, ids)) < CLIP_TOKENS


def test_the_loss_falls_on_one_batch() -> None:
    model = SceneModel(TINY)
    drawn = [(caption, torch.randn(4, 8, 8)) for caption in ("a cat", "an owl")]
    batch = data.noised(drawn, [caption for caption, _ in drawn], 12, 0)
    learner, losses = Learner(model, is_inner_matrix), []
    for _ in range(6):
        loss = flow_loss(model, batch)
        losses.append(loss.item())
        learner.update(loss, 5e-3)
    assert losses[-1] < 0.97 * losses[0]


def test_what_is_stored_is_read_by_diffusers_and_by_the_package(
    whole: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FluxPipeline

    store_demo(whole.teacher, whole.student, whole.vae, tmp_path)
    pipe = FluxPipeline.from_pretrained(tmp_path / TEACHER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    given = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 64}
    assert pipe("a cat on a blue background", output_type="np", **given).images.shape[1:] == (
        16,
        16,
        3,
    )
    assert pipe.text_encoder.dtype == pipe.text_encoder_2.dtype == torch.float32

    facts = model_facts(
        "flux-tiny:num_layers=1,num_single_layers=1,num_attention_heads=1,"
        "joint_attention_dim=32,pooled_projection_dim=32"
    )
    teacher = load_transformer(tmp_path / TEACHER, facts).state_dict()
    for name, value in whole.teacher.transformer.state_dict().items():
        torch.testing.assert_close(teacher[name], value, atol=0, rtol=4e-3)
    monkeypatch.setattr(difference, "bundled_folder", lambda model: tmp_path / model)
    student = load_transformer(tmp_path / STUDENT, facts).state_dict()
    for name, (down, up) in factors_of(whole.student.transformer).items():
        torch.testing.assert_close(student[name], teacher[name] + up @ down, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"minutes": 0}, "--minutes 0"),
        ({"minutes": float("nan")}, "--minutes nan"),
        ({"device": "tpu"}, "--device tpu; expected one of cpu, cuda"),
        ({"drawings": Path("none.zip")}, "no drawings at none.zip"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(FrescoError, match=told) as raised:
        command.main(**{"out": tmp_path / "run", **given})
    assert raised.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(whole: DemoRun, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleOptions, match=r"--seed 5, and .* was begun with 0"):
        trained(whole.folder, seed=5)
    state = tmp_path / checkpoint.STATE_NAME
    state.write_bytes((whole.folder / checkpoint.STATE_NAME).read_bytes())
    with pytest.raises(ContentInvalid, match=r"a checkpoint of turbo, and no .*vae"):
        trained(tmp_path)
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ContentInvalid, match="is no checkpoint"):
        trained(tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    told = "where another run is training"
    with (
        checkpoint.alone(tmp_path / "run"),
        pytest.raises(IncompatibleOptions, match=told),
        checkpoint.alone(tmp_path / "run"),
    ):
        pass
    with checkpoint.alone(tmp_path / "run"):
        pass


def test_the_page_shows_what_is_stored_of_speed() -> None:
    root = Path(__file__).parents[2]
    stored = json.loads((root / "bench/results/demo-training.json").read_text("utf-8"))
    assert stored["command"] == "python -m training.demo --samples"
    assert {row["what"] for row in stored["rows"]} == {
        *("render", "codec", "flow", "guidance", "turbo")
    }
    page = (root / "docs/demo.md").read_text("utf-8")
    assert table_of(stored["rows"]) in page
    assert stored["machine"]["processor"] in page
