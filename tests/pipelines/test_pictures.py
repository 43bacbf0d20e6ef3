"""Several prompts and several pictures a prompt: each is the picture of a call of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image

from fresco_trt.backends.eager import EagerBackend
from fresco_trt.errors import Cancelled, IncompatibleOptions, InvalidArgument, PlanError
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.models.family import PromptWarning
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.pipelines.checks import MAX_SEED
from fresco_trt.pipelines.diffusers.fit import check_engines
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.loading import load_runners
from fresco_trt.pipelines.request import GenerateRequest, seeds_of
from fresco_trt.run.sampler import Step
from fresco_trt.verify import PIXEL_TOLERANCES, verify_bundle
from tests.run.recording_device import RecordingDevice
from tests.shallow import short_turbo

APPLE, CAT = "a red apple on a plain blue background", "a cat on a striped pink background"


def built(folder: Path, target: str) -> FrescoPipeline:
    """Three stages at 64x64, eager, of random weights and a block of each kind."""
    request = BuildRequest(
        plan=short_turbo(),
        backend="eager",
        weights="random",
        blocks=(1, 1),
        target=target,
        out=folder / "bundle",
    )
    return FrescoPipeline.from_bundle(run(request).bundle.folder)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrescoPipeline]:
    """Engines of one picture at a time."""
    with built(tmp_path_factory.mktemp("one"), "") as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrescoPipeline]:
    """The same engines, two pictures at a time."""
    with built(tmp_path_factory.mktemp("pairs"), "batch=2") as opened:
        yield opened


def pixels(image: Image) -> Any:
    return np.asarray(image).astype(int)


# --- laws -------------------------------------------------------------------------------------


def test_each_picture_is_that_of_a_call_of_its_own(pipe: FrescoPipeline) -> None:
    result = pipe([APPLE, CAT], seed=[3, 9], num_images_per_prompt=2)
    assert (result.seeds, result.seed, result.runs) == ((3, 4, 9, 10), 3, (1, 1, 1, 1))
    wanted = [(APPLE, 3), (APPLE, 4), (CAT, 9), (CAT, 10)]
    for image, (prompt, seed) in zip(result.images, wanted, strict=True):
        assert (pixels(image) == pixels(pipe(prompt, seed=seed).images[0])).all()
    assert [step.run for step in result.steps] == [
        run for run in (1, 2, 3, 4) for _ in range(pipe.plan.nfe)
    ]
    assert result.nfe == pipe.plan.nfe


def test_a_batch_draws_what_single_pictures_are(
    pipe: FrescoPipeline, pairs: FrescoPipeline
) -> None:
    """To the rounding of larger products, which is what verify allows of another library."""
    asked: dict[str, Any] = {"seed": [3, 9], "num_images_per_prompt": 2}
    several, single = pairs([APPLE, CAT], **asked), pipe([APPLE, CAT], **asked)
    assert (several.runs, several.seeds) == ((2, 2), single.seeds)
    for ours, theirs in zip(several.images, single.images, strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= PIXEL_TOLERANCES["fp32"]
    assert (pixels(several.images[0]) != pixels(several.images[1])).any()


def test_neighbours_in_a_batch_change_nothing(pairs: FrescoPipeline) -> None:
    first = pairs([APPLE, CAT], seed=[3, 9]).images[0]
    for other in (pairs([APPLE, "a bell"], seed=[3, 8]), pairs(APPLE, seed=3)):
        assert (pixels(other.images[0]) == pixels(first)).all()


def test_the_last_part_of_a_batch_is_filled_and_dropped(pairs: FrescoPipeline) -> None:
    told: list[Step] = []
    previews: list[tuple[int, int]] = []
    result = pairs(
        APPLE,
        seed=3,
        num_images_per_prompt=3,
        on_step=told.append,
        on_stage=lambda stage, image: previews.append((image.info["picture"], stage)),
    )
    assert (len(result.images), result.runs, result.seeds) == (3, (2, 1), (3, 4, 5))
    assert {len(step.tokens) for step in told} == {2}
    assert [step.step for step in told] == list(range(2 * pairs.plan.nfe))
    assert previews == [(0, 1), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]


def test_who_leaves_a_batch_takes_nobody_along(pairs: FrescoPipeline) -> None:
    """Pictures of one run may belong to different callers."""
    given = pairs._pictures(GenerateRequest(prompts=(APPLE, CAT), seeds=(3, 9), guidance=3.5), None)
    previews: list[int] = []
    asked: list[int] = []

    def leave() -> bool:
        asked.append(1)
        return len(asked) == 2

    gone = replace(given[0], cancel=leave, on_stage=lambda stage, image: previews.append(stage))
    drawn = pairs.draw([gone, given[1]])
    assert drawn.images[0] is None
    assert (len(asked), previews) == (2, [])
    wanted = pairs([APPLE, CAT], seed=[3, 9]).images[1]
    assert drawn.images[1] is not None
    assert (pixels(drawn.images[1]) == pixels(wanted)).all()
    with pytest.raises(Cancelled):
        pairs.draw([replace(each, cancel=lambda: True) for each in given])


def test_verify_holds_every_picture_of_a_batch_against_its_own(pairs: FrescoPipeline) -> None:
    found = verify_bundle(pairs.bundle.folder)
    assert not found.failures
    assert {error.output for error in found.engines} == {"velocity"}


def test_a_pipeline_of_diffusers_takes_engines_of_one_picture(pairs: FrescoPipeline) -> None:
    with pytest.raises(IncompatibleOptions, match=r"batch=2 .*one picture at a time"):
        check_engines(FLUX_TINY, pairs.bundle)


def test_stages_are_replayed_for_a_whole_batch(pairs: FrescoPipeline) -> None:
    """On a scripted GPU, whose captures hold kernels."""
    device, asked = RecordingDevice(), {"seed": 3, "num_images_per_prompt": 3}
    wanted = pairs(APPLE, **asked).images  # type: ignore[arg-type]
    with ExitStack() as scope:
        runners = load_runners(pairs.bundle, EagerBackend(device=device), scope)
        replaying = pairs.with_runners(runners)
        replaying(CAT, num_images_per_prompt=3)  # two runs: one is plain, the next is captured
        device.calls.clear()
        result = replaying(APPLE, **asked)  # type: ignore[arg-type]
        replaying.close()
    assert device.calls == ["replay"] * 6
    for ours, theirs in zip(result.images, wanted, strict=True):
        assert (pixels(ours) == pixels(theirs)).all()


@pytest.mark.parametrize(
    ("seed", "prompts", "count", "seeds"),
    [
        (5, 1, 1, (5,)),
        (5, 2, 2, (5, 6, 7, 8)),
        ([7], 1, 1, (7,)),
        ([7], 1, 3, (7, 8, 9)),
        ((7, 2, 7), 1, 3, (7, 2, 7)),
        ([1, 1], 2, 2, (1, 2, 1, 2)),
        (range(4), 2, 2, (0, 1, 2, 3)),
        (np.int64(6), 1, 2, (6, 7)),
        (MAX_SEED - 1, 1, 2, (MAX_SEED - 1, MAX_SEED)),
    ],
)
def test_seeds_are_one_a_picture_or_count_on(
    seed: Any, prompts: int, count: int, seeds: tuple[int, ...]
) -> None:
    assert seeds_of(seed, prompts=prompts, count=count) == seeds


# --- what the caller sees ---------------------------------------------------------------------


def test_progress_and_previews_are_of_the_whole_call(pipe: FrescoPipeline) -> None:
    told: list[Step] = []
    previews: list[tuple[int, int]] = []

    def keep(stage: int, image: Image) -> None:
        previews.append((image.info["picture"], stage))

    pipe([APPLE, CAT], on_step=told.append, on_stage=keep)
    assert [step.step for step in told] == list(range(2 * pipe.plan.nfe))
    assert {step.steps_total for step in told} == {2 * pipe.plan.nfe}
    assert previews == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_seconds_are_of_all_pictures(pipe: FrescoPipeline) -> None:
    result = pipe(APPLE, num_images_per_prompt=2)
    seconds = result.seconds
    assert sum((seconds.text, seconds.denoise, seconds.decode)) <= seconds.total * (1 + 1e-9)
    assert seconds.engines == pytest.approx(sum(step.engine_seconds for step in result.steps))


def test_a_prompt_is_read_once_however_many_pictures_it_has(pipe: FrescoPipeline) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptWarning)
        pipe("a zeppelin", num_images_per_prompt=2)
        once = len(caught)
        pipe("a zeppelin")
    assert once == len(caught) - once == 1


def test_a_call_is_cancelled_within_its_second_picture(pipe: FrescoPipeline) -> None:
    told: list[int] = []
    with pytest.raises(Cancelled):
        pipe(
            APPLE,
            num_images_per_prompt=3,
            on_step=lambda step: told.append(step.step),
            cancel=lambda: len(told) == pipe.plan.nfe + 1,
        )
    assert told == list(range(pipe.plan.nfe + 1))


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": []}, r"prompt=\[\].*one or more in a list"),
        ({"prompt": [APPLE, 3]}, r"prompt\[1\]=3.*a text"),
        ({"prompt": 3}, r"prompt=3.*a text"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt=0; expected 1 or more"),
        ({"num_images_per_prompt": "2"}, r"num_images_per_prompt='2'.*a whole number"),
        ({"seed": [1, 2]}, r"2 seeds for 1 picture; expected 1, one for each picture\."),
        ({"prompt": [APPLE, CAT], "seed": [1]}, "1 seed for 2 pictures; expected 2, one for each"),
        (
            {"prompt": [APPLE, CAT], "num_images_per_prompt": 2, "seed": [1, 2, 3]},
            "3 seeds for 4 pictures; expected 4, one for each picture, or 2, one for each prompt",
        ),
        ({"seed": []}, "0 seeds for 1 picture"),
        ({"seed": [1, -1], "num_images_per_prompt": 2}, "seed -1"),
        ({"seed": ["1"]}, "seed='1'"),
        ({"seed": MAX_SEED, "num_images_per_prompt": 2}, f"expected .* from 0 to {MAX_SEED - 1}"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_name(
    pipe: FrescoPipeline, given: dict[str, Any], said: str
) -> None:
    with pytest.raises((InvalidArgument, PlanError), match=said):
        pipe(**{"prompt": APPLE, **given})


def test_a_request_has_a_seed_for_each_picture() -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        GenerateRequest(prompts=("a", "b"), seeds=(1,))
