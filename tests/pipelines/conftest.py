"""A pipeline of diffusers and engines of its weights, for tests of what ``enable`` makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from tests.pipelines.demo import new_pipe


@pytest.fixture(scope="module")
def shared() -> Any:
    return new_pipe()


@pytest.fixture
def pipe(shared: Any) -> Iterator[Any]:
    """A pipeline that is plain before and after the test."""
    yield shared
    fresco_trt.disable(shared)


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the pipeline's own weights that draw what it draws in two steps. Read only."""
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=2, size=(64, 64))
    return fresco_trt.build(plan, backend="eager", out=tmp_path_factory.mktemp("plain") / "bundle")
