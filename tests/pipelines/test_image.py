"""Prompt to picture: the plain sampler at one stage, reproducible, observable, and strict."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

import fresco_trt
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import (
    BundleNotFound,
    Cancelled,
    DigestMismatch,
    EngineFailed,
    IncompatibleOptions,
    PlanError,
)
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.pipelines.checks import MAX_SEED, guidance_of
from fresco_trt.pipelines.drawing import estimate
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.loading import load_runners
from fresco_trt.plan.signature import GraphSignature
from fresco_trt.run.denoise import HeldPatchifier
from fresco_trt.run.sampler import Step
from tests.run.recording_device import RecordingDevice
from tests.shallow import short_turbo

PROMPT = "a red apple on a plain blue background"
PLAIN_SIZE, PLAIN_STEPS = 128, 4


@pytest.fixture(scope="module")
def pipe(eager_bundle: Path) -> Iterator[FrescoPipeline]:
    """Three stages at 64x64, eager."""
    with FrescoPipeline.from_bundle(eager_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def mixed(mixed_bundle: Path) -> Iterator[FrescoPipeline]:
    """Half size, two mixed stages and full size at 128x128, eager."""
    with FrescoPipeline.from_bundle(mixed_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrescoPipeline]:
    """One stage, eager: the plain sampler."""
    size = (PLAIN_SIZE, PLAIN_SIZE)
    folder = fresco_trt.build(
        fresco_trt.plan("flux-tiny", stages=1, steps=PLAIN_STEPS, size=size),
        backend="eager",
        out=tmp_path_factory.mktemp("plain") / "bundle",
    )
    with FrescoPipeline.from_bundle(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def diffusers_pipe() -> Any:
    import diffusers

    untyped: Any = diffusers
    folder = fresco_trt.pretrained("flux-tiny")
    pipe = untyped.FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(image: Image) -> Any:
    return np.asarray(image).astype(int)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_one_stage_is_diffusers_own_pipeline(
    plain: FrescoPipeline, diffusers_pipe: Any, seed: int
) -> None:
    theirs = diffusers_pipe(
        prompt=PROMPT,
        width=PLAIN_SIZE,
        height=PLAIN_SIZE,
        num_inference_steps=PLAIN_STEPS,
        guidance_scale=3.5,
        max_sequence_length=FLUX_TINY.text_tokens,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    ours = plain(PROMPT, seed=seed).images[0]
    assert ours.size == (PLAIN_SIZE, PLAIN_SIZE)
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 2


def test_a_mixed_plan_is_the_same_picture_bit_for_bit(mixed: FrescoPipeline) -> None:
    first = pixels(mixed(PROMPT, seed=4).images[0])
    assert (pixels(mixed(PROMPT, seed=4).images[0]) == first).all()
    assert (pixels(mixed(PROMPT, seed=5).images[0]) != first).any()


def test_random_refinements_are_the_seeds(
    mixed: FrescoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same engines serve any rule: only how many tokens it refines is built in."""
    ruled = pixels(mixed(PROMPT, seed=4).images[0])
    transitions = [
        replace(each, refinements=tuple(replace(one, rule="random") for one in each.refinements))
        for each in mixed.plan.transitions
    ]
    random = replace(mixed.plan, transitions=tuple(transitions))
    denoiser = replace(mixed._denoiser, plan=random)
    monkeypatch.setattr(mixed, "_denoiser", denoiser)
    first, same = (pixels(mixed(PROMPT, seed=4).images[0]) for _ in range(2))
    assert (first == same).all()
    assert (first != ruled).any()


def test_a_callers_choice_takes_the_place_of_the_rules(mixed: FrescoPipeline) -> None:
    seen: list[list[int]] = []

    def last(refinements: Any, window: Any, candidates: torch.Tensor, generator: Any) -> Any:
        count = sum(refinement.count for refinement in refinements)
        chosen = candidates.nonzero().flatten()[-count:]
        return torch.zeros_like(candidates).index_fill(0, chosen, True)

    def look(step: Step) -> None:
        if step.mixed is not None:
            seen.append(step.mixed.refined.tolist())

    mixed.with_runners(mixed.runners, choice=last)(PROMPT, on_step=look)
    tokens = mixed.plan.stages[0].grid.tokens
    assert seen[0] == list(range(tokens - mixed.plan.refined[1], tokens))
    assert seen[-1] == list(range(tokens - mixed.plan.refined[2], tokens))


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_the_same_seed_is_the_same_picture_bit_for_bit(pipe: FrescoPipeline, seed: int) -> None:
    first = pixels(pipe(PROMPT, seed=seed).images[0])
    pipe("a cat on a striped pink background", seed=5, guidance=1.0)  # nothing is kept of this one
    assert (pixels(pipe(PROMPT, seed=seed).images[0]) == first).all()


