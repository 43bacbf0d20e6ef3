"""One hostile change of an honest bundle, drawn from a seed, with right digests.

The changes are generic: any value of any JSON file, any bytes of any file, any tensor of a weights
file, any node of a graph, any file where none should be. ``changed`` says in a few words what was
done, and whether a picture that is drawn otherwise afterwards was accepted wrongly.

A bundle belongs to whoever wrote it, and no check can tell its weights from other weights. So a
change of *values* (numbers of the weights, of a plan, of a configuration; the words of a tokenizer)
may draw another picture, and always the same one. What *matters* are the others: tensors, keys and
files that are left out, renamed, retyped, reshaped or added, engines of another stage, and labels
of the manifest that say something else of what is the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile import configs, reports, sizes, weights
from tests.hostile.digests import MANIFEST, make_right, manifest_of, replaced, sealed
from tests.hostile.weights import part_of

OUTSIDE = "outside"
"""The folder beside the bundle that nothing may read: the canary of escapes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, and whether to draw otherwise afterwards is a wrong accept."""

    kind: str
    said: str
    matters: bool


Maker = Callable[[Path, Random], Change | None]
"""Changes a bundle in place; None where it has nothing of the kind."""


def changed(folder: Path, seed: int) -> Change:
    """Change the bundle at ``folder``, which may be a copy by hard links, with right digests."""
    random = Random(seed)
    while True:
        maker = random.choices(_MAKERS, _WEIGHTS)[0]
        change = maker(folder, random)
        if change is not None:
            return change


# --- JSON -------------------------------------------------------------------------------------

_WORDS = (
    "",
    "\x1b]52;c;aGVsbG8=\x07",
    "\u202egnp.exe\u202c",
    "two\nlines\r",
    "\ud800",
    "nul\x00byte",
    "x" * 5_000,
    f"../{OUTSIDE}/model.safetensors",
    f"../../{OUTSIDE}/model.safetensors",
    "/proc/self/environ",
    "/dev/zero",
    "ZooTransformer2DModel",
    "os.system",
    "float16",
    "cuda",
    "{{ 7 * 7 }}",
    "stage2.full",
)
_NUMBERS = (0, -1, 1, 2, 10**6, 10**9, 2**31, 2**63, 10**17, -(2**63), 1e-300, 1e308, -1.5, 0.5)
_OTHERS = (None, True, False, [], {}, [None], {"": {}}, [[[[[]]]]], list(range(1000)))


def _values(random: Random, value: object) -> object:
    """What is put in the place of a value: another of its kind, or anything."""
    if random.random() < 0.4 and isinstance(value, int | float) and not isinstance(value, bool):
        return random.choice((value + 1, value * 2, -value, value / 2, value * 10**6))
    choice = random.random()
    if choice < 0.35:
        return random.choice(_WORDS)
    if choice < 0.7:
        return random.choice(_NUMBERS)
    if choice < 0.95:
        return random.choice(_OTHERS)
    return _deep(random.choice((20, 40, 900, 5_000)))


def _deep(levels: int) -> object:
    found: object = 0
    for _ in range(levels):
        found = [found]
    return found


_UNKNOWN: tuple[tuple[str, object], ...] = (
    ("auto_map", {"AutoTokenizer": ["hostile.Hostile", None], "AutoModel": "hostile.Hostile"}),
    ("_name_or_path", f"../{OUTSIDE}"),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("dtype", "float16"),
    ("torch_dtype", "bfloat16"),
    ("tokenizer_class", "HostileTokenizer"),
    ("vocab_file", f"../{OUTSIDE}/vocab.json"),
    ("tokenizer_file", f"../{OUTSIDE}/tokenizer.json"),
    ("chat_template", "{{ raise_exception('x') }}"),
    ("attn_implementation", "flash_attention_2"),
    ("gguf_file", f"../{OUTSIDE}/x.gguf"),
    ("transformers_weights", f"../../{OUTSIDE}/model.safetensors"),
    ("adapter_path", f"../{OUTSIDE}"),
    ("is_decoder", True),
    ("output_attentions", True),
    ("return_dict", False),
    ("use_cache", True),
    ("tie_word_embeddings", False),
    ("\x1b[2J", 1),
)


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key or index of it; large ones in part."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict | list):
            keys = list(found) if isinstance(found, dict) else range(min(len(found), 8))
            for key in keys:
                yield found, key
                waiting.append(found[key])


def _edited(random: Random, told: Any) -> tuple[str, bool]:
    """Change one place of a JSON value; what was done, and whether more than a value was."""
    places = list(_places(told))
    holder, key = random.choice(places)
    name, before = repr(key)[:40], holder[key]
    action = random.random()
    if action < 0.6:
        holder[key] = after = _values(random, before)
        same = type(after) is type(before) or {type(after), type(before)} <= {int, float}
        return f"{name}: {_short(before)} -> {_short(after)}", not same
    if action < 0.75:
        del holder[key]
        return f"{name} left out", True
    if action < 0.9:
        added, value = random.choice(_UNKNOWN)
        inside = random.choice([told, holder])
        if not isinstance(inside, dict):
            inside = told
        inside.setdefault(added, value)
        return f"{added!r} added", True
    other, at = random.choice(places)
    if _holds(before, other) or _holds(other[at], holder):
        other, at = holder, key
    holder[key], other[at] = other[at], holder[key]
    numbers = all(type(each) in (int, float) for each in (holder[key], other[at]))
    return f"{name} exchanged with {at!r}", not numbers


def _holds(value: object, container: object) -> bool:
    return value is container or any(holder is container for holder, _ in _places(value))


def _short(value: object) -> str:
    try:
        text = ascii(value)
    except RecursionError:
        text = "a deep one"
    return text if len(text) <= 40 else f"{text[:37]}..."


def json_value(folder: Path, random: Random) -> Change | None:
    """One place of a JSON file of the pipeline or the transformer."""
    return _json_value(folder, random.choice(_files(folder, ".json")), random)


def component_setting(folder: Path, random: Random) -> Change | None:
    """One place of what an encoder, a tokenizer or the decoder is configured by."""
    paths = [
        *configs.CONFIGS,
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json",
    ]
    return _json_value(folder, part_of(folder, random.choice(paths)), random)


def component_attack(folder: Path, random: Random) -> Change | None:
    """A setting, a token or a type of numbers that no part has."""
    said = random.choice(list(_ATTACKS))
    _ATTACKS[said](folder)
    make_right(folder)
    return Change("component", ascii(said), True)


_ATTACKS = configs.DOORS | weights.RETYPED


def _json_value(folder: Path, path: Path, random: Random) -> Change:
    told = json.loads(path.read_bytes())
    said, structure = _edited(random, told)
    replaced(path, _written(told))
    make_right(folder)
    # A tokenizer is words all through: one that lacks some is another tokenizer.
    matters = structure and not path.name.startswith("tokenizer")
    return Change("json value", f"{_name(folder, path)} {said}", matters)


def json_bytes(folder: Path, random: Random) -> Change | None:
    """A JSON file that is none, or none that anybody wrote."""
    path = random.choice(_files(folder, ".json"))
    text = path.read_bytes()
    content = random.choice(
        (
            b"", b"null", b"[]", b"{}", b'"text"', b"7", b"\xff\xfe{}", b"\xef\xbb\xbf" + text,
            text + text, text.replace(b"{", b'{"a": NaN, ', 1), b"[" * 200_000,
            b'{"a":' * 100_000, text.replace(b"{", b'{"_class_name": "A", "_class_name": "B", ', 1),
            b"{" + b'"a": 1, ' * 100_000 + text.lstrip()[1:], text.decode().encode("utf-16"),
            b"1" * 100_000,
        )
    )  # fmt: skip
    replaced(path, content)
    make_right(folder)
    return Change("json bytes", f"{_name(folder, path)}: {content[:20]!r}", content[:1] != b"{")


def manifest_value(folder: Path, random: Random) -> Change | None:
    """One place of the manifest, which is sealed again."""
    told = manifest_of(folder)
    part = random.choice([key for key in told if key not in ("files", "digest")])
    holder = {part: told[part]} if random.random() < 0.8 else told
    said, _ = _edited(random, holder)
    told |= holder
    if part not in holder:
        del told[part]
    try:
        replaced(folder / MANIFEST, sealed(told))
    except (ValueError, RecursionError):
        return None
    return Change("manifest", f"{part}: {said}", part != "plan")


def _written(told: object) -> bytes:
    try:
        return json.dumps(told).encode()
    except RecursionError:
        return b'{"deep":' * 50_000


# --- bytes ------------------------------------------------------------------------------------


def file_bytes(folder: Path, random: Random) -> Change | None:
    """Some bytes of any file but the manifest: cut, added, zeroed, turned over."""
    path = random.choice(_files(folder))
    data = bytearray(path.read_bytes())
    at, length = random.randrange(len(data) + 1), random.choice((1, 8, 100, 5_000))
    kind = random.choice(("cut", "longer", "zeroed", "turned", "random", "large"))
    if kind == "cut":
        del data[at:]
    elif kind == "longer":
        data += random.randbytes(length)
    elif kind == "large":
        data += bytes(64 * 2**20)
    elif kind == "zeroed":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "turned":
        for index in range(at, min(len(data), at + length)):
            data[index] ^= 1 << random.randrange(8)
    else:
        data[at : at + length] = random.randbytes(len(data[at : at + length]))
    replaced(path, bytes(data))
    make_right(folder)
    return Change("bytes", f"{_name(folder, path)} {kind} at {at} ({length})", kind == "cut")


def files_moved(folder: Path, random: Random) -> Change | None:
    """A file left out, renamed, or exchanged with another of its kind."""
    path = random.choice(_files(folder))
    kind = random.choice(("left out", "renamed", "exchanged"))
    said = f"{_name(folder, path)} {kind}"
    if kind == "left out":
        path.unlink()
    elif kind == "renamed":
        name = random.choice((f"{path.name}.bak", "a\x1b[31mb", "pytorch_model.bin", "x" * 200))
        replaced(path.with_name(name), path.read_bytes())
        path.unlink()
    else:
        others = [each for each in _files(folder, path.suffix) if each != path]
        if not others:
            return None
        other = random.choice(others)
        said += f" with {_name(folder, other)}"
        ours, theirs = path.read_bytes(), other.read_bytes()
        replaced(path, theirs)
        replaced(other, ours)
    make_right(folder)
    # Two tokenizers may change places: each is a whole one.
    return Change("files", said, "tokenizer" not in said)


def files_added(folder: Path, random: Random) -> Change | None:
    """A listed file where libraries look for more: pickles, code, adapters, indexes."""
    name, content = random.choice(_ADDED)
    inside = random.choice([path.parent for path in _files(folder, ".json")])
    if not (inside / name).exists():
        replaced(inside / name, content)
        make_right(folder)
        return Change("added", f"{_name(folder, inside / name)}", True)
    return None


def _index(place: str) -> bytes:
    return json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": {"shared.weight": place}}
    ).encode()


_PICKLE = b"cposix\nsystem\n(S'touch ../outside/ran'\ntR."
_ADDED: tuple[tuple[str, bytes], ...] = (
    ("pytorch_model.bin", _PICKLE),
    ("diffusion_pytorch_model.bin", _PICKLE),
    ("hostile.py", b"import os\nos.system('touch ../outside/ran')\n"),
    ("tokenization_hostile.py", b"import os\nos.system('touch ../outside/ran')\n"),
    ("modeling_hostile.py", b"raise SystemExit(0)\n"),
    ("adapter_config.json", json.dumps(
        {"base_model_name_or_path": f"../{OUTSIDE}", "peft_type": "LORA", "auto_mapping": None}
    ).encode()),
    ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    ("model.safetensors.index.json", _index(f"../../../{OUTSIDE}/model.safetensors")),
    ("model.safetensors.index.json", _index("/dev/zero")),
    ("model.safetensors.index.json", b"null"),
    ("diffusion_pytorch_model.safetensors.index.json", _index(f"../../{OUTSIDE}/a.safetensors")),
    ("diffusion_pytorch_model.safetensors.index.json", b"[[]]"),
    ("pytorch_model.bin.index.json", _index("pytorch_model.bin")),
    ("generation_config.json", b"null"),
    ("generation_config.json", b"{\"max_length\": -1, \"_from_model_config\": \"x\"}"),
    ("chat_template.jinja", b"{{ cycler.__init__.__globals__.os.system('touch ../outside/ran') }}"),
    ("added_tokens.json", b"{\"bell\": 1000000000}"),
    ("added_tokens.json", b"[1]"),
    ("special_tokens_map.json", b"{\"pad_token\": null, \"unk_token\": 7}"),
    ("special_tokens_map.json", b"null"),
    ("vocab.json", b"{\"bell\": -5}"),
    ("merges.txt", b"a b\n" * 10_000),
    ("spiece.model", b"\x0a" * 1000),
    ("tokenizer.model", b"\xff" * 1000),
    ("model.safetensors", b"\xff" * 100),
    ("model.fp16.safetensors", b"\xff" * 100),
    ("config.json.bak", b"{}"),
    ("products.json", b"null"),
    ("host.json", b"[]"),
    ("attention.json", b"{\"a\": 7}"),
    ("shares.json", json.dumps({"components": f"../{OUTSIDE}"}).encode()),
    ("quantization.json", b"{}"),
    ("a\x1b]52;c;aGVsbG8=\x07", b""),
)  # fmt: skip


def too_large(folder: Path, random: Random) -> Change | None:
    """A file or a plan of a size that no model has."""
    name = random.choice(list(sizes.ATTACKS))
    sizes.ATTACKS[name](folder)
    return Change("sizes", name, True)


def report(folder: Path, random: Random) -> Change | None:
    """What a build writes beside an engine, for people to read."""
    name = random.choice(list(reports.ATTACKS))
    reports.ATTACKS[name](folder)
    return Change("reports", name, True)


# --- weights ----------------------------------------------------------------------------------


def safetensors(folder: Path, random: Random) -> Change | None:
    """The header or the numbers of one weights file."""
    path = random.choice(_files(folder, ".safetensors"))
    header, body = _split(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    name = random.choice(names)
    kind = random.choice(list(_HEADER))
    data = bytearray(body)
    matters = _HEADER[kind](header, name, data, random)
    replaced(path, _joined(header, bytes(data)))
    make_right(folder)
    return Change("weights", f"{_name(folder, path)} {name}: {kind}", matters)


def _left_out(header: Any, name: str, data: bytearray, random: Random) -> bool:
    start, end = header.pop(name)["data_offsets"]
    del data[start:end]
    for each in header.values():
        offsets = each.get("data_offsets")
        if offsets and offsets[0] >= end:
            each["data_offsets"] = [offset - (end - start) for offset in offsets]
    return True


def _renamed(header: Any, name: str, data: bytearray, random: Random) -> bool:
    header[random.choice((f"{name}.other", name.upper(), "\x1b[31m", "x" * 3000))] = header.pop(
        name
    )
    return True


def _reshaped(header: Any, name: str, data: bytearray, random: Random) -> bool:
    shape = header[name]["shape"]
    other = random.choice(([*shape[::-1]], [*shape, 1], [1, *shape], [sum(shape)], []))
    header[name]["shape"] = other
    return other != shape


def _retyped(header: Any, name: str, data: bytearray, random: Random) -> bool:
    header[name]["dtype"] = random.choice(
        ("I32", "U32", "F16", "BF16", "F64", "F8_E4M3", "X", "BOOL")
    )
    return True


def _moved(header: Any, name: str, data: bytearray, random: Random) -> bool:
    header[name]["data_offsets"] = random.choice(([0, 4], [2**62, 2**63], [4, 0], [-4, 0], [0, 0]))
    return True


def _numbers(header: Any, name: str, data: bytearray, random: Random) -> bool:
    start, end = header[name]["data_offsets"]
    number = random.choice((float("nan"), float("inf"), -float("inf"), 1e38, 1e30, 0.0))
    for at in range(start, end - 3, random.choice((4, 4000))):
        data[at : at + 4] = struct.pack("<f", number)
    return False


def _metadata(header: Any, name: str, data: bytearray, random: Random) -> bool:
    header["__metadata__"] = random.choice(
        ({"format": "tf"}, {}, {"format": "\x1b[31m"}, {"format": "pt", "a": "x" * 10**6}, 7)
    )
    return True


def _more(header: Any, name: str, data: bytearray, random: Random) -> bool:
    header["more.weight"] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [len(data), len(data) + 4],
    }
    data += bytes(4)
    return True


_HEADER: dict[str, Callable[[Any, str, bytearray, Random], bool]] = {
    "left out": _left_out,
    "renamed": _renamed,
    "reshaped": _reshaped,
    "retyped": _retyped,
    "moved": _moved,
    "numbers": _numbers,
    "metadata": _metadata,
    "more": _more,
}


def _split(data: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


# --- graphs -----------------------------------------------------------------------------------


def graph(folder: Path, random: Random) -> Change | None:
    """One node, tensor or statement of an ONNX graph."""
    paths = _files(folder, ".onnx")
    if not paths:
        return None
    import onnx

    path = random.choice(paths)
    model = onnx.load(str(path), load_external_data=False)
    kind = random.choice(list(_GRAPH))
    matters = _GRAPH[kind](model, random)
    replaced(path, model.SerializeToString())
    make_right(folder)
    return Change("graph", f"{path.name}: {kind}", matters)


def _operator(model: Any, random: Random) -> bool:
    node = random.choice(model.graph.node)
    node.op_type = random.choice(("Neg", "Exp", "Add", "Loop", "If", "Nope", "\x1b[31m", "Gelu"))
    return False


def _node_left_out(model: Any, random: Random) -> bool:
    del model.graph.node[random.randrange(len(model.graph.node))]
    return False


def _rewired(model: Any, random: Random) -> bool:
    one, other = random.choice(model.graph.node), random.choice(model.graph.node)
    if one.input:
        one.input[random.randrange(len(one.input))] = random.choice(
            (other.output[0], "", "\x1b]52;c;aGVsbG8=\x07", "nothing")
        )
    return False


def _attribute(model: Any, random: Random) -> bool:
    import onnx

    nodes = [node for node in model.graph.node if node.attribute] or list(model.graph.node)
    node = random.choice(nodes)
    value: Any = random.choice((-1, 2**62, -(2**62), 0, 1e308, [2**40, 2**40], "x", b"\xff" * 100))
    name = random.choice([each.name for each in node.attribute] or ["axis"])
    for index in reversed([at for at, each in enumerate(node.attribute) if each.name == name]):
        del node.attribute[index]
    node.attribute.append(onnx.helper.make_attribute(name, value))
    return False


def _external(model: Any, random: Random) -> bool:
    import onnx

    stored = [each for each in model.graph.initializer if each.external_data]
    tensor = random.choice(stored or list(model.graph.initializer))
    places = {
        "location": (f"../{OUTSIDE}/weights.bin", "/dev/zero", "", "stage1.full.onnx", "\x1b[31m"),
        "offset": ("-1", str(2**62), "7", "x", "0"),
        "length": ("-1", str(2**62), "1", "x"),
    }
    key = random.choice(list(places))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = random.choice(places[key])
            return key != "offset"
    tensor.external_data.add(key=key, value=random.choice(places[key]))
    return key != "offset"


def _dimensions(model: Any, random: Random) -> bool:
    dims = random.choice(model.graph.initializer).dims
    if dims:
        dims[random.randrange(len(dims))] = random.choice((0, -1, 1, 2**40, 2**62))
    return True


def _types(model: Any, random: Random) -> bool:
    random.choice(model.graph.initializer).data_type = random.choice((2, 7, 8, 10, 11, 16, 99))
    return True


def _statement(model: Any, random: Random) -> bool:
    told = random.choice([*model.graph.input, *model.graph.output])
    kind = random.choice(("name", "type", "size", "open", "left out"))
    tensor = told.type.tensor_type
    if kind == "name":
        told.name = random.choice(("\x1b[31m", "x" * 5000, "", "other"))
    elif kind == "type":
        tensor.elem_type = random.choice((2, 7, 8, 10, 11))
    elif kind == "size" and tensor.shape.dim:
        random.choice(tensor.shape.dim).dim_value = random.choice((0, -1, 1, 2**40))
    elif kind == "open" and tensor.shape.dim:
        random.choice(tensor.shape.dim).dim_param = "any"
    else:
        del model.graph.input[0]
    return True


def _versions(model: Any, random: Random) -> bool:
    model.opset_import[0].version = random.choice((0, 1, 7, 13, 99, -1))
    model.ir_version = random.choice((model.ir_version, 1, 99))
    return False


def _texts(model: Any, random: Random) -> bool:
    model.producer_name = "\x1b]52;c;aGVsbG8=\x07"
    model.doc_string = "x" * random.choice((10, 10**6))
    model.metadata_props.add(key="\u202e", value="\x00")
    random.choice(model.graph.node).name = random.choice(("\x1b[31m", "x" * 10_000))
    return True


def _bomb(model: Any, random: Random) -> bool:
    """A tensor of any size made of a few bytes, that something reads."""
    from onnx import TensorProto, helper

    size = random.choice((2**28, 2**30, 2**33, 2**40))
    shape = helper.make_tensor("bomb_shape", TensorProto.INT64, [1], [size])
    one = helper.make_tensor("bomb_one", TensorProto.FLOAT, [1], [1.0])
    model.graph.initializer.extend([shape, one])
    kind = random.choice(("Expand", "ConstantOfShape", "Tile", "RandomNormal"))
    taken = {"RandomNormal": [], "ConstantOfShape": ["bomb_shape"]}
    inputs = taken.get(kind, ["bomb_one", "bomb_shape"])
    settings = {"shape": [size]} if kind == "RandomNormal" else {}
    nodes = [
        helper.make_node(kind, inputs, ["b"], **settings),
        helper.make_node("ReduceMax", ["b"], ["bomb"], keepdims=0),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    read = rest[-1]
    added = helper.make_node("Add", [read.output[0] + "_before", "bomb"], [read.output[0]])
    read.output[0] += "_before"
    model.graph.node.extend([*nodes, *rest, added])
    return False


_GRAPH: dict[str, Callable[[Any, Random], bool]] = {
    "operator": _operator,
    "node left out": _node_left_out,
    "rewired": _rewired,
    "attribute": _attribute,
    "external": _external,
    "dimensions": _dimensions,
    "types": _types,
    "statement": _statement,
    "versions": _versions,
    "texts": _texts,
    "bomb": _bomb,
}


# --- files ------------------------------------------------------------------------------------


def _files(folder: Path, suffix: str = "") -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if path.name != MANIFEST and path.name.endswith(suffix)]


def _name(folder: Path, path: Path) -> str:
    return ascii(path.relative_to(folder).as_posix()[:120])[1:-1]


_MAKERS: tuple[Maker, ...] = (
    json_value,
    component_setting,
    component_attack,
    json_bytes,
    manifest_value,
    file_bytes,
    files_moved,
    files_added,
    safetensors,
    graph,
    too_large,
    report,
)
_WEIGHTS = (8, 4, 3, 1, 5, 3, 1, 2, 3, 4, 1, 1)
