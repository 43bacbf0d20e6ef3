"""torch's decomposition of a program, done once for each operator that differs.

A model of many equal blocks has few operators that are given something new. torch's own goes
through all of them, twice: two fifths of an export's time. Here each different one that becomes
something else goes through it once, all of them side by side as one small program; what they become
is then put into every place. The result is torch's own, names included, without its assertions,
which the exporter leaves out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.export import ExportedProgram, default_decompositions
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves, tree_structure


def decomposed_once(program: ExportedProgram) -> ExportedProgram:
    """``program``, to be decomposed each different operator once; itself where that is not sure to
    give the same: sizes that vary, operators that write, or that hold programs of their own.
    """
    if program.range_constraints or not all(map(_is_plain, program.graph.nodes)):
        return program
    return _with_graph(program, program.graph, _Program)


class _Program(ExportedProgram):
    def run_decompositions(
        self, decomp_table: dict[Any, Any] | None = None, *given: Any, **named: Any
    ) -> ExportedProgram:
        table = default_decompositions() if decomp_table is None else decomp_table
        return _with_graph(self, _decomposed(self, table), ExportedProgram)


def _with_graph(
    program: ExportedProgram, graph: Graph, kind: type[ExportedProgram]
) -> ExportedProgram:
    outputs: Any = graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    for spec, output in zip(specs, outputs, strict=True):
        spec.arg.name = output.name
    return kind(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )


def _is_plain(node: Node) -> bool:
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return _is_check(node) or _of_tensors(node)


def _is_check(node: Node) -> bool:
    """An assertion, which the exporter leaves out."""
    return node.target is torch.ops.aten._assert_tensor_metadata.default


def _of_tensors(node: Node) -> bool:
    values = [each.meta["val"] for each in (node, *node.all_input_nodes)]
    tensors: list[Any] = tree_leaves(values)
    return all(type(each) is torch._subclasses.FakeTensor for each in tensors)


# --- each different operator ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """What an operator becomes: nodes of a decomposed program, from inputs to outputs, in order."""

    inputs: Sequence[Node]
    nodes: Sequence[Node]
    outputs: Sequence[Node]


def _decomposed(program: ExportedProgram, table: Mapping[Any, Any]) -> Graph:
    def changes(node: Node) -> bool:
        """Whether torch has something to put in the place of a node, by the table or of its own."""
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload) or _is_check(node):
            return False
        return target in table or (target not in _by_table() and target._can_decompose())

    keys = {node: _key(node) for node in program.graph.nodes if changes(node)}
    different = {key: node for node, key in keys.items()}
    parts = dict(zip(different, _parts([*different.values()], table), strict=True))
    graph, known = Graph(), dict[Node, Any]()
    for node in program.graph.nodes:
        if node in keys:
            known[node] = _placed(parts[keys[node]], node, known, graph)
        elif node.target is operator.getitem and isinstance(known[node.args[0]], list):
            known[node] = known[node.args[0]][node.args[1]]
        elif not _is_check(node):
            known[node] = _copied(node, known.__getitem__, graph)
    graph.eliminate_dead_code()
    return graph


@cache
def _by_table() -> frozenset[Any]:
    """Operators that torch decomposes where a table says so, and only there."""
    return frozenset(default_decompositions())


def _copied(node: Node, known: Callable[[Node], Any], graph: Graph) -> Node:
    """A node of ``graph`` with the name that torch gives what it traces: the operator's own."""
    if node.op != "call_function":
        return graph.node_copy(node, known)
    args, kwargs = map_arg((node.args, node.kwargs), known)
    target: Any = node.target
    name = graph._target_to_str(getattr(target, "overloadpacket", target).__name__)
    copy: Node = graph.create_node(node.op, target, args, kwargs, name=name)
    copy.meta = {**node.meta}
    return copy