def test_seed_and_prompt_change_the_picture(pipe: FrescoPipeline) -> None:
    base = pixels(pipe(PROMPT).images[0])
    for other in (pipe(PROMPT, seed=1), pipe("a cat on a striped pink background")):
        assert (pixels(other.images[0]) != base).any()


@pytest.mark.parametrize(("asked", "seen"), [(None, 3.5), (3.5, 3.5), (0.0, 0.0), (7.25, 7.25)])
def test_engines_see_the_guidance_asked_for_or_the_models(
    pipe: FrescoPipeline, asked: float | None, seen: float
) -> None:
    with ExitStack() as scope:
        runners = {
            name: scope.enter_context(FakeRunner(runner.signature))
            for name, runner in pipe.runners.items()
        }
        pipe.with_runners(runners)(PROMPT, guidance=asked)
    calls = [call for runner in runners.values() for call in runner.calls]
    assert len(calls) == pipe.plan.nfe
    assert {call["guidance"].item() for call in calls} == {seen}


def test_every_backend_draws_the_same_picture(onnx_bundle: Path, tmp_path: Path) -> None:
    asked = BuildRequest(
        plan=short_turbo(),
        backend="eager",
        out=tmp_path / "eager",
        weights="random",
        blocks=(1, 1),
    )
    pictures = []
    for bundle in (onnx_bundle, run(asked).bundle.folder):
        with FrescoPipeline.from_bundle(bundle) as each:
            pictures.append(pixels(each(PROMPT).images[0]))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


# --- what the caller sees ---------------------------------------------------------------------


def test_the_record_of_a_run_is_the_plan(pipe: FrescoPipeline) -> None:
    result = pipe(PROMPT, seed=3, record_steps=True)
    wanted = [
        (number, sigma, action)
        for number, stage in enumerate(pipe.plan.stages, start=1)
        for sigma, action in zip(stage.sigmas[:-1], stage.actions, strict=True)
    ]
    assert [(step.stage, step.sigma, step.action) for step in result.steps] == wanted
    assert (result.seed, result.nfe) == (3, pipe.plan.nfe)
    assert [image.size for image in result.images] == [(64, 64)]


def test_seconds_are_parts_of_a_whole(pipe: FrescoPipeline) -> None:
    seconds = pipe(PROMPT).seconds
    parts = seconds.text, seconds.denoise, seconds.decode
    assert min(parts) > 0
    assert sum(parts) <= seconds.total * (1 + 1e-9)
    assert 0 < seconds.engines < seconds.denoise


