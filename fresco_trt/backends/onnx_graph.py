"""Whether an ONNX graph of a bundle is one that this package's exporter could have written.

Between a bundle's files and the library that runs them. A graph from anywhere can loop for ever,
take any memory and look into files; the exporter's graphs cannot: they hold a few operators, shapes
that do not change, and weights in files that the bundle lists. What is different in kind is refused
here, from the file's few kilobytes, before the library reads it. Shapes are those that the file
states; the library is told to hold these against what it infers (``strict_shape_type_inference``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ContentInvalid
from fresco_trt.files.canonical_json import quoted

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature

OPERATORS = frozenset(
    (
        "Add",
        "Clip",
        "Concat",
        "Cos",
        "DequantizeLinear",
        "Gelu",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Neg",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceMean",
        "Reshape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    )
)
"""What the exporter and the quantiser write for the models that there are; a test compares."""

MAX_BYTES = 8 * 1024 * 1024
"""A graph of FLUX.1-dev, without its weights, has a tenth of this."""

MAX_NODES = 50_000
MAX_SIDES = 8
"""Of a tensor; the exporter's have five. The product of many more takes minutes to compute."""

NEWEST_OPSET = 20

ONNX_TYPES: Mapping[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "bfloat16": 16,
    "float8_e4m3fn": 17,
}
"""ONNX's number of a type, by torch's name for it."""

_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 16: 2, 17: 1}
_INT64 = ONNX_TYPES["int64"]
_PLAIN_ATTRIBUTES = frozenset((1, 2, 3, 6, 7))  # numbers and texts, and lists of numbers
_EXTERNAL = 1
_PLACE = frozenset(("length", "location", "offset"))