def _key(node: Node) -> str:
    """All that an operator's decomposition depends on."""
    inputs = node.all_input_nodes
    leaves, layout = tree_flatten((node.args, node.kwargs))
    told = [f"input {inputs.index(x)}" if isinstance(x, Node) else (type(x), x) for x in leaves]
    return repr((str(node.target), told, str(layout), [_told(each) for each in inputs]))


def _told(node: Node) -> list[Any]:
    return [
        (x.dtype, x.shape, x.stride(), x.storage_offset(), x.device, x.is_conj(), x.is_neg())
        for x in tree_leaves(node.meta["val"])
    ]


def _parts(nodes: Sequence[Node], table: Mapping[Any, Any]) -> Iterator[_Part]:
    """What torch makes of each node of ``nodes``, in one program with inputs for each of them."""
    graph = Graph()
    given = [
        [
            _input(graph, f"input_{at}_{place}", each)
            for place, each in enumerate(node.all_input_nodes)
        ]
        for at, node in enumerate(nodes)
    ]
    made = []
    for node, inputs in zip(nodes, given, strict=True):
        known = dict(zip(node.all_input_nodes, inputs, strict=True))
        made.append(_values(graph.node_copy(node, known.__getitem__)))
    graph.output(tuple(_flat(made)))
    done = _program(graph, _flat(given), _flat(made)).run_decompositions({**table})
    order = {node: at for at, node in enumerate(done.graph.nodes)}
    places = iter(done.graph.find_nodes(op="placeholder"))
    results = iter(done.graph.output_node().args[0])
    for own, values in zip(given, made, strict=True):
        inputs, outputs = [next(places) for _ in own], [next(results) for _ in values]
        yield _Part(inputs, sorted(_between(inputs, outputs), key=order.__getitem__), outputs)


def _between(inputs: Sequence[Node], outputs: Sequence[Node]) -> set[Node]:
    found, left = set[Node](), [*outputs]
    while left:
        node = left.pop()
        if node not in inputs and node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def _input(graph: Graph, name: str, node: Node) -> Node:
    place = graph.placeholder(name)
    place.meta["val"] = node.meta["val"]
    return place


def _values(node: Node) -> list[Node]:
    """Of an operator that gives several tensors, each."""
    value = node.meta["val"]
    if not isinstance(value, list | tuple):
        return [node]
    items = [node.graph.call_function(operator.getitem, (node, at)) for at in range(len(value))]
    for item, each in zip(items, value, strict=True):
        item.meta = {**node.meta, "val": each}
    return items


def _flat(lists: Sequence[Sequence[Node]]) -> list[Node]:
    return [node for each in lists for node in each]


def _program(graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node]) -> ExportedProgram:
    signature = ExportGraphSignature(
        input_specs=[
            InputSpec(kind=InputKind.USER_INPUT, arg=TensorArgument(name=each.name), target=None)
            for each in inputs
        ],
        output_specs=[
            OutputSpec(kind=OutputKind.USER_OUTPUT, arg=TensorArgument(name=each.name), target=None)
            for each in outputs
        ],
    )
    whole = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=tree_structure((tuple(inputs), {})),
        out_spec=tree_structure(tuple(outputs)),
    )
    return ExportedProgram(
        root=GraphModule({}, graph),
        graph=graph,
        graph_signature=signature,
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry(fqn="", signature=whole)],
    )


# --- in its places ----------------------------------------------------------------------------


def _placed(part: _Part, node: Node, known: Mapping[Node, Any], graph: Graph) -> Any:
    """Add what ``node`` becomes to ``graph``, and return it: a node, or one for each tensor."""
    inputs = [known[each] for each in node.all_input_nodes]
    own: dict[Node, Node] = dict(zip(part.inputs, inputs, strict=True))
    for each in part.nodes:
        own[each] = _copied(each, own.__getitem__, graph)
        own[each].meta = {**node.meta, "val": each.meta["val"]}
    outputs = [own[each] for each in part.outputs]
    return outputs if isinstance(node.meta["val"], list | tuple) else outputs[0]
