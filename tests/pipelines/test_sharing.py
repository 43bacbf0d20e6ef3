"""Pipelines that are shared: between threads, and as copies. No picture is ever another's.

On flux-tiny at 64x64, with few steps and short texts.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fresco_trt
from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.errors import BundleNotFound, IncompatibleOptions
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.run.sampler import Step
from tests.pipelines.demo import SHALLOW
from tests.shallow import shallow_pipeline

PROMPT = "a red apple on a blue background"


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one block of each kind: nothing here is about how many."""
    return shallow_pipeline(tmp_path_factory.mktemp("weights") / "shallow")


@pytest.fixture(scope="module")
def bundle(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of these weights: a step at half size, and one at full size. Read only."""
    preset = Preset(steps=(1, 1), switch=(0.7,))
    plan = plan_from_preset(model_facts(SHALLOW), preset, size=(64, 64))
    out = tmp_path_factory.mktemp("engines") / "bundle"
    return fresco_trt.build(plan, weights=str(demo_folder), backend="eager", out=out)


def drawn(pipe: Any, seed: int = 7, **given: Any) -> Any:
    """Latents: decoding them would take longer than drawing them."""
    given = {
        "height": 64,
        "width": 64,
        "max_sequence_length": 128,
        "output_type": "latent",
        **given,
    }
    return pipe(PROMPT, generator=torch.Generator().manual_seed(seed), **given).images


class Watched(BorrowedRunner):
    """Takes its time, and notes whether a second call begins within the first."""

    def __init__(self, runner: Any, overlaps: list[object]) -> None:
        super().__init__(runner)
        self.overlaps, self.inside = overlaps, 0

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.inside += 1
        if self.inside > 1:
            self.overlaps.append(self)
        time.sleep(0.005)
        outputs = super().__call__(inputs)
        self.inside -= 1
        return outputs


def in_threads(draw: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(3) as threads:
        return list(threads.map(draw, range(3)))


# --- threads ----------------------------------------------------------------------------------


def opened(bundle: Path) -> FrescoPipeline:
    """A pipeline whose pictures are its latents, as bytes."""
    ours = FrescoPipeline.from_bundle(bundle)

    def decoder(latents: Tensor) -> Any:
        return np.asarray(latents.numpy().view("uint8")[..., :3])

    ours._decoder = decoder
    return ours


def test_threads_draw_with_a_loaded_bundle_one_after_the_other(bundle: Path) -> None:
    overlaps: list[object] = []
    with opened(bundle) as whole:
        ours = whole.with_runners(
            {name: Watched(each, overlaps) for name, each in whole.runners.items()}
        )
        pictures = in_threads(lambda seed: ours(PROMPT, seed=seed).images[0].tobytes())
        assert not overlaps
        assert pictures == [whole(PROMPT, seed=seed).images[0].tobytes() for seed in range(3)]


def test_threads_draw_with_engines_one_after_the_other(pipe: Any, bundle: Path) -> None:
    fresco_trt.enable(pipe, engines=bundle)
    source, overlaps = type(pipe)._fresco_held.source, list[object]()
    source.loaded = {name: Watched(each, overlaps) for name, each in source.loaded.items()}
    pictures = in_threads(lambda seed: drawn(pipe, seed))
    assert not overlaps
    for seed, picture in enumerate(pictures):
        assert (drawn(pipe, seed) == picture).all()


def test_closing_waits_for_the_picture_that_is_drawn(bundle: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        ours = opened(bundle)
        closing: list[Any] = []

        def close(step: object) -> None:
            if not closing:
                closing.append(threads.submit(ours.close))
                time.sleep(0.02)

        ours(PROMPT, on_step=close)
        closing[0].result()
    with pytest.raises(RuntimeError, match="inside its scope only"):
        ours(PROMPT)


def test_a_callback_may_draw_with_the_same_pipeline(bundle: Path) -> None:
    with opened(bundle) as ours:
        seen: list[bytes] = []

        def keep(stage: int, picture: Any) -> None:
            seen.append(picture.tobytes())

        def disturb(step: Step) -> None:
            if step.step == 0:
                ours(PROMPT, seed=4)

        alone = ours(PROMPT, seed=3, on_stage=keep).images[0]
        again = ours(PROMPT, seed=3, on_step=disturb, on_stage=keep).images[0]
        assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
        assert again.tobytes() == alone.tobytes()


# --- copies -----------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("engines", [False, True], ids=["transformer", "engines"])
def test_a_copy_is_enabled_and_disabled_on_its_own(
    pipe: Any, bundle: Path, copied: Callable[[Any], Any], engines: bool
) -> None:
    plain = drawn(pipe, num_inference_steps=1)
    options = {"engines": bundle} if engines else {"stages": 2, "preset": "turbo"}
    fresco_trt.enable(pipe, **options)
    first = drawn(pipe)
    other = copied(pipe)
    assert (drawn(other) == first).all()
    assert (other.transformer is pipe.transformer) == (copied is copy.copy)
    fresco_trt.disable(other)
    assert (drawn(other, num_inference_steps=1) == plain).all()
    assert (drawn(pipe) == first).all()

    other = copied(pipe)
    fresco_trt.disable(pipe)
    assert (drawn(pipe, num_inference_steps=1) == plain).all()
    assert (drawn(other) == first).all()
    fresco_trt.disable(other)


def test_the_last_copy_frees_the_engines(pipe: Any, bundle: Path) -> None:
    fresco_trt.enable(pipe, engines=bundle)
    runner = type(pipe)._fresco_held.source.loaded["stage1.full"]
    other, third = copy.copy(pipe), copy.copy(pipe)
    fresco_trt.disable(pipe)
    drawn(other)
    del third
    fresco_trt.enable(other, stages=1)
    with pytest.raises(RuntimeError, match="inside its scope only"):
        runner({})


def test_a_copy_that_cannot_be_enabled_says_why(pipe: Any, bundle: Path) -> None:
    fresco_trt.enable(pipe, engines=bundle)
    copied = pipe.__reduce_ex__(4)
    make, (kind, state, asked) = copied
    with pytest.raises(BundleNotFound, match="nowhere"):
        make(kind, state, {**asked, "engines": Path("nowhere")})


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_engines_are_not_pickled(bundle: Path, copied: Callable[[Any], Any]) -> None:
    with opened(bundle) as ours:
        with pytest.raises(IncompatibleOptions, match=r"from_bundle\(.*bundle"):
            copied(ours)
        copy.copy(ours).close()
        assert ours(PROMPT).nfe == ours.plan.nfe
