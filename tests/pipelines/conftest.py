"""A pipeline of diffusers and engines of its weights, for tests of what ``enable`` makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.models.registry import model_facts
from tests.pipelines.demo import SHALLOW, TURBO_STEPS, new_pipe


@pytest.fixture(scope="module")
def demo_folder() -> Path | None:
    """The pipeline folder: the demo's own, unless a file has another, of the model SHALLOW."""
    return None


@pytest.fixture(scope="module")
def shared(demo_folder: Path | None) -> Any:
    return new_pipe(demo_folder)


@pytest.fixture
def pipe(shared: Any) -> Iterator[Any]:
    """A pipeline that is plain before and after the test."""
    yield shared
    fresco_trt.disable(shared)


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    """Turbo in three stages takes 16 steps: fewer, for a file that is not about how many."""
    turbo: Any = model_facts("flux-tiny").presets["turbo"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(turbo, 3, replace(turbo[3], steps=TURBO_STEPS))
        yield


@pytest.fixture(scope="module")
def one_stage(demo_folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the pipeline's own weights that draw what it draws in two steps. Read only."""
    model, given = ("flux-tiny", None) if demo_folder is None else (SHALLOW, str(demo_folder))
    plan = fresco_trt.plan(model, stages=1, steps=2, size=(64, 64))
    out = tmp_path_factory.mktemp("plain") / "bundle"
    return fresco_trt.build(plan, weights=given, backend="eager", out=out)
