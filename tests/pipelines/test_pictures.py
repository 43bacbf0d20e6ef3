"""Several prompts and several pictures a prompt: each is the picture of a call of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image

from fresco_trt.errors import Cancelled, InvalidArgument, PlanError
from fresco_trt.models.family import PromptWarning
from fresco_trt.pipelines.checks import MAX_SEED
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.request import GenerateRequest, seeds_of
from fresco_trt.run.sampler import Step

APPLE, CAT = "a red apple on a plain blue background", "a cat on a striped pink background"


@pytest.fixture(scope="module")
def pipe(eager_bundle: Path) -> Iterator[FrescoPipeline]:
    """Three stages at 64x64, eager, one picture at a time."""
    with FrescoPipeline.from_bundle(eager_bundle) as opened:
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


def test_pictures_of_a_mixed_plan_choose_their_own_tokens(mixed_bundle: Path) -> None:
    with FrescoPipeline.from_bundle(mixed_bundle) as pipe:
        several = pipe(APPLE, seed=4, num_images_per_prompt=2).images
        alone = pipe(APPLE, seed=5).images[0]
    assert (pixels(several[1]) == pixels(alone)).all()
    assert (pixels(several[0]) != pixels(alone)).any()


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
