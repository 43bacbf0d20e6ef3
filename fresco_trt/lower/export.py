"""Stage graphs as ONNX: one data file for all of them, the same bytes every time.

Shapes are static, but for a graph that is to serve several token counts (its profiles).

From the model's module to the file an engine library builds from. Tracing gives a first graph; a
named list of passes, each verified, turns it into the one that is written.
"""

from __future__ import annotations

import ast
import gc
import inspect
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fresco_trt.backends.base import Progress, StageGraph, silent
from fresco_trt.errors import ExportError, error_context
from fresco_trt.files.atomic_file import replacing
from fresco_trt.lower.profiles import Varying, counts, varying
from fresco_trt.lower.rewriting import rewritten, use_kernels
from fresco_trt.lower.tracing import signatures_once, without_stack_traces
from fresco_trt.lower.weights import WeightFile, weight_file
from fresco_trt.plan.signature import GraphSignature, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

    from fresco_trt.lower.quantize.qdq import Quantizer

OPSET = 20
INLINE_BYTES = 1024  # smaller constants stay in the graph: shapes, axes, scales, short biases

Pass: TypeAlias = "Callable[[ir.Model, WeightFile], None]"

NOTHING: Varying = {}

_ROOT = "transformer."
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_stages(
    graphs: Iterable[StageGraph],
    folder: Path,
    *,
    quantizer: Quantizer | None = None,
    progress: Progress = silent,
) -> tuple[StageGraph, ...]:
    """Export every graph to ``<folder>/<name>.onnx`` over one ``<folder>/weights.bin``.

    With a ``quantizer`` the layers that it has amax for are stored as its codes, and the files
    are ``<name>.int8.onnx`` or as the precision is. Returns the graphs with ``onnx`` and
    ``weights`` set. Files are self-consistent only once this returns. Raises ExportError with the
    graph's name in front, OutputNotWritable or DiskFull.
    """
    todo = tuple(graphs)
    done: list[StageGraph] = []
    with weight_file(folder) as weights:
        for index, graph in enumerate(todo):
            progress(f"export {graph.name}", index / len(todo))
            done.append(export_stage(graph, weights, quantizer))
    for graph in done:
        _check_file(graph)
    progress("export", 1.0)
    return tuple(done)


def export_stage(
    graph: StageGraph, weights: WeightFile, quantizer: Quantizer | None = None
) -> StageGraph:
    """Trace one graph, apply :data:`PASSES` and write ``<name>.onnx`` beside ``weights``."""
    first, *others = PASSES
    quantised = () if quantizer is None else (quantizer.quantise,)
    with error_context(f"export of {graph.name}"):
        model = _traced(graph)
        varies = varying(graph.profiles)
        verify(model, graph.signature, after="tracing", varies=varies)
        model.graph.name = graph.name
        for step in (first, *quantised, *others):
            step(model, weights)
            verify(model, graph.signature, after=step.__name__, varies=varies)
        ending = "onnx" if quantizer is None else f"{quantizer.recipe.precision}.onnx"
        path = weights.path.parent / f"{graph.name}.{ending}"
        _write(model, path)
    return replace(graph, onnx=path, weights=weights.path)


# --- tracing ----------------------------------------------------------------------------------


def _traced(graph: StageGraph) -> ir.Model:
    """The exporter's graph for the signature's own shapes, constants folded."""
    import torch

    from fresco_trt.lower.decomposing import decomposed_once

    try:
        with _quiet(), _rarely_collected(), signatures_once(), torch.no_grad():
            exported = torch.onnx.export(
                decomposed_once(rewritten(program_of(graph))),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in graph.signature.inputs],
                output_names=[spec.name for spec in graph.signature.outputs],
                optimize=False,
                verbose=False,
            )
    except (
        Exception
    ) as error:  # the exporter raises whatever the traced code or a decomposition did
        raise _failed(f"the exporter stopped: {_cause(error)}") from error
    if exported is None:
        raise _failed("the exporter returned nothing")
    with _rarely_collected():
        return _folded(exported.model)


def _folded(model: ir.Model) -> ir.Model:
    """Functions inlined, constants folded, what is said twice said once; in place.

    The exporter's own optimisation also tries some twenty rewrites at every node, which is a third
    of an export's time: of 667 nodes of the demo's transformer they save 4, and an engine library
    does the same as it builds.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    passes.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    use_kernels(model)
    for each in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        each(model)
    return model


def program_of(graph: StageGraph) -> ExportedProgram:
    """torch's own program of a graph, for the signature's shapes on the module's device.

    A graph with profiles is open in the dimensions that these vary. Raises whatever the traced
    code raises.
    """
    import torch

    device = next((weight.device for weight in graph.module.parameters()), torch.device("cpu"))
    arguments = tuple(_example(spec, device) for spec in graph.signature.inputs)
    with without_stack_traces(), torch.no_grad():
        return torch.export.export(
            graph.module, arguments, dynamic_shapes=_open_dimensions(graph), strict=False
        )


def _open_dimensions(graph: StageGraph) -> dict[str, Any] | None:
    """What torch takes: by argument, the symbol of each axis that varies; None for no profiles."""
    from torch.export import Dim

    varies = varying(graph.profiles)
    if not varies:
        return None
    found = counts(graph.profiles, varies)
    count: Any = Dim("count", min=min(found), max=max(found))
    axes = (varies.get(spec.name, {}) for spec in graph.signature.inputs)
    symbols = [
        {axis: count + more if more else count for axis, more in each.items()} for each in axes
    ]
    return inspect.signature(graph.module.forward).bind(*symbols).arguments


def _example(spec: TensorSpec, device: torch.device) -> Any:
    """Values do not matter to a trace, shapes do; ones avoid dividing by zero while folding."""
    import torch

    return torch.ones(spec.shape, dtype=getattr(torch, spec.dtype), device=device)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs optional packages it lacks and warns of its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """A trace makes millions of objects, few of them in circles that nothing else refers to:
    looking for such was 6 to 8% of it.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