def test_a_callers_time_is_not_counted_as_ours(
    pipe: FrescoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for name in ("drawing", "result"):
        monkeypatch.setattr(f"fresco_trt.pipelines.{name}.perf_counter", lambda: now[0])

    def slow(*told: object) -> None:
        now[0] += 100

    seconds = pipe(PROMPT, on_step=slow, on_stage=slow).seconds
    assert seconds.total == 100 * (pipe.plan.nfe + len(pipe.plan.stages) - 1)
    assert seconds.text == seconds.denoise == seconds.decode == 0


def test_every_step_is_told_once_and_changes_nothing(pipe: FrescoPipeline) -> None:
    told: list[Step] = []
    watched = pipe(PROMPT, on_step=told.append, on_stage=lambda stage, image: None).images[0]
    assert [step.step for step in told] == list(range(pipe.plan.nfe))
    assert {step.steps_total for step in told} == {pipe.plan.nfe}
    assert (pixels(watched) == pixels(pipe(PROMPT).images[0])).all()


def test_a_preview_comes_at_the_end_of_each_coarse_stage_at_its_size(pipe: FrescoPipeline) -> None:
    told: list[Step] = []
    previews: list[tuple[int, tuple[int, int], int]] = []

    def keep(stage: int, image: Image) -> None:
        previews.append((stage, image.size, len(told)))

    pipe(PROMPT, on_step=told.append, on_stage=keep)
    first, second, _ = (stage.steps for stage in pipe.plan.stages)
    assert previews == [(1, (16, 16), first), (2, (32, 32), first + second)]


def test_previews_of_mixed_stages_are_at_the_size_of_their_fine_grid(
    mixed: FrescoPipeline,
) -> None:
    previews: list[tuple[int, tuple[int, int]]] = []
    mixed(PROMPT, on_stage=lambda stage, image: previews.append((stage, image.size)))
    assert previews == [(1, (64, 64)), (2, (128, 128)), (3, (128, 128))]


def test_a_mixed_stages_estimate_repeats_what_is_still_coarse(mixed: FrescoPipeline) -> None:
    """And shows the rest as it is: only there do the pixels of a 2x2 block differ."""
    flat: list[torch.Tensor] = []

    def look(step: Step) -> None:
        if step.mixed is None:
            return
        shown = estimate(mixed._denoiser, step)
        grid = step.mixed.fine
        assert shown.shape == (1, FLUX_TINY.latent_channels, grid.height, grid.width)
        blocks = shown.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        is_flat = (blocks == blocks[..., :1]).all(dim=-1).all(dim=1)[0]
        families = is_flat.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
        wanted = step.mixed.candidates().reshape(step.mixed.coarse.rows, -1)
        assert torch.equal(families.all(dim=-1), wanted)
        assert not families[~wanted].any()
        flat.append(wanted)

    mixed(PROMPT, on_step=look)
    assert len(flat) == 4


def test_one_stage_has_no_previews(plain: FrescoPipeline) -> None:
    previews: list[int] = []
    plain(PROMPT, on_stage=lambda stage, image: previews.append(stage))
    assert previews == []


def test_a_caller_can_stop_and_ask_again(pipe: FrescoPipeline) -> None:
    def stop(step: Step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    before = pixels(pipe(PROMPT).images[0])
    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, on_step=stop)
    assert (pixels(pipe(PROMPT).images[0]) == before).all()


@pytest.mark.parametrize("step", [0, 3])
def test_a_request_is_cancelled_between_steps(pipe: FrescoPipeline, step: int) -> None:
    told: list[int] = []
    before = pixels(pipe(PROMPT).images[0])
    with pytest.raises(Cancelled, match="was cancelled"):
        pipe(
            PROMPT,
            on_step=lambda each: told.append(each.step),
            cancel=lambda: len(told) == step,
        )
    assert told == list(range(step))
    assert (pixels(pipe(PROMPT, cancel=lambda: False).images[0]) == before).all()


def test_a_cancelled_request_frees_what_it_held(pipe: FrescoPipeline) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def keep(step: Step) -> None:
        held.append(weakref.ref(step.tokens))

    with pytest.raises(Cancelled):
        pipe(PROMPT, on_step=keep, cancel=lambda: len(held) == 2)
    assert [each() for each in held] == [None, None]


def test_a_prompts_own_tokens_are_counted(pipe: FrescoPipeline) -> None:
    few, more = (pipe.prompt_tokens(prompt) for prompt in ("a bell", "a bell on a blue chair"))
    assert 0 < few < more <= pipe.bundle.manifest.text_tokens
    assert pipe.prompt_tokens("a bell " * 900) == pipe.bundle.manifest.text_tokens


def test_an_empty_prompt_is_a_prompt(pipe: FrescoPipeline) -> None:
    assert pipe("").images[0].size == (64, 64)


def test_a_prompt_that_is_cut_warns_and_draws(pipe: FrescoPipeline) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = pipe("a cat and " * 200).images[0]
    assert image.size == (64, 64)
    assert [each.category for each in caught] == [PromptWarning, PromptWarning]


# --- one launch a stage ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture(scope="module")
def replaying(pipe: FrescoPipeline, device: RecordingDevice) -> Iterator[FrescoPipeline]:
    """The same pipeline over engines of a scripted GPU."""
    with ExitStack() as scope:
        yield pipe.with_runners(load_runners(pipe.bundle, EagerBackend(device=device), scope))


def test_replayed_stages_show_what_single_steps_show(
    pipe: FrescoPipeline, replaying: FrescoPipeline, device: RecordingDevice
) -> None:
    def drawn(drawer: FrescoPipeline) -> tuple[Any, list[Any]]:
        previews: list[Any] = []
        result = drawer(PROMPT, seed=2, on_stage=lambda stage, image: previews.append(image))
        assert result.nfe == pipe.plan.nfe
        assert 0 < result.seconds.engines < result.seconds.denoise
        return result, [pixels(image) for image in (*previews, *result.images)]

    _, expected = drawn(pipe)
    for _ in range(3):
        device.calls.clear()
        result, shown = drawn(replaying)
        assert result.steps == ()
        assert all((a == b).all() for a, b in zip(shown, expected, strict=True))
    assert device.calls == ["replay"] * 3
    replaying.close()
    assert replaying._stages is None


def test_a_replayed_request_is_cancelled_between_stages(
    pipe: FrescoPipeline, replaying: FrescoPipeline, device: RecordingDevice
) -> None:
    expected = pixels(pipe(PROMPT, seed=2).images[0])
    for _ in range(2):
        replaying(PROMPT)
    device.calls.clear()
    with pytest.raises(Cancelled):
        replaying(PROMPT, cancel=lambda: device.calls == ["replay"])
    assert device.calls == ["replay"]
    assert (pixels(replaying(PROMPT, seed=2).images[0]) == expected).all()


def test_steps_are_recorded_where_they_are_asked_for(
    replaying: FrescoPipeline, device: RecordingDevice
) -> None:
    told: list[Step] = []
    for given in ({"record_steps": True}, {"on_step": told.append}):
        assert len(replaying(PROMPT, **given).steps) == replaying.plan.nfe  # type: ignore[arg-type]
    assert len(told) == replaying.plan.nfe


def test_a_preview_may_draw_within_a_request(
    pipe: FrescoPipeline, replaying: FrescoPipeline
) -> None:
    expected = pixels(pipe(PROMPT, seed=2).images[0])
    for _ in range(2):
        replaying(PROMPT)
    result = replaying(PROMPT, seed=2, on_stage=lambda *_: replaying("a cat", seed=8))
    assert (pixels(result.images[0]) == expected).all()


@pytest.mark.gpu
def test_on_a_gpu_every_stage_is_captured_and_draws_what_its_steps_draw(
    pipe: FrescoPipeline,
) -> None:
    for seed in (0, 1, 2):
        ours = pixels(pipe(PROMPT, seed=seed).images[0])
        assert (ours == pixels(pipe(PROMPT, seed=seed, record_steps=True).images[0])).all()
    assert pipe._stages is not None
    assert pipe._stages.is_captured


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [-1, MAX_SEED + 1, -(10**40), pytest.param(10**5000, id="5000 digits")]
)
def test_a_seed_out_of_range_is_refused(pipe: FrescoPipeline, seed: int) -> None:
    with pytest.raises(PlanError, match=f"from 0 to {MAX_SEED}") as caught:
        pipe(PROMPT, seed=seed)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("seed", [None, 1.0, "1"])
