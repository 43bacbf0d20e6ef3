"""Bundles whose ONNX graphs are none that the exporter writes, with right digests.

Each maker takes an honest bundle of ONNX Runtime engines and changes its first engine in place.
Every one of these graphs loads in the library, or made it hang, fill the memory or die.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.hostile.digests import make_right, manifest_of, replaced

Change = Callable[[Any], None]

MUCH = 2**30
MANY = 400


def changed(change: Change) -> Callable[[Path], None]:
    """A maker that changes the first engine's graph by ``change``, which has the maker's name."""

    def make(folder: Path) -> None:
        path = first_graph(folder)
        model = onnx.load(str(path), load_external_data=False)
        change(model)
        replaced(path, model.SerializeToString())
        make_right(folder)

    make.__name__ = change.__name__
    make.__doc__ = change.__doc__
    return make


def first_graph(folder: Path) -> Path:
    """The ONNX file of the first engine."""
    files: list[str] = manifest_of(folder)["engines"][0]["files"]
    return folder / next(name for name in files if name.endswith(".onnx"))


def _hooked(model: Any, *nodes: Any, shape: tuple[int, ...] = (1,)) -> None:
    """Put nodes in front of all others; the last one gives ``bomb``, stated as of ``shape``."""
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend((*nodes, *rest))
    model.graph.value_info.append(helper.make_tensor_value_info("bomb", TensorProto.FLOAT, shape))


def _constant(model: Any, name: str, values: list[Any], kind: int = TensorProto.INT64) -> str:
    made = helper.make_tensor(name, kind, [len(values)], values)
    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(made), name)
    model.graph.initializer.append(raw)
    return name


# --- operators that no exported graph has -----------------------------------------------------


@changed
def loop(model: Any) -> None:
    """A loop of 2^62 turns."""
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [1])
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, [1])
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["after"]),
         helper.make_node("Identity", ["go"], ["still"])],
        "body", [turn, go, state], [still, after],
    )  # fmt: skip
    often = _constant(model, "often", [2**62])
    start = _constant(model, "start", [1.0], TensorProto.FLOAT)
    _hooked(model, helper.make_node("Loop", [often, "", start], ["bomb"], body=body))


@changed
def functions(model: Any) -> None:
    """Thirty functions, each of which calls the one before twice: 2^30 operators."""
    domain = helper.make_opsetid("", 20), helper.make_opsetid("own", 1)
    for index in range(30):
        call = ("", "Neg") if index == 0 else ("own", f"f{index - 1}")
        nodes = [
            helper.make_node(call[1], [source], [target], domain=call[0])
            for source, target in (("x", "y"), ("y", "z"))
        ]
        made = helper.make_function("own", f"f{index}", ["x"], ["z"], nodes, list(domain))
        model.functions.append(made)
    model.opset_import.append(domain[1])
    start = _constant(model, "start", [1.0], TensorProto.FLOAT)
    _hooked(model, helper.make_node("f29", [start], ["bomb"], domain="own"))


@changed
def constant_of_shape(model: Any) -> None:
    """Four gigabytes of zeros from eight bytes."""
    shape = _constant(model, "much", [MUCH])
    _hooked(model, helper.make_node("ConstantOfShape", [shape], ["bomb"]), shape=(MUCH,))


@changed
def expand(model: Any) -> None:
    """One number, 2^30 times."""
    shape, start = _constant(model, "much", [MUCH]), _constant(model, "one", [1.0], 1)
    _hooked(model, helper.make_node("Expand", [start, shape], ["bomb"]), shape=(MUCH,))


@changed
def tile(model: Any) -> None:
    """The same by another name."""
    shape, start = _constant(model, "much", [MUCH]), _constant(model, "one", [1.0], 1)
    _hooked(model, helper.make_node("Tile", [start, shape], ["bomb"]), shape=(MUCH,))


@changed
def counting(model: Any) -> None:
    """The numbers up to 2^30."""
    for name, value in (("low", 0.0), ("high", float(MUCH)), ("step", 1.0)):
        scalar = onnx.numpy_helper.from_array(np.float32(value), name)
        model.graph.initializer.append(scalar)
    _hooked(model, helper.make_node("Range", ["low", "high", "step"], ["bomb"]), shape=(MUCH,))


@changed
def custom_domain(model: Any) -> None:
    """An operator of another library."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    start = _constant(model, "start", [1.0], TensorProto.FLOAT)
    _hooked(model, helper.make_node("Gelu", [start], ["bomb"], domain="com.microsoft"))


# --- operators that it has, in sizes that it has not ------------------------------------------


