"""Training: it learns, it resumes where it was killed, and guidance becomes an input."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from fresco_trt.bench.scenes.pictures import pictures_of, scene_stream
from fresco_trt.models.weights import bundled_folder, components_folder
from training import curriculum, objective, train
from training.assemble import read_pipeline, read_student, store_pipeline, store_student
from training.batches import Renders
from training.model import DemoModel
from training.optim import orthogonal_from, warm_cosine
from training.vae import codec_loss, new_vae

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

TINY = (curriculum.Shape(width=32, height=32, batch=4, weight=1.0),)


@pytest.fixture
def vae() -> object:
    codec = new_vae().eval().requires_grad_(False)
    codec.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    return codec


def draws(vae: object, seed: int = 0) -> curriculum.Curriculum:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    return curriculum.Curriculum(
        phase=curriculum.BASE,
        renders=Renders(scene_stream(seed)),
        vae=vae,  # type: ignore[arg-type]
        rng=rng,
    )


def batch_of(vae: object, seed: int = 0) -> curriculum.Batch:
    return draws(vae, seed).draw(0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ("COARSE", "MIDDLE", "FINE"):
        monkeypatch.setattr(curriculum, group, TINY)


def test_a_batch_lies_on_the_straight_path_to_its_noise(vae: object) -> None:
    batch = batch_of(vae)
    sigma = batch.sigma.view(-1, 1, 1, 1)
    clean = batch.noisy - sigma * batch.velocity
    noise = batch.noisy + (1 - sigma) * batch.velocity
    torch.testing.assert_close((1 - sigma) * clean + sigma * noise, batch.noisy)


def test_noise_levels_rise_with_resolution() -> None:
    torch.manual_seed(0)
    means = [curriculum.noise_levels(4000, tokens).mean() for tokens in (64, 256, 1024)]
    assert means[0] < means[1] < means[2]


def test_the_loss_falls_on_one_batch(vae: object, tmp_path: Path) -> None:
    model = DemoModel(guidance=False)
    run = train.Run("base", model, curriculum.BASE, tmp_path, minutes=60)
    batch, losses = batch_of(vae), []
    for _ in range(12):
        loss = run.loss(batch, random.Random(0))
        losses.append(loss.item())
        run.update(loss, 0.0)
        run.step += 40  # past the warm-up
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_continues_from_its_checkpoint(vae: object, tmp_path: Path) -> None:
    run = train.Run("base", DemoModel(guidance=False), curriculum.BASE, tmp_path, minutes=60)
    run.update(run.loss(batch_of(vae), random.Random(0)), 7.0)
    run.save()
    again = train.Run("base", DemoModel(guidance=False, seed=9), curriculum.BASE, tmp_path, 60)
    assert (again.step, again.elapsed) == (1, 7.0)
    for one, two in ((run, again),) * 2:
        one.update(one.loss(batch_of(vae, 1), random.Random(0)), 1.0)
        two.update(two.loss(batch_of(vae, 1), random.Random(0)), 1.0)
    for (name, a), b in zip(
        run.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name)
    assert not list(tmp_path.glob("*.partial"))


def test_a_replayed_scene_keeps_its_caption_and_gets_new_noise(vae: object) -> None:
    drawn = draws(vae)
    shape = TINY[0]
    for _ in range(12):
        drawn.draw(0.0)
    pool = drawn.replayed[shape]
    batch = drawn._latents(shape)
    fresh = 1
    assert len(batch) == shape.batch
    assert [c for c, _ in batch[:fresh]] == [pool[-1][0]]
    kept = {id(latents): caption for caption, latents in pool}
    assert all(kept[id(latents)] == caption for caption, latents in batch[fresh:])
    assert len(pool) == 8 * shape.batch + 12 - 8 + fresh


def test_a_larger_scale_makes_larger_batches(vae: object) -> None:
    drawn = dataclasses.replace(draws(vae), scale=3)
    assert len(drawn.draw(0.0).captions) == 3 * TINY[0].batch


def test_scenes_rendered_ahead_are_those_of_the_stream_with_their_own_pictures() -> None:
    with Renders(scene_stream(5), workers=1) as renders:
        taken = [renders.take(3, 32, 32) for _ in range(2)]
    stream = scene_stream(5)
    for scenes, pictures in taken:
        assert scenes == [next(stream) for _ in range(3)]
        assert torch.equal(pictures, pictures_of(scenes, 32))


def stirred(guidance: bool) -> DemoModel:
    model = DemoModel(guidance=guidance)
    for weight in model.transformer.proj_out.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model


def test_a_guided_model_starts_as_its_base(vae: object) -> None:
    base = stirred(guidance=False)
    guided = train.guided_from(base)
    batch = batch_of(vae)
    text = base.encode(batch.captions, batch.text_length)
    scale = torch.full((len(batch.captions),), 3.5)
    told = base(batch.noisy, batch.sigma, text)
    torch.testing.assert_close(guided(batch.noisy, batch.sigma, text, scale), told)


def test_the_guided_loss_vanishes_at_the_guided_velocity(vae: object) -> None:
    """A model that answers u + s (c - u), with c the truth, has nothing left to learn."""
    batch = batch_of(vae)
    batch = dataclasses.replace(batch, captions=["a star on a plain red background"] * 4)
    unguided = torch.randn_like(batch.velocity)

    class Oracle:
        def encode(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
            named = torch.tensor([[float(bool(caption))] for caption in captions])
            return named, named.view(-1, 1, 1).expand(-1, length, 1)

        def __call__(
            self,
            noisy: torch.Tensor,
            sigma: torch.Tensor,
            text: tuple[torch.Tensor, torch.Tensor],
            scale: torch.Tensor,
        ) -> torch.Tensor:
            assert {len(part) for part in text} == {len(noisy)}
            if not text[0].any():
                assert (scale == 1).all()
                return unguided
            return unguided + scale.view(-1, 1, 1, 1) * (batch.velocity - unguided)

    loss = objective.guided_loss(Oracle(), batch, random.Random(0))  # type: ignore[arg-type]
    assert loss.item() < 1e-10


def test_a_stored_pipeline_is_read_back_for_more_training(vae: object, tmp_path: Path) -> None:
    model = stirred(guidance=True)
    scale, batch = torch.full((4,), 3.5), batch_of(vae)
    before = model(batch.noisy, batch.sigma, model.encode(batch.captions, 20), scale)
    store_pipeline(model, vae, tmp_path / "stored")  # type: ignore[arg-type]
    again = read_pipeline(tmp_path / "stored")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    after = again(batch.noisy, batch.sigma, again.encode(batch.captions, 20), scale)
    torch.testing.assert_close(after, before, atol=0.02, rtol=0.02)
    configs = (tmp_path / "stored").glob("*/config.json")
    assert not [path for path in configs if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_a_run_ends_with_its_budget_and_a_checkpoint(vae: object, tmp_path: Path) -> None:
    run = train.Run("base", DemoModel(guidance=False), curriculum.BASE, tmp_path, minutes=0.01)
    before = run.model.transformer.proj_out.weight.clone()
    train.train(run, vae, 0, train.Means(scale=2))  # type: ignore[arg-type]
    assert run.progress == 1
    assert not torch.equal(run.model.transformer.proj_out.weight, before)
    assert torch.load(run.path, weights_only=True)["step"] == run.step


def test_training_on_brings_the_codec_along(
    vae: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, work = tmp_path / "stored", tmp_path / "work"
    store_pipeline(stirred(guidance=True), vae, stored)  # type: ignore[arg-type]
    begun: list[train.Run] = []
    monkeypatch.setattr(train, "train", lambda run, *_: begun.append(run))
    train.guided(work, start=stored)
    assert begun[0].model.transformer.config.guidance_embeds
    codec, known = train.load_vae(work), train.load_vae(stored)
    for name, weight in known.state_dict().items():
        torch.testing.assert_close(codec.state_dict()[name], weight, msg=name)
    assert {p.dtype for p in codec.parameters()} == {torch.float32}


TEACHER, STUDENT = bundled_folder("flux-tiny"), bundled_folder("flux-tiny-turbo")


def test_a_student_is_stored_as_its_transformer_and_read_back(tmp_path: Path) -> None:
    student = read_pipeline(TEACHER)
    torch.nn.init.normal_(student.transformer.proj_out.weight, std=0.1)
    told = {name: value.clone() for name, value in student.transformer.state_dict().items()}
    out = tmp_path / "student"
    store_student(student, out)
    shipped = STUDENT
    stored, kept = (
        {str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (out, shipped)
    )
    assert stored == kept
    assert components_folder(out) == TEACHER
    again = read_student(out, TEACHER)
    teacher = read_pipeline(TEACHER)
    for name, value in again.transformer.state_dict().items():
        change = told[name] - teacher.transformer.state_dict()[name]
        assert (value - told[name]).norm() <= change.norm() / 8, name
    known = teacher.text_encoder.state_dict()
    for name, value in again.text_encoder.state_dict().items():
        assert torch.equal(value, known[name])


def test_a_student_that_learnt_from_another_text_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text_encoder of the student is not that of flux-tiny"):
        store_student(stirred(guidance=True), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_checkpoint_of_distilling_is_exported_as_a_student(tmp_path: Path) -> None:
    model = read_pipeline(TEACHER)
    torch.save({"average": model.state_dict()}, tmp_path / "turbo.pt")
    train.export(tmp_path, tmp_path / "out", checkpoint="turbo")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transformer", "shares.json"}


@pytest.mark.parametrize(
    "folder", [None, bundled_folder("flux-tiny-turbo")], ids=["teacher", "student"]
)
def test_distilling_starts_from_the_teacher_or_goes_on_from_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path | None
) -> None:
    begun: list[train.Run] = []
    monkeypatch.setattr(train, "train", lambda run, *_: begun.append(run))
    train.turbo(tmp_path, start=TEACHER, student=folder)
    model, teacher = begun[0].model, begun[0].teacher
    assert teacher is not None
    wanted = read_student(folder or TEACHER, TEACHER)
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted.state_dict()[name]), name
    same = torch.equal(model.transformer.proj_out.weight, teacher.transformer.proj_out.weight)
    assert same == (folder is None)
    assert {part.split(".")[0] for part, p in model.named_parameters() if p.requires_grad} == {
        "transformer"
    }


def test_empty_captions_are_trained_at_scale_one() -> None:
    scales = objective.guidance_scales(["", "a star", ""] * 50, random.Random(0))
    assert (scales[0::3] == 1).all()
    assert (scales[2::3] == 1).all()
    assert scales[1::3].min() >= 1
    assert 5 < scales[1::3].max() <= objective.LARGEST_SCALE


def test_fast_precision_is_close_to_float32_and_leaves_no_trace(vae: object) -> None:
    model, batch = stirred(guidance=False), batch_of(vae)
    attention = torch.nn.functional.scaled_dot_product_attention
    exact = objective.flow_loss(model, batch)
    with objective.fast_precision("cpu"):
        close = objective.flow_loss(model, batch)
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert close.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_phase_moves_from_its_first_shares_to_its_last() -> None:
    phase = curriculum.BASE
    assert phase.shares(0.0) == phase.shares(phase.hold) == phase.start
    assert phase.shares(1.0) == pytest.approx(phase.end)


def test_orthogonalised_steps_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal_from(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_the_rate_warms_up_and_ends_at_its_floor() -> None:
    rates = [warm_cosine(step, 1000, 100) for step in range(1000)]
    assert rates[99] == max(rates) == pytest.approx(1.0)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert warm_cosine(1000, 1000, 100) == pytest.approx(0.05)


def test_the_codec_is_trained_to_survive_halving() -> None:
    vae = new_vae()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    loss, parts = codec_loss(vae, pictures)
    assert loss.item() > 0.5 * parts["coarse"]
