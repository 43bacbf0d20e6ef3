"""Laws of graphs in bundles: what the exporter writes is taken, and nothing else of any kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from torch import nn

from fresco_trt.backends.base import StageGraph
from fresco_trt.backends.onnx_graph import OPERATORS, check_graph, check_places
from fresco_trt.backends.onnxruntime import OnnxRuntimeBackend
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import BundleError, ContentInvalid, EngineFailed
from fresco_trt.lower.export import export_stages
from fresco_trt.lower.quantize.nodes import DEQUANTIZE, QUANTIZE
from fresco_trt.lower.weights import WEIGHTS_FILE
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.plan.signature import GraphSignature
from tests.hostile import graphs

pytestmark = pytest.mark.usefixtures("traced_once")

FACTS = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=6, text_dim=32
)


@pytest.fixture
def folder(tmp_path: Path, aligned_onnx_bundle: Path) -> Path:
    """A copy of an honest bundle, to be changed."""
    copy = tmp_path / "bundle"
    shutil.copytree(aligned_onnx_bundle, copy, copy_function=os.link)
    return copy


def test_operators_are_those_that_the_exporter_and_the_quantiser_write(
    aligned_onnx_bundle: Path, tmp_path: Path
) -> None:
    model = random_transformer(FACTS)
    forms = [
        full_signature(FACTS, 4, 6, feature=True, site="trunk"),
        bypass_signature(FACTS, 4, 6),
        bypass_signature(FACTS, 4, 6, site="trunk"),
    ]
    stages = [_graph(model, index, each) for index, each in enumerate(forms)]
    for graph in export_stages(stages, tmp_path):
        assert graph.onnx is not None
        check_graph(graph.onnx, graph.signature, (graph.onnx.name, WEIGHTS_FILE))
    paths = [*aligned_onnx_bundle.glob("*.onnx"), *tmp_path.glob("*.onnx")]
    models = [onnx.load(str(path), load_external_data=False) for path in paths]
    written = {node.op_type for each in models for node in each.graph.node}
    # Qwen-Image's mask: tests/models/qwen/test_builds.py.
    assert written | {QUANTIZE, DEQUANTIZE, "Clip"} == OPERATORS


def _graph(model: nn.Module, index: int, signature: GraphSignature) -> StageGraph:
    return StageGraph(
        name=f"form{index}",
        signature=signature,
        module=graph_from_signature(model, signature),
        onnx=None,
        weights=None,
        source=Path(),
        family="flux",
    )


@pytest.mark.parametrize("make", graphs.MAKERS, ids=lambda make: make.__name__)
def test_a_graph_of_another_kind_is_refused(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    bundle = open_bundle(folder)  # its digests are right
    record = bundle.manifest.engines[0]
    with pytest.raises((ContentInvalid, EngineFailed)) as raised, ExitStack() as scope:
        scope.enter_context(OnnxRuntimeBackend(threads=1).load(bundle.folder, record))
    # Only a shape that is said wrongly is found by the library, as it loads the graph.
    assert isinstance(raised.value, EngineFailed if make is graphs.understated else BundleError)
    said = str(raised.value)
    assert said.isprintable()
    assert len(said) <= 500
    assert "build" in raised.value.fix


@pytest.mark.parametrize("place", ["../secret", "/dev/zero", "other"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_captured_graph_reads_no_file_but_its_own(tmp_path: Path, place: str, deep: bool) -> None:
    """Of any operators, and with graphs within: ``deep``, the constant is a branch's."""
    path = tmp_path / "graph.onnx"
    path.write_bytes(_reading("weights", deep=deep))
    check_places(path, ("graph.onnx", "weights"))
    path.write_bytes(_reading(place, deep=deep))
    with pytest.raises(ContentInvalid, match=f"constant 'w' in '{place}'"):
        check_places(path, ("graph.onnx", "weights"))


def _reading(place: str, *, deep: bool) -> bytes:
    """A graph that gives a constant from the file ``place``."""
    helper, kind = onnx.helper, onnx.TensorProto
    constant = kind(name="w", data_type=kind.FLOAT, dims=[4], data_location=kind.EXTERNAL)
    for key, value in {"location": place, "offset": "0", "length": "16"}.items():
        constant.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("y", kind.FLOAT, [4])
    nodes, inputs = [helper.make_node("Constant", [], ["y"], value=constant)], []
    if deep:
        branch = helper.make_graph(nodes, "branch", [], [output])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        inputs = [helper.make_tensor_value_info("c", kind.BOOL, [])]
    graph = helper.make_graph(nodes, "graph", inputs, [output])
    return helper.make_model(graph).SerializeToString()