def check_graph(path: Path, signature: GraphSignature, files: tuple[str, ...]) -> None:
    """Raise ContentInvalid unless the graph at ``path`` has ``signature``, and no more than an
    exported one has. ``files`` are the engine's, relative to the graph's folder.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _refused(path, f"has {size} bytes", f"a graph without its weights, {MAX_BYTES} bytes")
    model = _parsed(path)
    sizes = {name: (path.parent / name).stat().st_size for name in files}
    for problem, expected in _problems(model, signature, sizes):
        raise _refused(path, problem, expected)


def check_places(path: Path, files: tuple[str, ...]) -> None:
    """Raise ContentInvalid if any tensor of the graph at ``path``, however deep in it, is read from
    anywhere but ``files``, which are relative to the graph's folder.
    """
    waiting: list[Any] = [_parsed(path)]
    while waiting:
        message = waiting.pop()
        for entry in getattr(message, "external_data", ()):
            if entry.key == "location" and entry.value not in files:
                where = f"has the constant {quoted(message.name)} in {quoted(entry.value)}"
                raise _refused(path, where, ", ".join(files))
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else value


def most_bytes(signature: GraphSignature) -> int:
    """What tensors of a graph may take at once: two matrices of attention's scores for each of 64
    heads, as wide as the signature's longest dimension, and a little.
    """
    longest = max(size for spec in (*signature.inputs, *signature.outputs) for size in spec.shape)
    return 2 * 64 * 4 * longest**2 + 16 * 1024 * 1024


def _parsed(path: Path) -> Any:
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except import_module("google.protobuf.message").DecodeError as error:  # it ships no types
        raise _refused(path, "is no ONNX graph", "a graph as the exporter writes it") from error
    return model


def _refused(path: Path, problem: str, expected: str) -> ContentInvalid:
    return ContentInvalid(
        f"the graph {path.name} {problem}",
        expected=expected,
        fix="do not use this bundle; build it again with 'fresco-trt build'",
    )


# --- what no exported graph has ---------------------------------------------------------------


def _problems(
    model: Any, signature: GraphSignature, sizes: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """What is wrong, each as found and expected, in an order in which one may rely on the last."""
    graph = model.graph
    yield from _foreign_parts(model)
    yield from _foreign_nodes(graph.node)
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        found = [(value.name, *_described(value.type)) for value in values]
        wanted = [(spec.name, ONNX_TYPES[spec.dtype], spec.shape) for spec in specs]
        if found != wanted:
            given = ", ".join(name for name, *_ in found)
            yield f"takes or gives {quoted(given)} in other shapes", ", ".join(map(str, specs))
    for tensor in graph.initializer:
        yield from _tensor_problems(tensor, sizes)
    yield from _flow_problems(graph, signature)


def _foreign_parts(model: Any) -> Iterator[tuple[str, str]]:
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        yield f"has {len(graph.node)} operators", f"at most {MAX_NODES}"
    for what, parts in (
        ("functions", model.functions),
        ("training steps", model.training_info),
        ("sparse weights", graph.sparse_initializer),
        ("quantization annotations", graph.quantization_annotation),
    ):
        if len(parts):
            yield f"has {what}", "a graph without"
    opsets = [(each.domain, each.version) for each in model.opset_import]
    if len(opsets) != 1 or opsets[0][0] or not 1 <= opsets[0][1] <= NEWEST_OPSET:
        yield f"is of the operator sets {quoted(opsets)}", f"ONNX's own, up to {NEWEST_OPSET}"


def _foreign_nodes(nodes: Any) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if node.op_type not in OPERATORS or node.domain:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            yield f"has the operator {quoted(name)}", f"only {', '.join(sorted(OPERATORS))}"
        for each in node.attribute:
            if each.type not in _PLAIN_ATTRIBUTES or each.ref_attr_name:
                given = f"has the attribute {quoted(each.name)} of {node.op_type}"
                yield given, "attributes that are numbers or a text"


def _described(kind: Any) -> tuple[int, tuple[int, ...] | None]:
    """The type and the shape that a TypeProto says; None for a shape that is not static, or is of
    no tensor that the exporter has.
    """
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or len(tensor.shape.dim) > MAX_SIDES:
        return tensor.elem_type, None
    shape = tuple(size.dim_value for size in tensor.shape.dim)
    return tensor.elem_type, shape if all(size > 0 for size in shape) else None


def _tensor_problems(tensor: Any, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """A constant is dense, in the graph or in a listed file, and as long as it says."""
    kind, dims = tensor.data_type, tuple(tensor.dims)
    if kind not in _BYTES or len(dims) > MAX_SIDES or min(dims, default=0) < 0:
        yield f"has the constant {quoted(tensor.name)} of type {kind}", "numbers in a static shape"
        return
    length = prod(dims) * _BYTES[kind]
    if tensor.data_location != _EXTERNAL:
        if len(tensor.raw_data) != length or tensor.external_data:
            given = f"has the constant {quoted(tensor.name)} of {len(tensor.raw_data)} bytes"
            yield given, f"{length} bytes"
        return
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    expected = _other_place(entries, length, sizes)
    if expected is not None:
        yield f"has the constant {quoted(tensor.name)} at {quoted(dict(entries))}", expected


def _other_place(
    entries: list[tuple[str, str]], length: int, sizes: Mapping[str, int]
) -> str | None:
    """What would be right, where ``entries`` are not the place of ``length`` bytes in a file."""
    place = dict(entries)
    if len(place) != len(entries) or place.keys() != _PLACE:
        return f"{', '.join(sorted(_PLACE))}, each once"
    location, offset = place["location"], place["offset"]
    if location not in sizes:
        return f"a place in {', '.join(sorted(sizes))}"
    if not (offset.isdecimal() and place["length"] == str(length)):
        return f"{length} bytes from an offset"
    if len(offset) > 18 or int(offset) + length > sizes[location]:
        return f"a place in {location}"
    return None


def _flow_problems(graph: Any, signature: GraphSignature) -> Iterator[tuple[str, str]]:
    """Values are made once, before they are used, in stated shapes; and what is alive at once is
    no more than an exported graph of the signature takes.
    """
    stated = _stated_bytes((*graph.value_info, *graph.output))
    known = {value.name for value in graph.input} | {each.name for each in graph.initializer}
    if len(known) != len(graph.input) + len(graph.initializer):
        yield "has two inputs or constants of one name", "each name once"
    steps = [(tuple(node.input), tuple(node.output)) for node in graph.node]
    last = {name: index for index, (taken, _) in enumerate(steps) for name in taken}
    last |= {value.name: len(steps) for value in graph.output}
    alive: dict[str, int] = {}
    taken, most = 0, most_bytes(signature)
    for index, (inputs, outputs) in enumerate(steps):
        for name in inputs:
            if name and name not in known:
                yield f"uses {quoted(name)} before it is made", "operators in order"
        for name in filter(None, outputs):
            size = stated.get(name, 0)
            if not size or name in known:
                yield f"has the value {quoted(name)}", "each made once, with a stated static shape"
                return
            known.add(name)
            alive[name] = size
            taken += size
        if taken > most:
            given = f"takes {taken} bytes at {quoted(graph.node[index].name)}"
            yield given, f"at most {most} at once"
            return
        for name in (*inputs, *outputs):
            if name in alive and last.get(name, index) == index:
                taken -= alive.pop(name)


def _stated_bytes(values: Iterable[Any]) -> dict[str, int]:
    """What each value takes by its type, and 0 for one that no operator of the exporter's makes.

    Types of the same bytes are looked at once: a graph has far fewer of them than values, and
    reading one field by field takes most of a check's time.
    """
    sizes: dict[bytes, int] = {}
    stated: dict[str, int] = {}
    for value in values:
        kind = value.type
        spelling = kind.SerializeToString()
        if spelling not in sizes:
            number, shape = _described(kind)
            made = shape is not None and number in _BYTES and number != _INT64
            sizes[spelling] = prod(shape or ()) * _BYTES[number] if made else 0
        stated[value.name] = sizes[spelling]
    return stated
