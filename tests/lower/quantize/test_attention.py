"""Attention's products in codes: modelopt's amax, four roundings a block, one fused kernel."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fresco_trt
from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.bundle.amax import Amax, AttentionAmax
from fresco_trt.errors import CalibrationError, ExportError
from fresco_trt.lower.calibrate import amax as measuring
from fresco_trt.lower.calibrate.amax import attentions_of, measure_amax
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.export import export_stages
from fresco_trt.lower.quantize.attention import attention_scales, quantise_attention
from fresco_trt.lower.quantize.qdq import Quantizer
from fresco_trt.lower.quantize.simulation import RoundedProducts
from fresco_trt.models.flux.facts import FLUX_DEV
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.signatures import full_signature, stage_signature
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.plan.signature import GraphSignature
from tests.shallow import FACTS, shallow_transformer

pytestmark = pytest.mark.usefixtures("traced_once")

PLAN = fresco_trt.plan("flux-tiny", stages=2, preset="turbo", size=(64, 64))
MODEL = shallow_transformer()
REFERENCE = Reference(
    facts=FACTS,
    transformer=MODEL,
    weights_sha256=weights_digest(MODEL),
    pipeline=bundled_folder("flux-tiny"),
    prompts=("a star on a plain red background",),
)
KEPT = FLUX_DEV.high_precision  # every block is quantised
RECIPE, PLAIN = RECIPES["fp8-attention"], RECIPES["fp8"]
TEXT = FACTS.text_tokens
BLOCKS = (
    *(f"transformer_blocks.{index}.attn" for index in range(FACTS.double_blocks)),
    *(f"single_transformer_blocks.{index}.attn" for index in range(FACTS.single_blocks)),
)


def silent(*_: object) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def measured() -> Amax:
    return measure_amax(REFERENCE, PLAN, RECIPE, KEPT, silent)


def stage_graph(
    signature: GraphSignature | None = None, model: nn.Module = MODEL, **options: Any
) -> StageGraph:
    """A full graph, the second stage's by default, not exported."""
    wanted = signature or stage_signature(FACTS, PLAN, 1, text_tokens=TEXT)
    return StageGraph(
        name="stage2.full",
        signature=wanted,
        module=graph_from_signature(model, wanted),
        onnx=None,
        weights=None,
        source=Path(),
        family="flux",
        **options,
    )


def exported(graph: StageGraph, folder: Path, amax: Amax, recipe: Any = RECIPE) -> StageGraph:
    (done,) = export_stages([graph], folder, quantizer=Quantizer(recipe=recipe, amax=amax))
    return done


def quantising(graph: StageGraph) -> Counter[str]:
    """How many attention operands of each block are rounded, by the block's path."""
    nodes = onnx.load(str(graph.onnx), load_external_data=False).graph.node
    names = (node.name for node in nodes if node.op_type == "QuantizeLinear")
    return Counter(name.partition(".attn.")[0] + ".attn" for name in names if _ROUNDED.search(name))


_ROUNDED = re.compile(r"\.attn\.(query|key|softmax|value)(_\d+)?\.Q$")


# --- measuring --------------------------------------------------------------------------------


def test_the_layers_have_the_ranges_of_the_plain_recipe(measured: Amax) -> None:
    plain = measure_amax(REFERENCE, PLAN, PLAIN, KEPT, silent)
    assert plain.attention == {}
    assert plain.layers.keys() == measured.layers.keys()
    for name, found in plain.layers.items():
        assert torch.equal(found.input, measured.layers[name].input)
        assert torch.equal(found.weight, measured.layers[name].weight)


