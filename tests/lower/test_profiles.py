"""One graph for several token counts gives at each what the graph of that count alone gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.bundle.amax import Amax, AmaxRecord, LayerAmax
from fresco_trt.errors import ExportError
from fresco_trt.lower.calibrate.amax import layers_of
from fresco_trt.lower.export import export_stages
from fresco_trt.lower.profiles import counts, varying
from fresco_trt.lower.quantize.qdq import Quantizer
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from tests.once import traced_once

pytestmark = pytest.mark.usefixtures("operators_once")

SMALL = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=6, text_dim=32
)
TEXT = SMALL.text_tokens
MODEL = random_transformer(SMALL)
TOKENS = (4, 30)  # the last is of no square grid: a mixed stage's

FAMILIES = {
    "full": tuple(full_signature(SMALL, count, TEXT, feature=True) for count in TOKENS),
    "bypass": tuple(bypass_signature(SMALL, count, TEXT) for count in TOKENS),
    "trunk": tuple(bypass_signature(SMALL, count, TEXT, site="trunk") for count in TOKENS),
}


def graph_of(name: str, *signatures: GraphSignature, model: nn.Module = MODEL) -> StageGraph:
    return StageGraph(
        name=name,
        signature=signatures[-1],
        module=graph_from_signature(model, signatures[-1]),
        onnx=None,
        weights=None,
        source=Path(),
        family="flux",
        profiles=signatures if len(signatures) > 1 else (),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageGraph]:
    """Of each family the graph of all counts, and the one of the count that it is not traced at."""
    folder = tmp_path_factory.mktemp("graphs")
    graphs = [graph_of(f"{name}.first", each[0]) for name, each in FAMILIES.items()]
    graphs += [graph_of(name, *each) for name, each in FAMILIES.items()]
    with traced_once(tmp_path_factory):
        return {graph.name: graph for graph in export_stages(graphs, folder)}


def run(graph: StageGraph, signature: GraphSignature) -> list[np.ndarray]:
    """What ONNX Runtime gives for inputs that are the same whatever graph they are given to."""
    session = onnxruntime.InferenceSession(str(graph.onnx), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    inputs = {
        spec.name: torch.rand(spec.shape, generator=generator).numpy() for spec in signature.inputs
    }
    return session.run([spec.name for spec in signature.outputs], inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_all_counts_gives_what_the_graph_of_each_gives(
    family: str, exported: dict[str, StageGraph]
) -> None:
    signature = FAMILIES[family][0]
    wanted, found = (run(exported[name], signature) for name in (f"{family}.first", family))
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def places(graph: StageGraph) -> dict[str, tuple[int, int]]:
    """Offset and length of every constant in the data file."""
    found = {}
    for tensor in onnx.load(str(graph.onnx), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_it_holds_the_weights_of_the_graph_of_one_count(
    family: str, exported: dict[str, StageGraph]
) -> None:
    assert places(exported[family]) == places(exported[f"{family}.first"]) != {}


def test_its_bytes_depend_on_the_model_alone(
    exported: dict[str, StageGraph], tmp_path: Path
) -> None:
    (again,) = export_stages([graph_of("bypass", *FAMILIES["bypass"])], tmp_path)
    first = exported["bypass"]
    assert again.onnx is not None
    assert first.onnx is not None
    # Weights lie where the first graph that has them put them: here that was another one.
    inputs = [onnx.load(str(path), load_external_data=False) for path in (again.onnx, first.onnx)]
    for model in inputs:
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
    one, other = (model.SerializeToString(deterministic=True) for model in inputs)
    assert one == other


def test_only_what_varies_is_open(exported: dict[str, StageGraph]) -> None:
    path = str(exported["full"].onnx)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    found = {
        (value.name, axis)
        for value in (*model.graph.input, *model.graph.output)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.dim_param
    }
    tables = {("rope_cos", 0), ("rope_sin", 0)}
    assert found == {("latents", 1), *tables, ("velocity", 1), ("feature", 1)}


def test_what_varies_is_one_count_and_constants_beside_it() -> None:
    varies = varying(FAMILIES["full"])
    assert varies == {
        "latents": {1: 0},
        "rope_cos": {0: TEXT},
        "rope_sin": {0: TEXT},
        "velocity": {1: 0},
        "feature": {1: 0},
    }
    assert counts(FAMILIES["full"], varies) == list(TOKENS)
    assert varying(FAMILIES["full"][:1]) == {}
    assert varying(()) == {}


def test_signatures_that_are_not_of_one_graph_are_refused() -> None:
    with pytest.raises(ValueError, match="other tensors"):
        varying((FAMILIES["full"][0], FAMILIES["trunk"][1]))
    aligned = tuple(
        full_signature(SMALL, count, TEXT, refined=refined) for count, refined in ((7, 1), (20, 5))
    )
    with pytest.raises(ValueError, match=r"rope_cos_coarse has \(10, 11\) along axis 0, which no"):
        varying(aligned)


class Fixed(nn.Module):
    """Holds only for three rows."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + torch.ones(3, 2),)


def test_a_module_that_holds_for_one_count_only_is_refused(tmp_path: Path) -> None:
    signatures = tuple(
        GraphSignature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(count, 2)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(count, 2)),),
        )
        for count in (5, 3)
    )
    graph = replace(graph_of("full", *FAMILIES["full"]), module=Fixed())
    with pytest.raises(ExportError, match="export of full: the exporter stopped"):
        export_stages([replace(graph, signature=signatures[-1], profiles=signatures)], tmp_path)


@pytest.mark.slow
@pytest.mark.rtx
def test_a_quantised_graph_of_all_counts_multiplies_codes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = random_transformer(SMALL).to(torch.bfloat16)  # what is not quantised is bfloat16 there
    paths = layers_of(model, SMALL.high_precision)
    weights = {path: model.get_submodule(path).weight.detach().float() for path in paths}
    record = AmaxRecord(
        model=SMALL.name,
        weights_sha256="0" * 64,
        recipe="int8",
        kept=SMALL.high_precision,
        prompts=1,
        prompts_sha256="0" * 64,
        seed=0,
        plan_sha256="0" * 64,
    )
    layers = {
        path: LayerAmax(input=torch.ones(len(TOKENS)), weight=weight.abs().amax(dim=1))
        for path, weight in weights.items()
    }
    quantizer = Quantizer(recipe=RECIPES["int8"], amax=Amax(layers=layers, record=record))
    graph = graph_of("full", *FAMILIES["full"], model=model)
    (exported,) = export_stages([graph], tmp_path, quantizer=quantizer)
    assert quantizer.account.products["full"]["int8"] == len(layers) > 0
    options = BuildOptions(folder=tmp_path, targets=("sm89",), precision="int8")
    _, products = backend("tensorrt-rtx").build(exported, options)
    counted = json.loads((tmp_path / products).read_bytes())
    assert counted.pop("int8") == len(layers)
    assert counted.keys() <= {"bf16", "float"}
