"""A graph that torch captured: which of its arguments are weights, and what stands in an engine's
way.

Second step of a compilation. torch hands every parameter and buffer over as an argument; an engine
has them built in. What an engine could not do exactly as the graph does is found here, before
anything is exported: it would otherwise be done wrongly and in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from fresco_trt.compile.messages import LEAVE_OUT, short_line
from fresco_trt.compile.numbers import DATA, Number, Numbers, number
from fresco_trt.errors import UnsupportedGraph
from fresco_trt.models.fingerprint import version
from fresco_trt.plan.signature import GraphSignature, TensorSpec

# Functions of these are the same in every process that has the same torch.
_KNOWN = {None, "_operator", "builtins", "math", "operator", "torch"}
_KNOWN_OPERATORS = {"aten", "prims", "higher_order", "_c10d_functional"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Bound(nn.Module):
    """A captured graph with its weights and numbers in place; called with the tensors left over,
    and after them the numbers that are passed.

    Weights are this module's own parameters and buffers, under the names of their arguments.
    """

    def __init__(self, captured: Captured, fixed: Mapping[int, Any]) -> None:
        super().__init__()
        self.graph, self._order, self._use = captured.graph, captured.names, captured.numbers
        reads = any(node.target is DATA for node in self.graph.graph.nodes)
        self._is_plain = not (reads or self._use.read or self._use.passed)
        self._complex = captured.complex
        self._fixed = {at: each for at, each in fixed.items() if at not in captured.weights}
        self._weights = {at: captured.names[at] for at in fixed if at in captured.weights}
        for at, name in self._weights.items():
            if isinstance(fixed[at], nn.Parameter):
                self.register_parameter(name, fixed[at])
            else:
                self.register_buffer(name, fixed[at])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs for its tensors in order, weights left out."""
        given = iter(inputs)
        arguments = [self._argument(at, given) for at in range(len(self._order))]
        if self._is_plain:
            return tuple(self.graph(*arguments))
        return tuple(self._use.run(self.graph, arguments, tuple(given)))

    @property
    def numbers(self) -> dict[str, Number]:
        """The numbers that are built in, by the name of their argument."""
        return {self._order[at]: self._fixed[at] for at in sorted(self._use.built_in)}

    def _argument(self, at: int, given: Iterator[Tensor]) -> Any:
        if at in self._weights:
            return getattr(self, self._weights[at])
        if at in self._fixed:
            return self._fixed[at]
        return torch.view_as_complex(next(given)) if at in self._complex else next(given)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """A graph and the roles of its arguments: ``names`` in order, ``weights`` the places of those
    that are parameters or buffers of the model, ``tensors`` of those that an engine takes,
    ``complex`` of those that it takes as pairs of real numbers, and ``others`` of what is neither
    and built into it.
    """

    graph: GraphModule
    names: tuple[str, ...]
    weights: frozenset[int]
    tensors: tuple[int, ...]
    complex: frozenset[int]
    others: tuple[int, ...]
    numbers: Numbers

    @classmethod
    def of(cls, graph: GraphModule, examples: Sequence[object]) -> Self:
        """The roles as torch tells them: by type, and by the mark on a module's own tensors."""
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        pairs = enumerate(zip(nodes, examples, strict=True))
        weights = frozenset(at for at, (node, each) in pairs if _is_weight(node, each))
        numbers = Numbers.of(nodes, examples)
        rest = [at for at in range(len(nodes)) if at not in weights]
        free = {*numbers.roots.values()} - numbers.built_in
        held = {at for at in rest if at in numbers.read or not isinstance(examples[at], Tensor)}
        tensors = {at: each for at in rest if isinstance(each := examples[at], Tensor)}
        return cls(
            graph=graph,
            names=tuple(str(node.name) for node in nodes),
            weights=weights,
            tensors=tuple(at for at in rest if at not in held),
            complex=frozenset(at for at, each in tensors.items() if each.is_complex()),
            others=tuple(at for at in rest if at in held - free),
            numbers=numbers,
        )

    def split(self, arguments: Sequence[Any]) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        """The arguments of one call: weights, what an engine takes, and what is built into it."""
        weights = [each for at, each in enumerate(arguments) if at in self.weights]
        tensors = [_real(arguments[at]) for at in self.tensors]
        others = [number(arguments[at]) for at in self.others]
        return weights, [*tensors, *self.numbers.inputs(arguments)], others

    def bind(self, arguments: Sequence[Any]) -> Bound:
        """The graph for this call's weights and numbers. Raises UnsupportedGraph for an argument
        that is neither, nor a tensor.
        """
        fixed: dict[int, Any] = {}
        for at, each in enumerate(arguments):
            if at in self.weights:
                fixed[at] = each
            elif at not in self.tensors:
                fixed[at] = number(each)
                if not isinstance(fixed[at], Number):
                    refuse(f"it takes {self.names[at]}, of type {type(each).__name__}", "tensors")
        return Bound(self, fixed).eval()

    def signature(self, tensors: Sequence[Tensor], outputs: Iterable[Tensor]) -> GraphSignature:
        """The static signature of one call. Raises InvalidPlan for what no engine has: no tensors,
        an empty one, or one of float64.
        """
        names = [self.names[at] for at in self.tensors]
        names += [str(node.name) for node in self.numbers.passed]
        return GraphSignature(
            inputs=tuple(_spec(*each) for each in zip(names, tensors, strict=True)),
            outputs=tuple(_spec(f"output_{at}", each) for at, each in enumerate(outputs)),
        )

    @property
    def text(self) -> str:
        """The graph as code, the same in every process; of its parts too, each under its name."""
        parts = [
            f"{name}:{module.code}"
            for name, module in sorted(self.graph.named_modules())
            if isinstance(module, GraphModule)
        ]
        return "\n".join(parts)

    @property
    def constants(self) -> dict[str, Tensor]:
        """The tensors that the graph itself holds, by name."""
        return {
            f"{prefix}.{node.target}": value
            for prefix, node in _nodes(self.graph)
            if node.op == "get_attr" and isinstance(value := _attribute(node), Tensor)
        }