@changed
def doubled(model: Any) -> None:
    """A tensor joined with itself 28 times: a gigabyte, in honest shapes."""
    name, nodes = _constant(model, "start", [1.0], TensorProto.FLOAT), []
    for index in range(1, 29):
        target = "bomb" if index == 28 else f"twice{index}"
        nodes.append(helper.make_node("Concat", [name, name], [target], axis=0))
        stated = helper.make_tensor_value_info(target, TensorProto.FLOAT, [2**index])
        if target != "bomb":
            model.graph.value_info.append(stated)
        name = target
    _hooked(model, *nodes, shape=(2**28,))


@changed
def understated(model: Any) -> None:
    """An outer product of two long vectors, said to be small."""
    long = _constant(model, "long", [1.0] * 20_000, TensorProto.FLOAT)
    for name, shape in (("row", [1, -1]), ("column", [-1, 1])):
        _constant(model, f"{name}.shape", shape)
    nodes = []
    for name, dims in (("row", [1, 20_000]), ("column", [20_000, 1])):
        nodes.append(helper.make_node("Reshape", [long, f"{name}.shape"], [name]))
        stated = helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        model.graph.value_info.append(stated)
    _hooked(model, *nodes, helper.make_node("Mul", ["row", "column"], ["bomb"]), shape=(2, 2))


@changed
def computed_shape(model: Any) -> None:
    """A shape that an operator makes, which nobody can tell before it runs."""
    one = _constant(model, "one", [1])
    model.graph.value_info.append(helper.make_tensor_value_info("made", TensorProto.INT64, [1]))
    start = _constant(model, "start", [1.0], TensorProto.FLOAT)
    _hooked(model, helper.make_node("Mul", [one, one], ["made"]),
            helper.make_node("Reshape", [start, "made"], ["bomb"]))  # fmt: skip


@changed
def unstated(model: Any) -> None:
    """A value of a shape that nobody says."""
    first = model.graph.node[0].output[0]
    index = [value.name for value in model.graph.value_info].index(first)
    del model.graph.value_info[index]


@changed
def open_input(model: Any) -> None:
    """An input that takes any number of tokens."""
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "many"


@changed
def other_output(model: Any) -> None:
    """An output of another shape than the manifest says."""
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1


@changed
def other_type(model: Any) -> None:
    """An output of another type than the manifest says."""
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@changed
def many_sides(model: Any) -> None:
    """A value of so many sides that their product has thousands of digits."""
    stated = helper.make_tensor_value_info("", TensorProto.FLOAT, [2**62] * MANY)
    first = model.graph.node[0].output[0]
    value = next(each for each in model.graph.value_info if each.name == first)
    value.type.CopyFrom(stated.type)


# --- weights ----------------------------------------------------------------------------------


@changed
def constant_of_many_sides(model: Any) -> None:
    """The same of a constant."""
    tensor = next(each for each in model.graph.initializer if each.raw_data)
    tensor.dims[:] = [2**62] * MANY


@changed
def outside(model: Any) -> None:
    """Weights in a file that the bundle has not."""
    _stored(model)["location"].value = "../weights.bin"


@changed
def beyond(model: Any) -> None:
    """Weights behind the end of their file."""
    _stored(model)["offset"].value = str(2**40)


@changed
def shorter(model: Any) -> None:
    """A constant of a gigabyte over a few bytes."""
    tensor = next(each for each in model.graph.initializer if each.raw_data)
    tensor.dims[:] = [MUCH]


@changed
def sparse(model: Any) -> None:
    """Four gigabytes of zeros and one number."""
    made = model.graph.sparse_initializer.add()
    made.dims.append(MUCH)
    made.values.CopyFrom(helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0]))
    made.indices.CopyFrom(helper.make_tensor("at", TensorProto.INT64, [1], [0]))


def _stored(model: Any) -> dict[str, Any]:
    tensor = next(each for each in model.graph.initializer if each.external_data)
    return {entry.key: entry for entry in tensor.external_data}


# --- files ------------------------------------------------------------------------------------


def no_graph(folder: Path) -> None:
    """Bytes that are no graph."""
    replaced(first_graph(folder), b"\xff" * 1000)
    make_right(folder)


def large(folder: Path) -> None:
    """A graph file of nine megabytes."""
    path = first_graph(folder)
    replaced(path, path.read_bytes() + b"\x32" + b"\x80\x80\xc0\x04" + b"x" * 9 * 1024 * 1024)
    make_right(folder)


def swapped(folder: Path) -> None:
    """Two engines, each with the other's files."""
    told = manifest_of(folder)
    first, last = told["engines"][0], told["engines"][-1]
    first["files"], last["files"] = last["files"], first["files"]
    make_right(folder, told)


MAKERS: tuple[Callable[[Path], None], ...] = (
    loop, functions, constant_of_shape, expand, tile, counting, custom_domain, doubled, understated,
    computed_shape, unstated, open_input, other_output, other_type, many_sides,
    constant_of_many_sides, outside, beyond, shorter, sparse, no_graph, large, swapped,
)  # fmt: skip
