"""What a TensorRT engine is made of, as its own inspector tells: layers, and what they multiply in.

Beside ``run.py``, which has the engine. A build keeps the names and types of its layers
(``ProfilingVerbosity.DETAILED``); what the library fused or chose differs from the graph, so it is
asked, and not the graph.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_WIDTHS = ("fp4", "fp8", "int8", "bf16", "fp16", "fp32")
"""Precisions, the narrowest first."""

# Versions have spelt them as types ("Half") and as sentences ("Row major linear FP16 format").
_SPELLINGS = {
    "fp4": r"fp4|e2m1",
    "fp8": r"fp8|e4m3|float8",
    "int8": r"int8",
    "bf16": r"bf16|bfloat16",
    "fp16": r"fp16|half|float16",
    "fp32": r"fp32|float|single",
}
_PRODUCT = re.compile(r"gemm|matmul|matrix.?multiply|convolution|\bfc\b", re.IGNORECASE)


def engine_information(library: Any, engine: Any, context: Any) -> str | None:
    """The inspector's JSON of an engine in a context; None from a library without an inspector."""
    formats = getattr(library, "LayerInformationFormat", None)
    if formats is None or not hasattr(engine, "create_engine_inspector"):
        return None
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return None
    inspector.execution_context = context  # shapes of the profile that is in use
    return str(inspector.get_engine_information(formats.JSON))


def layer_report(text: str | None) -> dict[str, Any] | None:
    """How many ``layers`` an engine has, and how many of them, and of those that are matrix
    ``products``, compute in which precision. None where the inspector tells no layers.

    A layer computes in the narrowest precision of its inputs. Layers that were kept by name alone
    count as "not told".
    """
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    layers = found.get("Layers") if isinstance(found, Mapping) else None
    if not isinstance(layers, list) or not layers:
        return None
    precisions = Counter(_precision(layer) for layer in layers)
    products = Counter(_precision(layer) for layer in layers if _is_product(layer))
    return {
        "layers": len(layers),
        "precisions": dict(precisions.most_common()),
        "products": dict(products.most_common()),
    }


def _precision(layer: Any) -> str:
    if not isinstance(layer, Mapping):
        return "not told"
    types = [_precision_in(text) for text in _types(layer.get("Inputs"))]
    known = [each for each in types if each is not None]
    return min(known, key=_WIDTHS.index) if known else "not told" if not types else "other"


def _types(tensors: Any) -> Iterable[str]:
    for tensor in tensors if isinstance(tensors, list) else ():
        if isinstance(tensor, Mapping):
            told = tensor.get("Format/Datatype") or tensor.get("Datatype")
            if isinstance(told, str):
                yield told


def _precision_in(text: str) -> str | None:
    lower = text.lower()
    return next((name for name in _WIDTHS if re.search(_SPELLINGS[name], lower)), None)


def _is_product(layer: Any) -> bool:
    if not isinstance(layer, Mapping):
        return False
    told = f"{layer.get('LayerType', '')} {layer.get('TacticName', '')}"
    return _PRODUCT.search(told) is not None
