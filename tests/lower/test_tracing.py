"""A trace without what nobody reads gives the graph of a trace with it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx_ir.schemas import OpSignature
from torch import Tensor, nn
from torch.fx import config

from fresco_trt.backends.base import StageGraph
from fresco_trt.lower import export
from fresco_trt.lower.tracing import signatures_once, without_stack_traces
from fresco_trt.plan.signature import GraphSignature, TensorSpec

pytestmark = pytest.mark.usefixtures("operators_once")

SPEC = TensorSpec(name="x", dtype="float32", shape=(2, 4))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x), -1) + torch.nn.functional.gelu(x)


GRAPH = StageGraph(
    name="small",
    signature=GraphSignature(
        inputs=(SPEC,), outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),)
    ),
    module=Small().eval(),
    onnx=None,
    weights=None,
    source=Path(),
    family="any",
)


def noted(model: ir.Model) -> list[str]:
    """What the operators say of the lines that called them."""
    return [node.metadata_props.get("pkg.torch.onnx.stack_trace", "") for node in model.graph]


def stored(model: ir.Model) -> bytes:
    none: Any = None
    export.strip_provenance(model, none)
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def test_the_graph_is_that_of_a_trace_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = export._traced(GRAPH)
    assert not any(noted(found))
    for each in ("without_stack_traces", "signatures_once"):
        monkeypatch.setattr(export, each, nullcontext)
    wanted = export._traced(GRAPH)
    assert any("forward" in each for each in noted(wanted))
    assert stored(found) == stored(wanted)


def test_the_libraries_are_as_before_after_it() -> None:
    before, read = config.do_not_emit_stack_traces, vars(OpSignature)["from_op_schema"]
    with pytest.raises(ValueError, match="within"), without_stack_traces(), signatures_once():
        raise ValueError("within")
    assert config.do_not_emit_stack_traces is before
    assert vars(OpSignature)["from_op_schema"] is read
