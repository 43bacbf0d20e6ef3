"""Real TensorRT for RTX builds: the library compiles for a GPU that this machine need not have."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.errors import BuildError, EnvironmentMismatch
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.lower.export import export_stages
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.layers import graph_parameters, with_blocks
from fresco_trt.models.flux.signatures import full_signature, stage_signature
from fresco_trt.run.sampler import engine_name

if TYPE_CHECKING:
    from tests.backends.conftest import Stage

    Stages = tuple[Stage, ...]

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("operators_once")]
library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def test_a_flux_stage_builds_for_gpus_from_elsewhere(stages: Stages, folder: Path) -> None:
    weights = stages[0].graph.weights
    assert weights is not None
    rtx = backend("tensorrt-rtx")
    nodes = onnx.load(str(stages[0].graph.onnx), load_external_data=False).graph.node
    multiplied = sum(node.op_type in ("MatMul", "Gemm") for node in nodes)
    for targets, name in ((("sm89",), "sm89"), (("sm120", "sm89"), "sm89-sm120"), ((), "any")):
        file, products = rtx.build(stages[0].graph, BuildOptions(folder=folder, targets=targets))
        assert file == f"stage1.full.{name}.plan"
        assert json.loads((folder / products).read_bytes()) == {"float": multiplied}
        plan = (folder / file).read_bytes()
        assert plan[:4] == b"vtrt"
        assert ".".join(map(str, plan[24:28])) == library.__version__
        assert len(plan) > weights.stat().st_size  # the plan holds the external weights


def graph_of_all(stages: Stages, folder: Path) -> StageGraph:
    """The full graph of the first two stages, open in its token count."""
    two = [stage.graph for stage in stages[:2]]
    graph = replace(two[1], name="full", profiles=tuple(each.signature for each in two))
    (exported,) = export_stages([graph], folder)
    return exported


def test_one_plan_takes_the_shapes_of_its_profiles(
    stages: Stages, folder: Path, tmp_path: Path
) -> None:
    graph = graph_of_all(stages, tmp_path / "graphs")
    options = BuildOptions(folder=folder, targets=("sm89",))
    rtx = backend("tensorrt-rtx")
    assert rtx.build(graph, options) == ("full.sm89.plan", "full.sm89.products.json")
    products = json.loads((folder / "full.sm89.products.json").read_bytes())
    nodes = onnx.load(str(stages[0].graph.onnx), load_external_data=False).graph.node
    assert products == {"float": sum(node.op_type in ("MatMul", "Gemm") for node in nodes)}
    # The real builder is told of them: without, or with others, it refuses the same graph.
    with pytest.raises(BuildError, match="optimization profile"):
        rtx.build(replace(graph, name="none", profiles=()), options)
    stranger = full_signature(FLUX_TINY, 16, FLUX_TINY.text_tokens)
    with pytest.raises(BuildError, match="profile"):
        rtx.build(replace(graph, name="other", profiles=(stranger,)), options)


def test_a_plan_that_streams_its_weights_builds(stages: Stages, folder: Path) -> None:
    weights = stages[0].graph.weights
    assert weights is not None
    options = BuildOptions(folder=folder, targets=("sm89",), stream_weights=True)
    file, _ = backend("tensorrt-rtx").build(stages[0].graph, options)
    assert (folder / file).stat().st_size > weights.stat().st_size


@pytest.mark.slow
def test_a_bundle_of_profiles_holds_the_weights_once(tmp_path: Path) -> None:
    request = BuildRequest(
        model="flux-tiny",
        weights="random",
        blocks=(1, 1),
        stages=2,
        preset="fast",
        size=(64, 64),
        backend="tensorrt-rtx",
        target="sm89,layout=profiles",
        cache="reuse,warmup_steps=3",
        out=tmp_path / "bundle",
    )
    bundle = run(request).bundle
    engines = {engine.name: engine for engine in bundle.manifest.engines}
    assert {engine.files[0] for engine in engines.values()} == {
        "full.sm89.plan",
        "bypass.sm89.plan",
    }
    sizes = {file.path: file.bytes for file in bundle.manifest.files}
    facts = with_blocks(FLUX_TINY, (1, 1))
    weights = 4 * facts.parameters
    assert weights < sizes["full.sm89.plan"] < 2 * weights  # kernels for both stages included
    own = graph_parameters(facts, "bypass").bytes("fp32")
    assert own < sizes["bypass.sm89.plan"] < 2 * own
    for index, action in bundle.plan.graphs:
        wanted = stage_signature(facts, bundle.plan, index, action, text_tokens=facts.text_tokens)
        assert engines[engine_name(index, action)].signature == wanted


def test_progress_comes_from_the_real_builder(stages: Stages, folder: Path) -> None:
    told: list[float] = []
    options = BuildOptions(
        folder=folder, targets=("sm89",), progress=lambda _, fraction: told.append(fraction)
    )
    backend("tensorrt-rtx").build(stages[1].graph, options)
    assert len(told) > 10
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_an_interrupt_stops_the_real_builder(stages: Stages, folder: Path) -> None:
    told: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        told.append(fraction)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3.0)  # the builder waits here; the main thread takes the signal

    with pytest.raises(KeyboardInterrupt):
        backend("tensorrt-rtx").build(
            stages[0].graph, BuildOptions(folder=folder, targets=("sm89",), progress=progress)
        )
    assert len(told) <= 2
    assert list(folder.iterdir()) == []


def test_the_real_parser_names_the_node(stages: Stages, folder: Path, tmp_path: Path) -> None:
    graph = stages[0].graph
    assert graph.weights is not None
    model = onnx.load(str(graph.onnx), load_external_data=False)
    model.graph.node[3].op_type = "NoSuchOperator"
    path = tmp_path / "stage1.full.onnx"
    onnx.save(model, str(path))
    (tmp_path / graph.weights.name).symlink_to(graph.weights)
    with pytest.raises(BuildError, match=f"{model.graph.node[3].name}.*NoSuchOperator"):
        backend("tensorrt-rtx").build(replace(graph, onnx=path), BuildOptions(folder=folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_plan_says_what_it_needs(stages: Stages, folder: Path) -> None:
    rtx = backend("tensorrt-rtx")
    files = rtx.build(stages[0].graph, BuildOptions(folder=folder, targets=("sm89",)))
    with pytest.raises(EnvironmentMismatch, match="no usable NVIDIA GPU; expected a GPU of sm89"):
        rtx.load(folder, stages[0].record(files))
