"""Engine libraries that build from ONNX take one HunyuanVideo block of each kind as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.onnx_graph import check_graph
from fresco_trt.bundle.manifest import EngineRecord
from fresco_trt.lower.export import export_stages
from fresco_trt.models.hunyuan.graph import graph_from_signature
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.signatures import full_signature
from tests.models.hunyuan.small import CLIP, SMALL, inputs_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SIGNATURE = full_signature(SMALL, CLIP.tokens, SMALL.text_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A graph of one block of each kind, and what its module makes of some inputs."""

    graph: StageGraph
    inputs: dict[str, Tensor]
    velocity: Tensor


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exported once: that takes seconds."""
    folder = tmp_path_factory.mktemp("blocks")
    graph = StageGraph(
        name="stage1.full",
        signature=SIGNATURE,
        module=graph_from_signature(load_transformer("random", SMALL), SIGNATURE),
        family="hunyuan",
        onnx=None,
        weights=None,
        source=folder,
    )
    (made,) = export_stages([graph], folder)
    inputs = inputs_of(SIGNATURE, CLIP)
    with torch.no_grad():
        (velocity,) = graph.module(*inputs.values())
    return Exported(graph=made, inputs=inputs, velocity=velocity)


def test_the_exported_graph_is_one_that_a_bundle_may_have(exported: Exported) -> None:
    path = exported.graph.onnx
    assert path is not None
    check_graph(path, SIGNATURE, (path.name, "weights.bin"))
    kinds = [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]
    assert kinds.count("Softmax") == 3  # the text's own block, and one of each kind


def test_onnx_runtime_computes_what_torch_does(exported: Exported, tmp_path: Path) -> None:
    library, graph = backend("onnxruntime"), exported.graph
    files = library.build(graph, BuildOptions(folder=tmp_path))
    record = EngineRecord(name=graph.name, family="hunyuan", files=files, signature=SIGNATURE)
    with library.load(tmp_path, record) as runner:
        found = runner(exported.inputs)["velocity"]
    torch.testing.assert_close(found, exported.velocity, atol=1e-5, rtol=1e-5)


@pytest.mark.rtx
def test_a_plan_for_a_gpu_from_elsewhere_is_built(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(folder=tmp_path, targets=("sm89",))
    file, _ = backend("tensorrt-rtx").build(exported.graph, options)
    assert (tmp_path / file).read_bytes()[:4] == b"vtrt"