# --- passes -----------------------------------------------------------------------------------


def name_by_module(model: ir.Model, weights: WeightFile) -> None:
    """Name nodes and weights after the module they come from, as diffusers names it.

    ``x_embedder/MatMul`` instead of ``node_MatMul_1``: profiles, parser errors and quantisation
    recipes can then be read. A weight that the exporter stored transposed ends in ``.weight.T``.
    """
    used: Counter[str] = Counter()
    for node in model.graph:
        path = _module_path(node)
        _name_weight(model, node, path)
        stem = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{stem}_{used[stem]}" if used[stem] else stem
        used[stem] += 1
    for value in list(model.graph.initializers.values()):
        value.name = _unprefixed(value.name)


def strip_provenance(model: ir.Model, weights: WeightFile) -> None:
    """Drop stack traces, machine paths and tool versions: equal models get equal bytes."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    for part in (model, graph, *graph, *values):
        part.metadata_props.clear()
        part.doc_string = None
    model.producer_name, model.producer_version = "fresco-trt", None


def share_weights(model: ir.Model, weights: WeightFile) -> None:
    """Move every constant of a kilobyte or more to the data file shared by all graphs."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE_BYTES:
            continue
        offset, length = weights.place(tensor.tobytes())
        value.const_value = ir.ExternalTensor(
            weights.path.name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape),
            name=name,
            base_dir=weights.path.parent,
        )


PASSES: tuple[Pass, ...] = (name_by_module, strip_provenance, share_weights)


def _module_path(node: ir.Node) -> str:
    """Path of the module a node was traced in, without the wrapper's own attribute."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
    return _unprefixed(f"{scopes[-2]}.").rstrip(".") if len(scopes) > 1 else ""


def _unprefixed(name: str | None) -> str:
    return (name or "").removeprefix(_ROOT)


def _name_weight(model: ir.Model, node: ir.Node, path: str) -> None:
    """Constant folding renames a transposed weight to ``val_78``; give it its name back."""
    names = model.graph.initializers
    operand = node.inputs[1] if node.op_type == "MatMul" else None
    if operand is None or operand.name not in names or f"{path}.weight.T" in names:
        return
    if str(operand.name).startswith("val_"):
        operand.name = f"{path}.weight.T"


# --- verification -----------------------------------------------------------------------------


def verify(
    model: ir.Model, signature: GraphSignature, *, after: str, varies: Varying = NOTHING
) -> None:
    """Raise ExportError unless the graph has the signature, is static but for what ``varies``, and
    uses plain ONNX.
    """
    problem = next(_problems(model, signature, varies), None)
    if problem is not None:
        raise _failed(f"after {after}, {problem}")


def _problems(model: ir.Model, signature: GraphSignature, varies: Varying) -> Iterator[str]:
    graph = model.graph
    for values, specs in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
        found, wanted = _texts(values), [_wanted(spec, varies) for spec in specs]
        if found != wanted:
            yield f"the graph has {found} where the signature has {wanted}"
    for node in graph:
        if node.domain:
            yield f"{node.name} is no plain ONNX operator: {node.domain}.{node.op_type}"
        for value in node.outputs:
            if value.shape is None or not (varies or value.shape.is_static()):
                yield f"{value.name} of {node.name} has no static shape: {value.shape}"
    for name, value in graph.initializers.items():
        if value.name != name or value.const_value is None:
            yield f"the constant {name} has no value"


def _wanted(spec: TensorSpec, varies: Varying) -> str:
    """A tensor as :func:`_texts` writes it, with a star for an axis that varies."""
    open_axes = varies.get(spec.name, {})
    sizes = ["*" if axis in open_axes else str(size) for axis, size in enumerate(spec.shape)]
    return f"{spec.name} {spec.dtype}[{','.join(sizes)}]"


def _texts(values: Iterable[ir.Value]) -> list[str]:
    names = {"float": "float32"}
    texts = []
    for value in values:
        dtype = value.dtype.name.lower() if value.dtype is not None else "untyped"
        sizes = ["?"] if value.shape is None else [_size_text(size) for size in value.shape]
        texts.append(f"{value.name} {names.get(dtype, dtype)}[{','.join(sizes)}]")
    return texts


def _size_text(size: Any) -> str:
    return str(size) if isinstance(size, int) else "*"


# --- files ------------------------------------------------------------------------------------


def _write(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    data = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def _check_file(graph: StageGraph) -> None:
    """onnx's own checker with strict shape inference, on the file as an engine library reads it."""
    import onnx

    with error_context(f"export of {graph.name}"):
        try:
            onnx.checker.check_model(str(graph.onnx), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _failed(f"the file is no valid ONNX: {' '.join(str(error).split())}") from error


def _cause(error: BaseException) -> str:
    """What first went wrong, and at which operator: the exporter wraps it in advice of its own."""
    operators = re.findall(r"target=torch\.ops\.([\w.]+)\]", str(error))
    while error.__cause__ is not None:
        error = error.__cause__
        operators = operators or re.findall(r"target=torch\.ops\.([\w.]+)\]", str(error))
    where = f"{operators[0]}: " if operators else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _failed(given: str) -> ExportError:
    return ExportError(
        given,
        expected=f"an ONNX graph (opset {OPSET}) with the signature's tensors and shapes",
        fix="report this model and the versions of torch and onnxscript, or pass --backend eager",
    )
