"""Laws of graphs in bundles: what the exporter writes is taken, and nothing else of any kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import onnx
import pytest

from fresco_trt.backends.onnx_graph import OPERATORS
from fresco_trt.backends.onnxruntime import OnnxRuntimeBackend
from fresco_trt.bundle import open_bundle
from fresco_trt.errors import BundleError, ContentInvalid, EngineFailed
from fresco_trt.lower.quantize.nodes import DEQUANTIZE, QUANTIZE
from tests.hostile import graphs


@pytest.fixture
def folder(tmp_path: Path, aligned_onnx_bundle: Path) -> Path:
    """A copy of an honest bundle, to be changed."""
    copy = tmp_path / "bundle"
    shutil.copytree(aligned_onnx_bundle, copy, copy_function=os.link)
    return copy


def test_operators_are_those_that_the_exporter_and_the_quantiser_write(
    aligned_onnx_bundle: Path,
) -> None:
    paths = aligned_onnx_bundle.glob("*.onnx")
    models = [onnx.load(str(path), load_external_data=False) for path in paths]
    written = {node.op_type for model in models for node in model.graph.node}
    assert written | {QUANTIZE, DEQUANTIZE} == OPERATORS


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
