"""What torch's exporter writes wrongly, or not at all, said otherwise.

On both sides of the exporter: rules for torch's program, and a pass over its ONNX graph. A rule
names an operator, when it applies, and what is computed in its place: an operator on complex
numbers as the same one on pairs of real numbers, attention in the layout that the exporter knows,
with torch's zeros where all keys are masked. What no rule applies to stays as it is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node


@dataclass(frozen=True, slots=True)
class _Rule:
    """``instead`` takes an operator's own arguments, where these make that ``applies`` is true."""

    applies: Callable[..., bool]
    instead: Callable[..., Any]


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """``program`` with every rule applied; it is changed in place."""
    rules, graph = _rules(), program.graph_module.graph
    known = [node for node in graph.nodes if node.op == "call_function" and node.target in rules]
    found = [node for node in known if _applies(rules[node.target], node)]
    for node in found:
        _replace(node, rules[node.target].instead)
    if found:
        outputs: Any = graph.output_node().args[0]
        for spec, output in zip(program.graph_signature.output_specs, outputs, strict=True):
            spec.arg.name = output.name
        program.graph_module.recompile()
    return program


def _applies(rule: _Rule, node: Node) -> bool:
    args, kwargs = _values(node)
    return rule.applies(*args, **kwargs) and not _hides_by_degrees(node)


def _values(node: Node) -> Any:
    """The arguments of a node as they were in the trace, tensors without values among them."""
    from torch.fx.node import map_arg

    return map_arg((node.args, node.kwargs), lambda each: each.meta["val"])


def _replace(node: Node, instead: Callable[..., Any]) -> None:
    """Put what ``instead`` computes in the place of ``node``."""
    from torch.fx import Node
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._pytree import tree_flatten, tree_unflatten

    given, layout = tree_flatten((node.args, node.kwargs))
    values, _ = tree_flatten(_values(node))
    places = [at for at, each in enumerate(given) if isinstance(each, Node)]

    def function(*inputs: Any) -> Any:
        leaves = [*values]
        for at, each in zip(places, inputs, strict=True):
            leaves[at] = each
        args, kwargs = tree_unflatten(leaves, layout)
        return instead(*args, **kwargs)

    part = make_fx(function, pre_dispatch=True)(*(values[at] for at in places)).graph
    inputs = part.find_nodes(op="placeholder")
    with node.graph.inserting_before(node):
        known = {each: given[at] for each, at in zip(inputs, places, strict=True)}
        made: Any = node.graph.graph_copy(part, known)
    if isinstance(made, list | tuple):
        for user in [each for each in node.users if each.target is operator.getitem]:
            index: Any = user.args[1]
            user.replace_all_uses_with(made[index])
            node.graph.erase_node(user)
    else:
        node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def _rules() -> dict[Any, _Rule]:
    import torch

    aten = torch.ops.aten
    moves = {
        aten.chunk.default: _on_pairs(aten.chunk.default, 2),
        aten.split.Tensor: _on_pairs(aten.split.Tensor, 2),
        aten.split_with_sizes.default: _on_pairs(aten.split_with_sizes.default, 2),
        aten.select.int: _on_pairs(aten.select.int, 1),
        aten.unsqueeze.default: _on_pairs(aten.unsqueeze.default, 1, more=1),
        aten.index.Tensor: _on_pairs(aten.index.Tensor),
        aten.expand.default: _on_pairs(aten.expand.default, ends=[2]),
        aten.repeat.default: _on_pairs(aten.repeat.default, ends=[1]),
        aten.mul.Scalar: _on_pairs(aten.mul.Scalar),
    }
    return moves | {
        aten.squeeze.dim: _Rule(_is_wider, lambda x, dim: x.clone()),
        aten.scaled_dot_product_attention.default: _Rule(_is_unusual, _attention),
        aten.copy_.default: _Rule(_is_smaller, lambda x, y, *_: x.copy_(y.expand(x.shape))),
        aten.repeat_interleave.self_int: _Rule(_is_static, _repeated),
        aten.repeat_interleave.self_Tensor: _Rule(_has_size, _selected),
    }


# --- complex numbers ----------------------------------------------------------------------------


def _on_pairs(
    function: Any, place: int | None = None, *, more: int = 0, ends: Sequence[int] = ()
) -> _Rule:
    """An operator that moves complex numbers, or scales them, as one on their parts.

    ``place`` is the argument that is an axis, counted in a tensor of ``more`` axes than the first
    argument has; ``ends`` is what a list of sizes needs for the axis of the parts.
    """

    def applies(x: Tensor, *rest: Any, **_: Any) -> bool:
        return x.is_complex() and not any(isinstance(each, complex) for each in rest)

    def instead(x: Tensor, *rest: Any, **kwargs: Any) -> Any:
        import torch

        args = [*rest]
        if place is not None:
            axis = args[place - 1] if len(args) >= place else 0
            args[place - 1 : place] = [axis % (x.ndim + more)]
        if ends:
            args[0] = [*args[0], *ends]
        made = function(torch.view_as_real(x), *args, **kwargs)
        if isinstance(made, list | tuple):
            return [torch.view_as_complex(each) for each in made]
        return torch.view_as_complex(made)

    return _Rule(applies, instead)


