"""torch's own decomposition, whichever way: the same graph, name by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fresco_trt.backends.base import StageGraph
from fresco_trt.lower import export
from fresco_trt.lower.decomposing import decomposed_once
from fresco_trt.lower.rewriting import rewritten
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature, full_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

FACTS = replace(
    FLUX_TINY, hidden=64, heads=2, double_blocks=2, single_blocks=1, text_tokens=6, text_dim=32
)
SIGNATURES = {
    "aligned": full_signature(FACTS, 16, 6, refined=2, feature=True),
    "bypass": bypass_signature(FACTS, 4, 6),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with export._quiet(), torch.no_grad():
        yield


def program_of(name: str) -> ExportedProgram:
    signature = SIGNATURES[name]
    graph = StageGraph(
        name=name,
        signature=signature,
        module=graph_from_signature(random_transformer(FACTS), signature).eval(),
        onnx=None,
        weights=None,
        source=None,
        family="flux",
    )
    return rewritten(export.program_of(graph))


def table() -> dict[Any, Any]:
    """As the exporter's: what it has operators for stays."""
    aten = torch.ops.aten
    kept = (aten.linear.default, aten.layer_norm.default, aten.type_as.default, aten.silu.default)
    known = torch.export.default_decompositions()
    return {key: value for key, value in known.items() if key not in kept}


def lines(program: ExportedProgram) -> list[str]:
    return [
        f"{node.name} = {node.target}{node.args} {node.kwargs} {node.meta.get('val')}"
        f" {node.meta.get('nn_module_stack')}"
        for node in program.graph.nodes
        if "_assert" not in node.name
    ]


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_graph_is_that_of_torchs_own_decomposition(name: str) -> None:
    program = program_of(name)
    wanted = program.run_decompositions(table())
    once = decomposed_once(program)
    assert type(once) is not type(program)
    found = once.run_decompositions(table())
    assert lines(found) == lines(wanted)
    assert str(found.graph_signature) == str(wanted.graph_signature)


class Written(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.mul_(2)
        return y


class Open(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1)


def test_what_writes_and_what_varies_is_left_to_torch() -> None:
    given = (torch.ones(4, 4),)
    written = torch.export.export(Written(), given)
    assert decomposed_once(written) is written
    count = torch.export.Dim("count", min=2, max=8)
    varying = torch.export.export(Open(), given, dynamic_shapes={"x": {0: count}})
    assert decomposed_once(varying) is varying


def test_several_tensors_and_none_that_changes() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = x.chunk(2)
            return second, first.reshape(-1).to(torch.float32)

    program = torch.export.export(Halves(), (torch.ones(4, 3),))
    found = decomposed_once(program).run_decompositions()
    assert lines(found) == lines(program.run_decompositions())
    assert [each.tolist() for each in found.module()(torch.eye(4, 3))] == [
        [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    ]