def test_ranges_of_attention_are_modelopts(measured: Amax, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated: list[Any] = []
    original = measuring._calibrated

    def kept(*arguments: Any) -> Any:
        calibrated.append(original(*arguments))
        return calibrated[-1]

    monkeypatch.setattr(measuring, "_calibrated", kept)
    measure_amax(REFERENCE, PLAN, RECIPE, KEPT, silent)
    assert tuple(measured.attention) == BLOCKS
    for path, found in measured.attention.items():
        module = calibrated[0].get_submodule(path)
        for kind, ours in (("q", found.query), ("k", found.key), ("v", found.value)):
            assert ours.shape == (len(PLAN.stages),)
            theirs = getattr(module, f"{kind}_bmm_quantizer").amax
            assert float(ours.max()) == pytest.approx(float(theirs), rel=1e-6)


def test_what_a_pattern_keeps_is_not_measured() -> None:
    assert attentions_of(REFERENCE, PLAIN, KEPT) == ()
    assert attentions_of(REFERENCE, RECIPE, KEPT) == BLOCKS
    assert attentions_of(REFERENCE, RECIPE, ("single*.attn",)) == BLOCKS[:1]
    assert attentions_of(REFERENCE, RECIPE, ("*.attn.*",)) == BLOCKS  # its layers, not its products
    with pytest.raises(CalibrationError, match="attention of all 2 blocks is kept") as caught:
        attentions_of(REFERENCE, RECIPE, ("*.attn",))
    assert "with keep" in caught.value.fix


# --- products ---------------------------------------------------------------------------------

UNIT = AttentionAmax(**dict.fromkeys(("query", "key", "value"), torch.tensor([448.0])))


def operands() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 2, 4, 16, 32)
    return query, key, value


def test_operands_that_are_codes_are_multiplied_as_they_are() -> None:
    query, _, value = torch.randint(-8, 9, (3, 2, 4, 16, 32)).float()
    key = query[..., :1, :].expand_as(query)  # all alike: each weight is 1/16, which is a code
    torch.testing.assert_close(
        RoundedProducts(UNIT, RECIPE)(query, key, value),
        functional.scaled_dot_product_attention(query, key, value),
    )


