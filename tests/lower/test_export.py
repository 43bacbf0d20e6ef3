"""Laws of the export: static, named, shared, the same bytes every time, or an error that says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from torch import Tensor, nn

from fresco_trt.backends.base import StageGraph
from fresco_trt.errors import ExportError
from fresco_trt.lower import export
from fresco_trt.lower.export import INLINE_BYTES, export_stages
from fresco_trt.lower.weights import LINE, WeightFile
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import FullGraph, graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.plan.caching import SITES, CacheSite
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from tests.once import traced_once

pytestmark = pytest.mark.usefixtures("operators_once")

SMALL = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=6, text_dim=32
)
MODEL = random_transformer(SMALL)


def stage_graphs(tokens: tuple[int, ...] = (4, 16)) -> tuple[StageGraph, ...]:
    """One full graph with its feature for each token count."""
    return tuple(
        StageGraph(
            name=f"stage{index + 1}.full",
            signature=full_signature(SMALL, count, SMALL.text_tokens, feature=True),
            module=FullGraph(MODEL, feature=True).eval(),
            onnx=None,
            weights=None,
            source=Path(),
            family="flux",
        )
        for index, count in enumerate(tokens)
    )


TOLD: list[tuple[str, float]] = []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageGraph, ...]:
    """Both stages, exported once; what the progress listener heard is in ``TOLD``."""
    folder = tmp_path_factory.mktemp("graphs")
    with traced_once(tmp_path_factory):
        return export_stages(stage_graphs(), folder, progress=lambda *heard: TOLD.append(heard))


def protos(graphs: tuple[StageGraph, ...]) -> Iterator[tuple[StageGraph, onnx.ModelProto]]:
    for graph in graphs:
        yield graph, onnx.load(str(graph.onnx), load_external_data=False)


def places(model: onnx.ModelProto) -> dict[str, tuple[str, int, int]]:
    """Data file, offset and length of every external constant."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    return found


# --- the files --------------------------------------------------------------------------------


def test_every_file_is_plain_static_onnx(exported: tuple[StageGraph, ...]) -> None:
    for graph, model in protos(exported):
        onnx.checker.check_model(str(graph.onnx), full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        values = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
        for value in values:
            dims = value.type.tensor_type.shape.dim
            assert all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims), value.name
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        assert not model.functions
        assert not {node.domain for node in model.graph.node} - {""}


def test_inputs_and_outputs_are_the_signature(exported: tuple[StageGraph, ...]) -> None:
    for graph, model in protos(exported):
        for values, specs in (
            (model.graph.input, graph.signature.inputs),
            (model.graph.output, graph.signature.outputs),
        ):
            found = [
                (value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
                for value in values
            ]
            assert found == [(spec.name, spec.shape) for spec in specs]


def test_two_stages_hold_the_weights_once(exported: tuple[StageGraph, ...]) -> None:
    files = {graph.weights for graph in exported}
    assert len(files) == 1
    on_disk = sum(path.stat().st_size for path in files if path is not None)
    in_memory = sum(value.nbytes for value in MODEL.parameters())
    assert 0.9 * in_memory < on_disk < 1.05 * in_memory
    (_, small), (_, large) = protos(exported)
    assert places(small) == places(large)


def test_constants_are_aligned_and_small_ones_inline(exported: tuple[StageGraph, ...]) -> None:
    for graph, model in protos(exported):
        for name, (location, offset, length) in places(model).items():
            assert graph.weights is not None
            assert location == graph.weights.name, name
            assert offset % LINE == 0
            assert length >= INLINE_BYTES
        inline = [t for t in model.graph.initializer if t.name not in places(model)]
        assert all(len(tensor.raw_data) < INLINE_BYTES for tensor in inline)


def test_large_constants_bear_the_models_own_names(exported: tuple[StageGraph, ...]) -> None:
    known = set(MODEL.state_dict())
    for _, model in protos(exported):
        named = {name.removesuffix(".T") for name in places(model)}
        assert named <= known
        linear = {name for name in known if name.endswith("weight") and "norm_" not in name}
        assert {name for name in linear if MODEL.state_dict()[name].nbytes >= INLINE_BYTES} <= named


def test_nodes_are_named_after_modules_and_only_once(exported: tuple[StageGraph, ...]) -> None:
    modules = {name for name, _ in MODEL.named_modules()}
    for _, model in protos(exported):
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert {name.rpartition("/")[0] for name in names} <= modules
        assert "transformer_blocks.0.attn.to_q/MatMul" in names


@pytest.mark.slow
def test_bytes_depend_on_the_model_alone(exported: tuple[StageGraph, ...], tmp_path: Path) -> None:
    (again,) = export_stages(stage_graphs((4,)), tmp_path / "elsewhere")
    first = exported[0]
    for one, other in ((first.onnx, again.onnx), (first.weights, again.weights)):
        assert one is not None
        assert other is not None
        assert one.read_bytes() == other.read_bytes()


def test_files_tell_nothing_of_this_machine(exported: tuple[StageGraph, ...]) -> None:
    for graph, model in protos(exported):
        data = model.SerializeToString()
        for word in (b"site-packages", b".py", str(Path.cwd()).encode(), b"stack_trace"):
            assert word not in data
        assert not model.doc_string
        assert not model.metadata_props
        assert graph.onnx is not None
        assert len(data) < 2_000_000


def test_progress_names_each_graph_and_rises_to_one(exported: tuple[StageGraph, ...]) -> None:
    assert [phase for phase, _ in TOLD] == [*(f"export {g.name}" for g in exported), "export"]
    fractions = [fraction for _, fraction in TOLD]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


# --- refusals ---------------------------------------------------------------------------------


class Doubling(nn.Module):
    """The smallest module with the shape of a stage graph."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * 2.0,)


class Branching(nn.Module):
    """Cannot be traced: decides by value."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * 2.0,) if x.sum() > 0 else (x,)


def doubling(module: nn.Module, outputs: tuple[int, ...] = (2, 3)) -> StageGraph:
    signature = GraphSignature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=outputs),),
    )
    return StageGraph(
        name="stage1.full",
        signature=signature,
        module=module,
        onnx=None,
        weights=None,
        source=Path(),
        family="flux",
    )


