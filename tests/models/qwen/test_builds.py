"""Engine libraries that build from ONNX take a Qwen-Image-Edit block as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.onnx_graph import check_graph
from fresco_trt.bundle.manifest import EngineRecord
from fresco_trt.lower.export import export_stages
from fresco_trt.models.qwen.graph import graph_from_signature
from fresco_trt.models.qwen.loading import load_transformer
from fresco_trt.models.qwen.signatures import full_signature
from fresco_trt.plan.grid import Grid
from tests.models.qwen.small import EDIT_2511, inputs_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FACTS = replace(EDIT_2511, double_blocks=1)
GRID = Grid(height=6, width=10, scale=1.0)
SIGNATURE = full_signature(FACTS, GRID.tokens, 7, references=GRID.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A graph of one block, exported, and what its module makes of some inputs."""

    graph: StageGraph
    inputs: dict[str, Tensor]
    velocity: Tensor


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Block:
    """Exported once: that takes seconds."""
    folder = tmp_path_factory.mktemp("block")
    model = load_transformer("random", FACTS)
    graph = StageGraph(
        name="stage1.full",
        signature=SIGNATURE,
        module=graph_from_signature(model, SIGNATURE),
        family="qwen",
        onnx=None,
        weights=None,
        source=folder,
    )
    (exported,) = export_stages([graph], folder)
    inputs = inputs_of(FACTS, SIGNATURE, GRID)
    with torch.no_grad():
        (velocity,) = graph.module(*inputs.values())
    return Block(graph=exported, inputs=inputs, velocity=velocity)


def test_the_exported_graph_is_one_that_a_bundle_may_have(block: Block) -> None:
    path = block.graph.onnx
    assert path is not None
    check_graph(path, SIGNATURE, (path.name, "weights.bin"))
    kinds = [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]
    assert kinds.count("Clip") == kinds.count("Softmax") == 1


def test_onnx_runtime_computes_what_torch_does(block: Block, tmp_path: Path) -> None:
    library, graph = backend("onnxruntime"), block.graph
    files = library.build(graph, BuildOptions(folder=tmp_path))
    record = EngineRecord(name=graph.name, family="qwen", files=files, signature=SIGNATURE)
    with library.load(tmp_path, record) as runner:
        found = runner(block.inputs)["velocity"]
    torch.testing.assert_close(found, block.velocity, atol=1e-5, rtol=1e-5)


@pytest.mark.rtx
def test_a_plan_for_a_gpu_from_elsewhere_is_built(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(folder=tmp_path, targets=("sm89",))
    file, _ = backend("tensorrt-rtx").build(block.graph, options)
    assert (tmp_path / file).read_bytes()[:4] == b"vtrt"
