"""``torch.compile(model, backend="fresco_trt")``: captured graphs as engines, kept on disk.

Beside the data path, for a model that has no stage plan of its own: options, captured graph, engine
cache, runner, one file each. Importing this registers nothing; torch finds ``compile_graph`` by the
package's entry point, or is handed the function itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fresco_trt.compile.counting import Counters, counters

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from fresco_trt.compile.engine import CompiledGraph

__all__ = ["Counters", "compile_graph", "counters"]


def compile_graph(
    graph: GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> CompiledGraph:
    """What torch runs in place of ``graph``: an engine for each set of static shapes and weights.

    A backend of ``torch.compile``, for inference. ``options``: "backend", an engine library
    ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt"; default: torch-tensorrt for a
    model on a GPU where it is installed, else onnxruntime); "cache", the folder of the engine cache
    (default: FRESCO_TRT_CACHE, else fresco-trt in the user's cache folder); "strict", True to raise
    UnsupportedGraph where torch would run a graph itself, with a logged warning.

    Engines are made at the first call with their shapes, and take Python numbers as inputs where
    these only meet tensors; :func:`counters` says how many were built and reused, and what fell
    back, torch's recompile limit included. Raises IncompatibleOptions, which torch wraps in its
    own error.
    """
    from fresco_trt.compile.captured import Captured
    from fresco_trt.compile.engine import CompiledGraph
    from fresco_trt.compile.options import read_options

    return CompiledGraph(Captured.of(graph, examples), read_options(options, mode))