def test_a_module_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"export of stage1\.full: the exporter stopped"):
        export_stages([doubling(Branching())], tmp_path)


def test_garbage_is_collected_rarely_in_a_trace_and_afterwards_as_before(
    tmp_path: Path,
) -> None:
    seen = []

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(gc.get_threshold()[0])
            raise ValueError("no trace")

    ours, users = gc.get_threshold(), (700, 10, 10)
    gc.set_threshold(*users)
    try:
        with pytest.raises(ExportError, match="no trace"):
            export_stages([doubling(Failing())], tmp_path)
        assert gc.get_threshold() == users
    finally:
        gc.set_threshold(*ours)
    assert min(seen) > 100 * users[0]


def sound_model(graph: StageGraph) -> ir.Model:
    """By hand: y = x * c, with the signature of :func:`doubling`."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape([2, 3]))
    c = ir.Value(name="c", type=kind, shape=ir.Shape([1]), const_value=ir.tensor([2.0], name="c"))
    node = ir.node("Mul", [x, c])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape([2, 3])
    inner = ir.Graph([x], [y], nodes=[node], initializers=[c], opset_imports={"": 20}, name="g")
    return ir.Model(inner, ir_version=10)


def lose_shapes(model: ir.Model, weights: WeightFile) -> None:
    extra = ir.node("Neg", [model.graph.inputs[0]], name="loose")
    extra.outputs[0].name, extra.outputs[0].shape = "extra", ir.Shape(["n", 3])
    model.graph.append(extra)


def leave_the_standard(model: ir.Model, weights: WeightFile) -> None:
    model.graph[0].domain = "com.example"


def rename_the_input(model: ir.Model, weights: WeightFile) -> None:
    model.graph.inputs[0].name = "z"


def lose_a_constant(model: ir.Model, weights: WeightFile) -> None:
    model.graph.initializers["c"].const_value = None


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lose_shapes, "extra of loose has no static shape: [n,3]"),
        (leave_the_standard, "is no plain ONNX operator: com.example.Mul"),
        (rename_the_input, "the graph has ['z float32[2,3]'] where the signature has"),
        (lose_a_constant, "the constant c has no value"),
    ],
)
def test_every_pass_ends_verified(
    step: export.Pass, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_traced", sound_model)
    (done,) = export_stages([doubling(Doubling())], tmp_path)  # sound before the step is added
    onnx.checker.check_model(str(done.onnx), full_check=True)
    monkeypatch.setattr(export, "PASSES", (step, *export.PASSES))
    with pytest.raises(ExportError) as caught:
        export_stages([doubling(Doubling())], tmp_path)
    assert f"after {step.__name__}" in str(caught.value)
    assert said in str(caught.value)


def test_a_module_that_breaks_its_signature_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_traced", sound_model)
    with pytest.raises(ExportError, match=r"after tracing.*y float32\[2,3\].*y float32\[3,2\]"):
        export_stages([doubling(Doubling(), outputs=(3, 2))], tmp_path)


# A coarse velocity has no feature: its bypass is the whole graph of another grid.
@pytest.mark.parametrize("site", [site for site in SITES if site != "velocity"])
def test_a_bypass_adds_no_weights(
    site: CacheSite, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = SMALL.text_tokens
    signatures = {
        "stage1.full": full_signature(SMALL, 16, text, feature=True, site=site),
        "stage1.bypass": bypass_signature(SMALL, 16, text, site=site),
    }
    graphs = tuple(
        StageGraph(
            name=name,
            signature=signature,
            module=graph_from_signature(MODEL, signature),
            onnx=None,
            weights=None,
            source=Path(),
            family="flux",
        )
        for name, signature in signatures.items()
    )
    with traced_once(tmp_path_factory):
        alone, both = (export_stages(graphs[:count], tmp_path / str(count)) for count in (1, 2))
    sizes = [each[0].weights.stat().st_size for each in (alone, both) if each[0].weights]
    assert sizes[0] == sizes[1] > 0
    names = [set(places(model)) for _, model in protos(both)]
    assert names[1] < names[0]
