"""Q/DQ around the products of attention: codes of query, key, value and of what softmax gives.

The part of ``quantize.py`` for recipes with attention. The exporter writes attention as a product,
a softmax and a product, with query and key each multiplied by the root of attention's scale before:
that is the form in which TensorRT fuses attention into one kernel (its guide, "Fused Attention").
Here every operand of the two products gets its ``QuantizeLinear -> DequantizeLinear``, as
nvidia-modelopt's FP8 export does (``export_fp8_mha``), in the graph's own type and with nothing
between it and the product: that is how TensorRT takes a dequantising node into a product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import ExportError
from fresco_trt.lower.quantize.nodes import TINY, Site

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from fresco_trt.bundle.amax import AttentionAmax
    from fresco_trt.plan.recipes import Recipe


def attention_scales(found: AttentionAmax, recipe: Recipe) -> dict[str, float]:
    """Scale of the codes of "query", "key" and "value", one for all stages, and of what "softmax"
    gives, which is at most 1.
    """
    measured = {"query": found.query, "key": found.key, "value": found.value}
    scales = {kind: max(float(each.max()), TINY) / recipe.top for kind, each in measured.items()}
    return {**scales, "softmax": 1.0 / recipe.top}


def quantise_attention(graph: ir.Graph, amax: Mapping[str, AttentionAmax], recipe: Recipe) -> None:
    """Quantise in place every attention of ``amax``, by the path of its module, that the graph
    has. Raises ExportError for one whose products are not found.
    """
    there = {str(node.name).partition("/")[0] for node in graph}
    done = set()
    for node in list(graph):
        path = str(node.name).partition("/")[0]
        if node.op_type == "Softmax" and path in amax:
            _quantise(graph, node, path, attention_scales(amax[path], recipe), recipe)
            done.add(path)
    for path in amax:
        if path in there and path not in done:
            raise _unfit(path, "has no softmax")


def _quantise(
    graph: ir.Graph, softmax: ir.Node, path: str, scales: Mapping[str, float], recipe: Recipe
) -> None:
    """One attention of a module; a module may have several, which share their scales."""
    first, second = _products(softmax, path)
    ending = str(softmax.name).rpartition("Softmax")[2]
    for node, kinds in ((first, ("query", "key")), (second, ("softmax", "value"))):
        for index, kind in enumerate(kinds):
            source = node.inputs[index]
            if source is None or source.dtype is None:
                raise _unfit(path, f"multiplies a {kind} of no known type")
            dtype = source.dtype.numpy()
            site = Site(graph=graph, before=node, path=path, dtype=dtype, recipe=recipe)
            scale = scales[kind] * (_factor(source, path) if node is first else 1.0)
            node.replace_input_with(index, site.rounded(f"{kind}{ending}", source, scale))


def _products(softmax: ir.Node, path: str) -> tuple[ir.Node, ir.Node]:
    """The products before and after a softmax."""
    source, users = softmax.inputs[0], softmax.outputs[0].consumers()
    found = (source.producer() if source is not None else None, *users)
    first, second = found if len(found) == 2 else (None, None)
    if first is None or second is None or {first.op_type, second.op_type} != {"MatMul"}:
        raise _unfit(path, "has a softmax that is not between two matrix products")
    return first, second


def _factor(operand: ir.Value, path: str) -> float:
    """What a query or key was multiplied by after its range was measured."""
    maker = operand.producer()
    constants = () if maker is None or maker.op_type != "Mul" else maker.inputs
    factors = [each.const_value for each in constants if each is not None and each.const_value]
    if len(factors) != 1 or factors[0].size != 1:
        raise _unfit(path, "does not multiply query and key by one number each")
    return float(factors[0].numpy().reshape(()))


def _unfit(path: str, what: str) -> ExportError:
    return ExportError(
        f"{path} {what}",
        expected="query and key, each multiplied by a number; a product, a softmax and a product",
        fix=f"add keep={path} to --precision, and report the model and the version of torch",
    )