def _is_weight(node: Node, example: object) -> bool:
    marks = node.meta.get("tensor_dict") or {}
    static = "_dynamo_static_input_type" in marks
    return isinstance(example, nn.Parameter) or (isinstance(example, Tensor) and static)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(int(size) for size in tensor.shape))


# --- what no engine can do --------------------------------------------------------------------


def check_circumstances(arguments: Iterable[object]) -> None:
    """Raise UnsupportedGraph where a call wants gradients, changes dtypes on the way, or brings
    tensors that are more than numbers in memory.
    """
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    for each in tensors:
        if type(each) not in (Tensor, nn.Parameter) or each.layout != torch.strided:
            refuse(f"it takes a {each.layout} {type(each).__name__}", "plain dense tensors")
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        refuse("gradients are wanted", "inference", "call the model within torch.no_grad()")
    for device in {each.device.type for each in tensors}:
        if torch.is_autocast_enabled(device):
            refuse(
                "autocast is on",
                "a model that runs in its own dtypes",
                "leave the autocast block, or convert the model instead",
            )


def check_graph(captured: Captured) -> None:
    """Raise UnsupportedGraph for a graph whose meaning is not all in the graph: calls of code that
    the cache's key cannot cover.
    """
    for _, node in _nodes(captured.graph):
        if node.op == "call_module" and not isinstance(_attribute(node), GraphModule):
            refuse(f"it calls the module {node.target}", "a graph of torch's own functions")
        if node.op == "call_function" and not _is_known(node.target):
            name = getattr(node.target, "__qualname__", None) or str(node.target)
            refuse(f"it calls {name}", "a graph of torch's own functions")
        if node.op == "get_attr" and not isinstance(_attribute(node), Tensor | GraphModule):
            refuse(f"it reads {node.target}", "tensors")
    if _ADDRESS.search(captured.text):
        refuse("it holds an object of this process", "numbers and tensors")


def probe(bound: Bound, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a graph as fake tensors: shapes and dtypes, without running it.

    Raises UnsupportedGraph for a graph that draws random numbers, writes to what it is given,
    returns a view of it or something else than tensors, or that cannot be run on shapes alone.
    """
    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), _Watch()
    try:
        with torch.inference_mode(False), torch.no_grad():
            fakes = [mode.from_tensor(each) for each in tensors]
            with mode:
                held = _fake_weights(bound, mode)
                before = [version(each) for each in (*fakes, *held.values())]
                with watch:
                    outputs = torch.func.functional_call(bound, held, tuple(fakes))
    except Exception as error:  # whatever the traced code raises without values
        refuse(
            f"it needs values, not shapes alone ({type(error).__name__}: {short_line(str(error))})"
        )
    given = (*fakes, *held.values())
    if watch.drawn:
        refuse(f"it draws random numbers ({watch.drawn[0]})", "a graph without dropout or noise")
    if before != [version(each) for each in given]:
        refuse("it writes to a tensor that it is given", "a graph that leaves its inputs alone")
    return _tensors(outputs, {_storage(each) for each in given})


def _fake_weights(bound: Bound, mode: FakeTensorMode) -> dict[str, Tensor]:
    named = (*bound.named_parameters(), *bound.named_buffers())
    return {name: mode.from_tensor(each) for name, each in named}


def _tensors(outputs: Sequence[object], given: set[int]) -> list[Tensor]:
    found = [each for each in outputs if isinstance(each, Tensor)]
    if len(found) != len(outputs):
        refuse("it returns something else than tensors", "tensors alone")
    if any(_storage(each) in given for each in found):
        refuse("it returns a view of what it is given", "outputs of their own")
    return found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Sees every operator, and keeps the names of those that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _draws(func, args, kwargs or {}):
            self.drawn.append(str(func))
        return func(*args, **(kwargs or {}))


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator draws; attention does only where its dropout is not zero."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for at, each in enumerate(func._schema.arguments):
        if each.name == "dropout_p":
            value = args[at] if at < len(args) else kwargs.get(each.name, each.default_value)
            return bool(value)
    return True


def _nodes(graph: GraphModule) -> Iterator[tuple[str, Node]]:
    """Every node of a graph and of the graphs it holds, with the name of that graph."""
    for name, module in graph.named_modules():
        if isinstance(module, GraphModule):
            yield from ((name, node) for node in module.graph.nodes)


def _attribute(node: Node) -> object:
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _is_known(function: Any) -> bool:
    if isinstance(function, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
        return function.namespace in _KNOWN_OPERATORS
    if isinstance(function, torch._ops.OpOverloadPacket):
        return function._qualified_op_name.partition("::")[0] in _KNOWN_OPERATORS
    module = getattr(function, "__module__", None)
    return (module if module is None else module.partition(".")[0]) in _KNOWN


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def refuse(
    given: str,
    expected: str = "a graph whose shapes say all",
    fix: str = LEAVE_OUT,
) -> NoReturn:
    """Raise UnsupportedGraph with the usual way out."""
    raise UnsupportedGraph(given, expected=expected, fix=fix)