def test_a_seed_that_is_no_number_is_the_callers_mistake(pipe: FrescoPipeline, seed: Any) -> None:
    with pytest.raises(TypeError):
        pipe(PROMPT, seed=seed)


def test_a_numpy_seed_is_a_seed(pipe: FrescoPipeline) -> None:
    assert pipe(PROMPT, seed=np.int64(3)).seed == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [nan, inf, -inf, -1.0])
def test_guidance_out_of_range_is_refused(pipe: FrescoPipeline, guidance: float) -> None:
    with pytest.raises(PlanError, match=r"expected a number from 0 to 1000.*3\.5"):
        pipe(PROMPT, guidance=guidance)


def test_guidance_for_a_model_without_is_refused(pipe: FrescoPipeline) -> None:
    bare = copy.copy(pipe)
    bare._facts = replace(FLUX_TINY, guidance=False, guidance_default=None)
    with pytest.raises(IncompatibleOptions, match="this model takes none"):
        bare(PROMPT, guidance=3.5)


def test_no_bundle_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        FrescoPipeline.from_bundle(tmp_path / "none")


def test_a_damaged_bundle_is_never_loaded(
    tmp_path: Path, eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = damaged(eager_bundle, tmp_path / "bundle")
    monkeypatch.delattr("fresco_trt.pipelines.loading.load_runners")
    with pytest.raises(DigestMismatch, match=r"diffusion_pytorch_model\.safetensors"):
        FrescoPipeline.from_bundle(folder)


def damaged(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with one bit of its largest file turned."""
    import shutil

    shutil.copytree(bundle, folder)
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    return folder


def test_an_engines_failure_says_where(pipe: FrescoPipeline) -> None:
    def fail(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        raise EngineFailed("it stopped", expected="an engine that runs", fix="build again")

    broken = FakeRunner(pipe.runners["stage2.full"].signature, fail)
    first = pipe.plan.stages[0].steps + 1
    where = rf"stage 2 of 3.*step {first} of {pipe.plan.nfe}"
    with broken, pytest.raises(EngineFailed, match=where):
        pipe.with_runners({**pipe.runners, "stage2.full": broken})(PROMPT)


# --- resources --------------------------------------------------------------------------------


def test_a_closed_pipeline_has_no_engines(eager_bundle: Path) -> None:
    with FrescoPipeline.from_bundle(eager_bundle) as opened:
        runners = dict(opened.runners)
    with pytest.raises(RuntimeError, match="scope"):
        opened(PROMPT)
    for runner in runners.values():
        with pytest.raises(RuntimeError, match="scope"):
            runner({})


def test_engines_are_freed_when_the_rest_cannot_be_loaded(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []

    class Runner(FakeRunner):
        def __exit__(self, *error: Any) -> None:
            left.append("freed")
            super().__exit__(*error)

    class Library:
        native_code: Mapping[str, str] = {}

        def load(self, folder: Path, record: Any) -> Runner:
            return Runner(record.signature)

        def describe(self) -> Any:
            return SimpleNamespace(device="cpu")

    def refuse(*given: Any) -> None:
        raise EngineFailed("no device", expected="one", fix="none")

    monkeypatch.setattr("fresco_trt.backends.backend", lambda name: Library())
    monkeypatch.setattr("fresco_trt.pipelines.image.basis_of", refuse)
    with pytest.raises(EngineFailed):
        FrescoPipeline.over(open_bundle(eager_bundle))
    assert left == ["freed"] * 3


def test_other_runners_are_not_freed_with_a_pipeline(pipe: FrescoPipeline) -> None:
    other = pipe.with_runners(pipe.runners)
    other.close()
    assert pipe(PROMPT).nfe == pipe.plan.nfe


def test_tables_of_positions_are_made_once_and_are_the_patchifiers_own() -> None:
    made: list[torch.Tensor] = []

    class Counting:
        def tables(self, positions: torch.Tensor) -> Mapping[str, torch.Tensor]:
            made.append(positions)
            return patchifier.tables(positions)

    patchifier = FluxPatchifier(FLUX_TINY, 8)
    untyped: Any = Counting()
    held = HeldPatchifier(untyped, "cpu")
    some, others = torch.rand(2, 6, 3)
    for positions in (some, others, some.clone(), others):
        for name, table in patchifier.tables(positions).items():
            assert torch.equal(held.tables(positions)[name], table)
    assert len(made) == 2


def test_everything_an_engine_sees_is_on_its_device(mixed: FrescoPipeline) -> None:
    """With the meta device in place of a GPU: nothing is computed, but places are checked."""
    seen: dict[str, set[str]] = {}

    class Meta:
        def __init__(self, signature: GraphSignature) -> None:
            self.signature = signature

        def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
            for name, value in inputs.items():
                seen.setdefault(name, set()).add(value.device.type)
            return {"velocity": torch.empty_like(inputs["latents"])}

    class Reached(Exception):
        pass

    def stop(step: Step) -> None:
        if step.step + 1 == step.steps_total:
            raise Reached

    runners: Any = {name: Meta(runner.signature) for name, runner in mixed.runners.items()}
    away = FrescoPipeline(mixed.bundle, runners, "meta")
    with pytest.raises(Reached):
        away(PROMPT, on_step=stop)
    assert set(seen) == {spec.name for spec in mixed.runners["stage1.full"].signature.inputs}
    assert set.union(*seen.values()) == {"meta"}


@pytest.mark.parametrize("guidance", [1e38, 1e308, 1001.0, float("nan")])
def test_guidance_that_no_engine_can_take_is_refused_before_it_draws(guidance: float) -> None:
    with pytest.raises(PlanError, match="from 0 to 1000"):
        guidance_of(FLUX_TINY, guidance)
