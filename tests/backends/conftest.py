"""Stage graphs of a two-block FLUX at three grids, exported once for all backend tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import Runner, StageGraph
from fresco_trt.lower.export import export_stages
from fresco_trt.lower.weights import WEIGHTS_FILE, write_source
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import FullGraph
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import full_signature
from fresco_trt.models.flux.tokens import position_ids, rotary_tables
from fresco_trt.plan.signature import GraphSignature
from tests.once import locked, shared_folder, traced_once

FACTS = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=6, text_dim=32
)
GRIDS = ((2, 2), (4, 4), (3, 10))


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a bundle's manifest says of an engine."""

    name: str
    files: tuple[str, ...]
    signature: GraphSignature
    family: str = "flux"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage graph and realistic inputs for it."""

    graph: StageGraph
    inputs: dict[str, Tensor]

    def record(self, files: tuple[str, ...]) -> Record:
        return Record(name=self.graph.name, files=files, signature=self.graph.signature)

    def expected(self) -> dict[str, Tensor]:
        """Outputs of the graph's own module."""
        with torch.no_grad():
            values = self.graph.module(*self.inputs.values())
        names = [spec.name for spec in self.graph.signature.outputs]
        return dict(zip(names, values, strict=True))


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, ...]:
    """One stage for each of ``GRIDS``; the last one has no feature."""
    folder = shared_folder(tmp_path_factory) / "backends"
    folder.mkdir(exist_ok=True)
    with traced_once(tmp_path_factory), locked(folder):
        return _stages(folder)


def _stages(folder: Path) -> tuple[Stage, ...]:
    model, source = random_transformer(FACTS), folder / "source"
    done = (folder / "graphs").exists()
    if not done:
        write_source(model, source)
    graphs = []
    for index, (rows, columns) in enumerate(GRIDS):
        feature = index < len(GRIDS) - 1
        graph = StageGraph(
            name=f"stage{index + 1}.full",
            signature=full_signature(FACTS, rows * columns, FACTS.text_tokens, feature=feature),
            module=FullGraph(model, feature=feature).eval(),
            onnx=None,
            weights=None,
            source=source,
            family="flux",
        )
        graphs.append(graph)
    if not done:
        export_stages(graphs, folder / "exported")
        (folder / "exported").rename(folder / "graphs")
    files = folder / "graphs"
    exported = [
        replace(graph, onnx=files / f"{graph.name}.onnx", weights=files / WEIGHTS_FILE)
        for graph in graphs
    ]
    pairs = zip(exported, GRIDS, strict=True)
    return tuple(Stage(graph=graph, inputs=inputs_of(graph, *grid)) for graph, grid in pairs)


def inputs_of(graph: StageGraph, rows: int, columns: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    specs = graph.signature.inputs
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) for spec in specs}
    cos, sin = rotary_tables(FACTS, FACTS.text_tokens, position_ids(rows, columns))
    sigma, guidance = torch.tensor([0.7]), torch.tensor([3.5])
    return inputs | {"timestep": sigma, "guidance": guidance, "rope_cos": cos, "rope_sin": sin}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty bundle folder."""
    path = tmp_path / "bundle"
    path.mkdir()
    return path


def agrees(runner: Runner, stage: Stage, call: int) -> bool:
    """Whether one more call gives what the eager module gives for inputs of this call's own."""
    inputs = stage.inputs | {"latents": stage.inputs["latents"] * (1.0 + call)}
    with torch.no_grad():
        wanted = stage.graph.module(*inputs.values())
    found = runner(inputs)
    pairs = zip(stage.graph.signature.outputs, wanted, strict=True)
    return all(
        torch.allclose(found[spec.name].cpu(), each, rtol=1e-3, atol=1e-4) for spec, each in pairs
    )