# --- shapes -------------------------------------------------------------------------------------


def _is_wider(x: Tensor, dim: int) -> bool:
    """Whether there is nothing to squeeze, which torch lets pass and ONNX does not."""
    return x.ndim > 0 and isinstance(x.shape[dim], int) and x.shape[dim] != 1


def _is_smaller(x: Tensor, y: Tensor, *_: Any) -> bool:
    """Whether a copy spreads what it copies, which the exporter forgets."""
    return x.shape != y.shape


def _is_static(x: Tensor, repeats: int, *_: Any, **__: Any) -> bool:
    return all(isinstance(each, int) for each in (repeats, *x.shape))


def _repeated(x: Tensor, repeats: int, dim: int | None = None, **_: Any) -> Tensor:
    """Each slice of ``x`` along an axis ``repeats`` times, which the exporter does wrongly along
    the first one.
    """
    x, dim = (x.flatten(), 0) if dim is None else (x, dim % x.ndim)
    shape = [*x.shape]
    more = [*shape[: dim + 1], repeats, *shape[dim + 1 :]]
    shape[dim] *= repeats
    return x.unsqueeze(dim + 1).expand(more).reshape(shape)


def _has_size(*_: Any, output_size: int | None = None) -> bool:
    return isinstance(output_size, int)


def _selected(x: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int) -> Tensor:
    """Each slice of ``x`` along an axis as often as ``repeats`` says, which is known to give
    ``output_size``: at each place, the slice whose number is how many have ended there.
    """
    import torch

    x, dim = (x.flatten(), 0) if dim is None else (x, dim)
    ends = repeats.cumsum(0)
    places = torch.arange(output_size, dtype=ends.dtype, device=ends.device)
    return x.index_select(dim, (ends[None, :] <= places[:, None]).sum(1))


# --- attention ----------------------------------------------------------------------------------


def _hides_by_degrees(node: Node) -> bool:
    """Whether a node is attention of the usual axes whose mask is clamped to finite numbers: such a
    mask leaves every query its keys, and the exporter adds it as it is.
    """
    import torch
    from torch.fx import Node

    aten = torch.ops.aten
    if node.target != aten.scaled_dot_product_attention.default:
        return False
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if not (isinstance(mask, Node) and mask.target == aten.clamp.default):
        return False
    least: Any = mask.args[1] if len(mask.args) > 1 else mask.kwargs.get("min")
    sides: list[Any] = [each.meta["val"].ndim for each in (node.args[0], mask)]  # type: ignore[union-attr]
    return isinstance(least, int | float) and math.isfinite(least) and sides == [4, 4]


def _is_unusual(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **__: Any
) -> bool:
    """Whether attention has other axes than batch, heads, tokens and channels, or a mask."""
    sizes = (*query.shape, *key.shape, *value.shape)
    other = query.ndim != 4 or attn_mask is not None
    return other and all(isinstance(each, int) for each in sizes)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    """Attention of [B,H,N,D], as torch gives it: 0 for a query all of whose keys are masked."""
    import torch

    untyped: Any = torch
    shape = (*query.shape[:-1], value.shape[-1])
    if attn_mask is not None and query.ndim > 4:
        lead = untyped.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        attn_mask = attn_mask.expand(*lead, query.shape[-2], key.shape[-2])
    q, k, v, mask = (_four(each) for each in (query, key, value, attn_mask))
    found: Tensor = torch.ops.aten.scaled_dot_product_attention.default(
        q, k, v, mask, *rest, **more
    )
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask != -math.inf
        found = torch.where(seen.any(-1, keepdim=True), found, 0.0)
    return found.reshape(shape)


def _four(tensor: Tensor | None) -> Any:
    """A tensor of at least two axes with four."""
    if tensor is None or tensor.ndim == 4:
        return tensor
    if tensor.ndim < 4:
        return tensor.reshape((1,) * (4 - tensor.ndim) + tuple(tensor.shape))
    return tensor.flatten(0, tensor.ndim - 4)


# --- the ONNX graph -----------------------------------------------------------------------------


def use_kernels(model: ir.Model) -> None:
    """Choose between booleans, or short integers, as int32, in place, and add booleans as logic:
    ONNX Runtime has no ``Where`` of such on a CPU, and ONNX no sum.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        kind = node.outputs[0].dtype
        if node.op_type == "Add" and kind == ir.DataType.BOOL:
            node.op_type = "Or"
        elif node.op_type == "Where" and kind in (ir.DataType.BOOL, ir.DataType.INT16):
            condition, yes, no = node.inputs
            whole = [_after("Cast", [each], each, to=ir.DataType.INT32) for each in (yes, no)]
            found = _after("Where", [condition, *whole], node.outputs[0])
            result = _after("Cast", [found], found, to=kind)
            made = [each.producer() for each in (*whole, found, result)]
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], made, node.outputs, [result]
            )


def _after(kind: str, inputs: Sequence[Any], like: Any, **attributes: Any) -> Any:
    """The result of a new node on whole numbers, in the shape of ``like``."""
    import onnx_ir as ir

    value = ir.node(kind, inputs, attributes).outputs[0]
    value.dtype, value.shape = ir.DataType.INT32, like.shape
    return value
