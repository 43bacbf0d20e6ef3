"""What needs a GPU: engines of TensorRT against the eager module."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.lower.export import export_stages
from tests.backends.conftest import agrees

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend
    from tests.backends.conftest import Stage

pytestmark = pytest.mark.gpu

# --- engines ----------------------------------------------------------------------------------


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> Backend:
    found: Backend = backend(request.param)
    for missing in found.check():
        pytest.skip(missing.what)
    return found


def test_every_call_gives_what_the_eager_module_gives(
    library: Backend, stages: tuple[Stage, ...], folder: Path
) -> None:
    """Enqueued, captured and replayed, stages by turns, over scratch memory that they share."""
    options = BuildOptions(folder=folder)
    records = [stage.record(library.build(stage.graph, options)) for stage in stages]
    with ExitStack() as scope:
        runners = [scope.enter_context(library.load(folder, record)) for record in records]
        for call in range(4):
            for runner, stage in zip(runners, stages, strict=True):
                assert agrees(runner, stage, call)


def test_every_profile_gives_what_the_eager_module_gives(
    library: Backend, stages: tuple[Stage, ...], folder: Path, tmp_path: Path
) -> None:
    two = stages[:2]
    graph: StageGraph = replace(
        two[1].graph, name="full", profiles=tuple(stage.graph.signature for stage in two)
    )
    (exported,) = export_stages([graph], tmp_path / "graphs")
    files = library.build(exported, BuildOptions(folder=folder))
    with ExitStack() as scope:
        runners = [scope.enter_context(library.load(folder, stage.record(files))) for stage in two]
        for call in range(4):
            for runner, stage in zip(runners, two, strict=True):
                assert agrees(runner, stage, call)