def test_with_ranges_that_fit_attention_errs_by_some_percent() -> None:
    query, key, value = operands()
    parts = {"query": query, "key": key, "value": value}
    found = AttentionAmax(**{kind: part.abs().max().reshape(1) for kind, part in parts.items()})
    wanted = functional.scaled_dot_product_attention(query, key, value)
    got = RoundedProducts(found, RECIPE)(query, key, value)
    assert 0.002 < float((got - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("kind", ["query", "key"])
def test_with_ranges_far_too_wide_every_key_counts_alike(kind: str) -> None:
    _, _, value = whole = operands()
    wide = replace(UNIT, **{kind: torch.tensor([1e9])})
    got = RoundedProducts(wide, RECIPE)(*whole)
    mean = RoundedProducts(UNIT, RECIPE)(torch.zeros_like(value), value, value)
    torch.testing.assert_close(got, mean)
    torch.testing.assert_close(got[..., :1, :].expand_as(got), got)


def test_values_below_the_least_code_are_nothing() -> None:
    wide = replace(UNIT, value=torch.tensor([1e9]))
    assert not RoundedProducts(wide, RECIPE)(*operands()).any()


def test_the_scale_of_what_softmax_gives_is_fixed() -> None:
    found = AttentionAmax(
        query=torch.tensor([4.48, 2.0]), key=torch.tensor([0.0]), value=torch.tensor([1.0])
    )
    scales = attention_scales(found, RECIPE)
    assert scales["query"] == pytest.approx(0.01)  # of the stage that needs most
    assert scales["key"] > 0
    assert scales["softmax"] == 1 / 448


# --- graphs -----------------------------------------------------------------------------------


def test_each_operand_of_each_product_comes_straight_from_its_codes(
    measured: Amax, tmp_path: Path
) -> None:
    graph = exported(stage_graph(), tmp_path, measured)
    assert quantising(graph) == dict.fromkeys(BLOCKS, 4)
    model = onnx.load(str(graph.onnx), load_external_data=False).graph
    constants = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in model.initializer
        if each.name.endswith(".scale")
    }
    makers = {output: node for node in model.node for output in node.output}
    for path, found in measured.attention.items():
        (softmax,) = [node for node in model.node if node.name == f"{path}/Softmax"]
        first = makers[softmax.input[0]]
        (second,) = [node for node in model.node if f"{path}.softmax.DQ" in node.input]
        assert {first.op_type, second.op_type} == {"MatMul"}
        assert list(first.input) == [f"{path}.query.DQ", f"{path}.key.DQ"]
        assert list(second.input) == [f"{path}.softmax.DQ", f"{path}.value.DQ"]
        assert makers[f"{path}.softmax.Q"].input[0] == softmax.output[0]
        root = FACTS.head_dim**-0.25  # query and key are multiplied by it before they are codes
        wanted = {
            "query": float(found.query.max()) * root / 448,
            "key": float(found.key.max()) * root / 448,
            "value": float(found.value.max()) / 448,
            "softmax": 1 / 448,
        }
        for kind, scale in wanted.items():
            assert float(constants[f"{path}.{kind}.scale"]) == pytest.approx(scale, rel=1e-6)


def test_without_its_ranges_the_graph_is_the_plain_recipes(measured: Amax, tmp_path: Path) -> None:
    bare = replace(measured, attention={})
    with_name = exported(stage_graph(), tmp_path / "a", bare)
    plain = exported(stage_graph(), tmp_path / "b", bare, PLAIN)
    both = exported(stage_graph(), tmp_path / "c", measured)
    assert with_name.onnx is not None
    assert plain.onnx is not None
    assert with_name.onnx.name == plain.onnx.name
    assert with_name.onnx.read_bytes() == plain.onnx.read_bytes()
    assert not quantising(plain)
    for graph in (with_name, plain, both):  # attention has no weights
        assert graph.weights is not None
    weights = {graph.weights.read_bytes() for graph in (with_name, plain, both) if graph.weights}
    assert len(weights) == 1


@pytest.mark.slow
def test_a_graph_of_several_token_counts_has_the_same_nodes(measured: Amax, tmp_path: Path) -> None:
    signatures = tuple(stage_signature(FACTS, PLAN, stage, text_tokens=TEXT) for stage in (0, 1))
    graph = exported(stage_graph(profiles=signatures), tmp_path, measured)
    assert quantising(graph) == dict.fromkeys(BLOCKS, 4)


def test_aligned_attention_is_rounded_on_both_grids(measured: Amax, tmp_path: Path) -> None:
    signature = full_signature(FACTS, 28, TEXT, refined=4)
    graph = exported(stage_graph(signature), tmp_path, measured)
    assert quantising(graph) == dict.fromkeys(BLOCKS, 8)


def test_an_attention_that_is_not_there_is_named(measured: Amax, tmp_path: Path) -> None:
    found = measured.attention[BLOCKS[0]]
    stranger = replace(measured, attention={f"{BLOCKS[0]}.norm_q": found})
    with pytest.raises(ExportError, match=r"0\.attn\.norm_q has no softmax") as caught:
        exported(stage_graph(), tmp_path, stranger)
    assert f"keep={BLOCKS[0]}.norm_q " in caught.value.fix


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        (("Neg", "Softmax", "MatMul"), "by one number each"),
        (("Mul", "Softmax", "Relu"), "not between two matrix products"),
    ],
)
def test_attention_of_another_form_is_refused(operators: tuple[str, ...], words: str) -> None:
    scaled, softmax, last = operators
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    more = ["half"] if scaled == "Mul" else []
    nodes = [
        helper.make_node(scaled, ["q", *more], ["q2"]),
        helper.make_node(scaled, ["k", *more], ["k2"]),
        helper.make_node("MatMul", ["q2", "k2"], ["s"]),
        helper.make_node(softmax, ["s"], ["p"], name="a.attn/Softmax"),
        helper.make_node(last, ["p", "v"] if last == "MatMul" else ["p"], ["o"]),
    ]
    values = [helper.make_tensor_value_info(name, kind, (4, 4)) for name in "qkvo"]
    half = helper.make_tensor("half", kind, (), [0.5])
    graph = helper.make_graph(nodes, "g", values[:3], values[3:], [half])
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph))
    with pytest.raises(ExportError, match=words):
        quantise_attention(ir.from_proto(model).graph, {"a.attn": UNIT}, RECIPE)


# --- TensorRT ---------------------------------------------------------------------------------


@pytest.mark.rtx
@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_tensorrt_fuses_attention_over_fp8(
    target: str, measured: Amax, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    half = shallow_transformer(torch.bfloat16)
    graph = exported(stage_graph(model=half), tmp_path, measured)
    options = BuildOptions(folder=tmp_path, targets=(target,), precision="fp8")
    with caplog.at_level(logging.DEBUG, logger="fresco_trt.tensorrt"):
        backend("tensorrt-rtx").build(graph, options)
    # The builder lists the kernels of its plan; of a fused attention query, key and value go in.
    fused = dict(re.findall(r"Name: (_gemm_mha\w*), .*?Inputs: (.*?), Constants:", caplog.text))
    assert len(fused) == len(BLOCKS)
    for entering in fused.values():
        assert entering.count("Datatype: FP8") == 3
