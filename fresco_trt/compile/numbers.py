"""The Python numbers of a captured graph: those that an engine has built in, and those it is given.

Beside the captured graph. Where shapes are open, torch hands every float over as a tensor that the
graph reads with ``.item()``, and every int as it is. A number that only meets tensors is an input
of the engine, so that one engine serves all its values; one that a shape or an attribute depends on
is built in. What is computed from numbers alone is computed here, at each call, as Python does it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

Number = int | float | bool

DATA: Any = torch._C._autograd._get_data_attr  # type: ignore[attr-defined]  # torch's own
"""What a graph calls where the code says ``tensor.data``."""

# In these a tensor without dimensions does what a number does: it changes no shape and no dtype.
_OPERATORS = ("add", "sub", "mul", "truediv", "pow", "lt", "le", "gt", "ge")
_METHODS = {f"{name}{ending}" for name in ("add", "sub", "mul", "div") for ending in ("", "_")}
_FUNCTIONS = {
    *(getattr(operator, name) for name in (*_OPERATORS, "iadd", "isub", "imul", "itruediv")),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.pow),
}
# Functions of these take numbers and give one, where the graph says that they do.
_OF_NUMBERS = {"_operator", "builtins", "math", "operator", "torch"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """How a graph uses its numbers.

    ``roots`` are the nodes that stand for a number of the caller's, with the place of its argument;
    ``read`` are the places of those that come as a tensor, ``built_in`` of those that an engine is
    for. ``passed`` are the nodes whose values it takes, ``computed`` all that these are computed
    from, in order, and ``inner`` those that nothing needs any more once they are.
    """

    roots: Mapping[Node, int]
    read: frozenset[int]
    built_in: frozenset[int]
    passed: tuple[Node, ...]
    computed: tuple[Node, ...]
    inner: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], examples: Sequence[object]) -> Self:
        """The numbers among a graph's arguments, which are ``nodes``, with their ``examples``."""
        roots = dict(_roots(nodes, examples))
        places = _places(roots)
        needed = [places[node] for node in places if _is_needed(node, places)]
        built_in = frozenset[int]().union(*needed)
        free = [node for node, found in places.items() if not found <= built_in]
        passed = tuple(node for node in free if any(user not in places for user in node.users))
        return cls(
            roots=roots,
            read=frozenset(at for node, at in roots.items() if node.op == "call_method"),
            built_in=built_in,
            passed=passed,
            computed=_with_sources(passed, places),
            inner=tuple(node for node in free if node not in passed),
        )

    def inputs(self, arguments: Sequence[Any]) -> list[Tensor]:
        """What an engine is passed in a call: a tensor without dimensions for each of ``passed``,
        of float32 or int64.
        """
        values: dict[Node, Any] = {}
        for node in self.computed:
            if node in self.roots:
                values[node] = number(arguments[self.roots[node]])
            else:
                function: Any = node.target
                values[node] = function(*(_value(each, values) for each in node.args))
        return [torch.tensor(values[node], dtype=_dtype(node)) for node in self.passed]

    def run(self, graph: GraphModule, arguments: Sequence[Any], passed: Sequence[Tensor]) -> Any:
        """The outputs of ``graph`` with ``passed`` in the place of the numbers computed here.

        Among ``arguments``, in order, are the numbers that are built in.
        """
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        values: dict[Node, Any] = dict(zip(nodes, arguments, strict=True))
        values |= {node: arguments[at] for node, at in self.roots.items()}
        values |= dict.fromkeys(self.inner) | dict(zip(self.passed, passed, strict=True))
        program = _Program(graph, garbage_collect_values=False)
        return program.run(initial_env=values, enable_io_processing=False)


def _value(argument: Any, values: Mapping[Node, Any]) -> Any:
    return values[argument] if isinstance(argument, Node) else argument


def number(value: Any) -> Any:
    """A number that may have come as a tensor."""
    return value.item() if isinstance(value, Tensor) else value


def _roots(nodes: Sequence[Node], examples: Sequence[object]) -> Iterator[tuple[Node, int]]:
    for at, (node, example) in enumerate(zip(nodes, examples, strict=True)):
        if isinstance(example, int | float | torch.SymInt | torch.SymFloat):
            yield node, at
        elif isinstance(example, Tensor) and _is_read(example, node):
            yield from ((user, at) for user in node.users)


def _is_read(example: Tensor, node: Node) -> bool:
    """Whether all that a graph does with a tensor is to take the one number in it."""
    reads = [_is_method(user, {"item"}) for user in node.users]
    return example.ndim == 0 and bool(reads) and all(reads)


def _places(roots: Mapping[Node, int]) -> dict[Node, frozenset[int]]:
    """Every node whose value follows from numbers of the caller's alone, in the graph's order, and
    the places of these.
    """
    found: dict[Node, frozenset[int]] = {}
    for node in next((each.graph.nodes for each in roots), ()):
        if node in roots:
            found[node] = frozenset({roots[node]})
        elif _is_computed(node) and any(each in found for each in node.args):
            sources = [each for each in node.args if isinstance(each, Node)]
            if all(each in found for each in sources):
                found[node] = _all(found, sources)
    return found


def _all(places: Mapping[Node, frozenset[int]], nodes: Sequence[Node]) -> frozenset[int]:
    return frozenset[int]().union(*(places[node] for node in nodes))


def _is_computed(node: Node) -> bool:
    """Whether a node is a function of numbers that gives one."""
    module = (getattr(node.target, "__module__", None) or "").partition(".")[0]
    plain = all(isinstance(each, Node | Number) for each in node.args) and not node.kwargs
    return (
        node.op == "call_function" and module in _OF_NUMBERS and plain and _dtype(node) is not None
    )


def _with_sources(passed: Sequence[Node], places: dict[Node, frozenset[int]]) -> tuple[Node, ...]:
    wanted = set(passed)
    for node in reversed(places):
        if node in wanted:
            wanted |= {each for each in node.args if isinstance(each, Node) and each in places}
    return tuple(node for node in places if node in wanted)


def _dtype(node: Node) -> torch.dtype | None:
    """How a number is passed; None for what is none."""
    value = node.meta.get("example_value")
    if isinstance(value, bool):
        return None
    if isinstance(value, float | torch.SymFloat):
        return torch.float32
    return torch.int64 if isinstance(value, int | torch.SymInt) else None


# --- what takes a tensor in a number's place ----------------------------------------------------


def _is_needed(node: Node, numbers: Mapping[Node, object]) -> bool:
    """Whether something takes a node's value that would not take a tensor."""
    others = [user for user in node.users if user not in numbers]
    return bool(others) and (
        _dtype(node) is None or not all(_takes_tensor(user, node) for user in others)
    )


def _takes_tensor(user: Node, node: Node) -> bool:
    if user.op == "call_function" and user.target is torch.full:
        return len(user.args) > 1 and user.args[1] is node and node not in _items(user.args[0])
    if user.op == "call_function" and user.target is torch._refs.tensor:
        return all(isinstance(each, Node | Number) for each in _items(user.args[0]))
    known = user.op == "call_function" and user.target in _FUNCTIONS
    if user.kwargs or len(user.args) != 2 or not (known or _is_method(user, _METHODS)):
        return False
    other = user.args[1] if user.args[0] is node else user.args[0]
    value = other.meta.get("example_value") if isinstance(other, Node) else None
    # A whole number's tensor and a float give the default dtype, which the tensor would not.
    # Beside float64, a number that was rounded to float32 would be another one.
    if not isinstance(value, Tensor) or value.dtype in (torch.bool, torch.float64):
        return False
    if value.ndim == 0:
        return False
    return value.is_floating_point() or _dtype(node) == torch.int64


def _is_method(node: Node, names: set[str]) -> bool:
    return node.op == "call_method" and node.target in names


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


class _Program(Interpreter):
    """Runs a graph in which some numbers are tensors, which two functions do not take, and in
    which ``.data`` is read, which no export knows.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is DATA:
            return args[0].detach()
        given = _items(args[0]) if target is torch._refs.tensor else args[1:2]
        if target in (torch.full, torch._refs.tensor) and any(map(_is_tensor, given)):
            return _filled(target, args, **kwargs)
        return super().call_function(target, args, kwargs)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _filled(target: Any, args: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    """A new tensor with the numbers in it that torch.full and torch.tensor would put there."""
    kind = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    values = _items(args[0]) if target is torch._refs.tensor else [args[1]]
    whole = dtype is None and not any(_is_float(each) for each in values)
    kind |= {"dtype": torch.int64} if whole else {}
    tensors = [torch.as_tensor(each).to(**kind) for each in values]
    if target is torch.full:
        return tensors[0].expand(args[0]).clone()
    return torch.stack(tensors) if isinstance(args[0], list | tuple) else tensors[0].clone()


def _is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)
