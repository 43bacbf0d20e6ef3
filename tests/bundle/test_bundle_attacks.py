"""Broken and hostile bundles, written by hand from the format's description, not by the writer.

One or more per leaf of BundleError; every one is refused with that error, before the environment
is asked, in a message that says what was found, what was expected and what to do.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.manifest import Manifest, finished, parse_manifest
from fresco_trt.errors import (
    BundleChanged,
    BundleError,
    BundleNotFound,
    BundleNotSigned,
    ContentInvalid,
    DigestMismatch,
    EnvironmentMismatch,
    FileMissing,
    FileUnexpected,
    KeyNotUsable,
    ManifestInvalid,
    NativeCodeNotTrusted,
    PathEscape,
    SchemaTooNew,
)

Json = dict[str, Any]
Attack = Callable[[Path, Json], None]

FILES = {"a.onnx": b"engine", "shared/weights.bin": b"weights", "pipeline/model_index.json": b"{}"}
ZERO = "0" * 64
HOSTILE = 'x\n"\x1b[31m\u202e' + "long" * 5000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def file_record(path: str, data: bytes) -> Json:
    return {"path": path, "bytes": len(data), "sha256": sha256(data)}


def tensor(name: str) -> Json:
    return {"name": name, "dtype": "float32", "shape": [1, 4, 16]}


def valid_manifest() -> Json:
    stage = {
        "grid": {"height": 4, "width": 4, "scale": 1.0, "patch": 2},
        "tokens": 4,
        "refined": 0,
        "steps": 2,
        "sigma_start": 1.0,
        "sigma_end": 0.0,
        "actions": ["full", "full"],
        "sigmas": [1.0, 0.5, 0.0],
    }
    plan = {"model": "toy", "size": [16, 16], "preset": None, "nfe": 2, "stages": [stage]}
    signature = {"inputs": [tensor("latents")], "outputs": [tensor("velocity")]}
    pipeline = sha256(canonical([["model_index.json", 2, sha256(b"{}")]]))
    return {
        "schema_version": 2,
        "model": {"name": "toy", "weights_sha256": ZERO, "config": {"hidden": 8}},
        "plan": {**plan, "transitions": [], "solver": "euler", "positions": "fine", "cache": None},
        "text_tokens": 4,
        "precision": "fp32",
        "calibration": None,
        "backend": {"name": "eager", "library": "t", "library_version": None, "target": ""},
        "engines": [
            {"name": "stage1.full", "family": "flux", "files": ["a.onnx"], "signature": signature}
        ],
        "pipeline": {"folder": "pipeline", "digest": pipeline, "parts": []},
        "files": [file_record(path, data) for path, data in sorted(FILES.items())],
        "built": {"version": "0", "python": "3", "torch": None, "seconds": 1, "options": {}},
        "key": ZERO,
    }


def sealed(manifest: Json) -> bytes:
    """The manifest's bytes with its own digest, as an attacker who knows the format writes them."""
    bare = {key: value for key, value in manifest.items() if key != "digest"}
    return json.dumps({"digest": sha256(canonical(bare)), **manifest}).encode()


def write(folder: Path, manifest: Json) -> None:
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "manifest.json").write_bytes(sealed(manifest))


def never(_manifest: Manifest) -> None:
    pytest.fail("the environment was asked about a bundle that is not valid")


def test_the_hand_written_bundle_is_valid(tmp_path: Path) -> None:
    write(tmp_path, valid_manifest())
    assert open_bundle(tmp_path).manifest.pipeline.folder == "pipeline"


# --- attacks on what the manifest says --------------------------------------------------------


def put(path: str, value: object) -> Attack:
    """Set the value at a dotted path; ``...`` removes it. The manifest is sealed afterwards."""

    def attack(_folder: Path, manifest: Json) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        place: Any = manifest
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    attack.__name__ = f"{path}={value!r}"[:60]
    return attack


def list_also(path: str) -> Attack:
    """List one more file under a name that should not be accepted."""

    def attack(_folder: Path, manifest: Json) -> None:
        manifest["files"].append(file_record(path, b"x"))

    attack.__name__ = f"lists {path!r}"[:60]
    return attack


BAD_PATHS = [
    "../outside",
    "shared/../../outside",
    "shared/./weights.bin",
    "shared//weights.bin",
    "shared/",
    "..",
    ".",
    "/etc/passwd",
    "//host/share",
    "C:/windows",
    "c:relative",
    "shared\\weights.bin",
    "nul\x00byte",
    "line\nbreak",
    "\u202etxt.exe",
]

SCHEMA = [
    *(put(key, ...) for key in valid_manifest()),
    *(put(key, []) for key in valid_manifest() if key != "files"),
    put("extra", 1),
    put("model.extra", 1),
    put("engines.0.signature.extra", 1),
    put("schema_version", True),
    put("schema_version", 0),
    put("schema_version", 1),
    put("schema_version", "2"),
    put("schema_version", 2.0),
    put("model.name", ""),
    put("model.name", "another"),
    put("model.weights_sha256", ZERO.replace("0", "A")),
    put("model.weights_sha256", ZERO + "\n"),
    put("model.config", {"a": "/home/someone"}),
    put("model.config", {"a\u202eb": 1}),
    put("built.options", {"a": ["\x1b]52;c;aGVsbG8=\x07"]}),
    put("engines.0.name", "stage1\x1b[2J"),
    put("engines.0.signature.inputs.0.name", "latents\r"),
    put("model.config", json.loads('{"a":' * 40 + "1" + "}" * 40)),
    put("model.config", {"a": [0] * 250_000}),
    put("plan.nfe", 3),
    put("plan.stages", []),
    put("plan.stages.0.sigmas", [1.0, 1.0, 0.0]),
    put("plan.model", HOSTILE),
    put("text_tokens", "4"),
    put("text_tokens", 4.0),
    put("text_tokens", True),
    put("text_tokens", 0),
    put("precision", "fp4"),
    put("precision", HOSTILE),
    put("precision", "int8"),
    put("precision", "fp8"),
    put("engines", {}),
    put("engines.0.name", 7),
    put("engines.0.files", "a.onnx"),
    put("engines.0.files", ["other.onnx"]),
    put("engines.0.signature.inputs.0.shape", [0]),
    put("engines.0.signature.inputs.0.name", "velocity"),
    put("files.0.bytes", -1),
    put("files.0.bytes", 10**18),
    put("files", [file_record("a.onnx", b"")] * 2),
    put("files", [file_record(f"{n}", b"") for n in range(10_001)]),
    put("engines", [0] * 250_000),
    put("engines", valid_manifest()["engines"] * 2),
    put("backend.target", ["sm89"]),
    put("backend.target", "sm89,layout"),
    put("built.seconds", -1),
    put("built.options", {"out": "~/engines"}),
    put(HOSTILE, HOSTILE),
    list_also("manifest.json"),
    list_also("manifest.sig"),
]
DEEP_PATHS = [
    *(list_also(path) for path in BAD_PATHS),
    *(put("engines.0.files", [path]) for path in BAD_PATHS),
    *(put("pipeline.folder", path) for path in BAD_PATHS),
    put("pipeline.folder", "/proc/self"),
    put("pipeline.parts", ["../.."]),
]
TOO_NEW = [put("schema_version", 3), put("schema_version", 10**17)]


def newer_and_different(_folder: Path, manifest: Json) -> None:
    """The rest of a newer schema is nobody's business here."""
    manifest.clear()
    manifest.update({"schema_version": 3, "engines": "in a new form"})


# --- attacks on the manifest's bytes ----------------------------------------------------------


def raw(data: bytes, name: str) -> Attack:
    """Other bytes in place of the manifest."""

    def attack(folder: Path, manifest: Json) -> None:
        (folder / "manifest.json").write_bytes(data)
        manifest.clear()

    attack.__name__ = name
    return attack


def spliced(old: bytes, new: bytes) -> bytes:
    data = sealed(valid_manifest())
    if old not in data:
        raise ValueError(f"{old!r} is not in the manifest")
    return data.replace(old, new, 1)


DEEP = b'{"schema_version": 2, "plan": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BYTES = [
    raw(b"", "empty"),
    raw(b"{", "cut"),
    raw(b"[]", "a list"),
    raw(b"1", "a number"),
    raw(b'"' + b"x" * 100 + b'"', "a text"),
    raw(b"\xff\xfe{}", "not UTF-8"),
    raw(b"\xef\xbb\xbf{}", "a byte order mark"),
    raw(sealed(valid_manifest()) + b" " * 4 * 1024 * 1024, "valid but for its 4 MiB"),
    raw(DEEP, "very deep"),
    raw(b"[" * 2_000_000, "very deep and open"),
    raw(spliced(b'"hidden": 8', b'"hidden": 1e999'), "infinity in a free field"),
    raw(b'{"schema_version": ' + b"9" * 5000 + b"}", "a huge integer"),
    raw(b'{"schema_version": NaN}', "NaN"),
    raw(spliced(b'"seconds": 1', b'"seconds": 1e999'), "infinity in disguise"),
    raw(spliced(b'"seconds": 1', b'"seconds": Infinity'), "infinity"),
    raw(spliced(b'"hidden": 8', b'"hidden": 8, "hidden": 8'), "a key twice"),
    raw(spliced(b'"name": "toy"', b'"name": "\\ud800"'), "half a character"),
    raw(b'{"k":1,' + b",".join(b'"k":1' for _ in range(600_000)) + b"}", "one key very often"),
]


# --- attacks on the folder --------------------------------------------------------------------


def replace(path: str, make: Callable[[Path], None]) -> Attack:
    """Put something else in place of a file, or where there is none."""

    def attack(folder: Path, manifest: Json) -> None:
        if path == "manifest.json":
            manifest.clear()
        (folder / path).unlink(missing_ok=True)
        make(folder / path)

    attack.__name__ = f"{path}: {make.__name__}"
    return attack


def nothing(_path: Path) -> None:
    """Only the removal."""


def a_file(path: Path) -> None:
    path.write_bytes(b"x")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def a_link_out(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def a_link_in(path: Path) -> None:
    path.symlink_to("shared/weights.bin")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_linked_folder(path: Path) -> None:
    path.symlink_to("/")


def other_bytes(path: Path) -> None:
    path.write_bytes(bytes(len(FILES[path.relative_to(path.parents[0]).as_posix()])))


def sparse(path: Path) -> None:
    """More than anyone would read."""
    with path.open("wb") as file:
        file.truncate(60 * 2**30)


def longer(path: Path) -> None:
    path.write_bytes(b"engine+")


def linked_parent(folder: Path, _manifest: Json) -> None:
    """A listed file reached through a linked folder."""
    (folder / "shared").rename(folder.with_name("elsewhere"))
    (folder / "shared").symlink_to(folder.with_name("elsewhere"))


def odd_name(folder: Path, _manifest: Json) -> None:
    (folder / os.fsdecode(b"\xff\n\x1b[31m")).write_bytes(b"")


def no_pipeline(folder: Path, manifest: Json) -> None:
    (folder / "pipeline" / "model_index.json").unlink()
    (folder / "pipeline").rmdir()
    del manifest["files"][1]


def unsealed(folder: Path, manifest: Json) -> None:
    """One sigma changed by who does not know the format."""
    data = spliced(b"0.5", b"0.6")
    manifest.clear()
    (folder / "manifest.json").write_bytes(data)


def table() -> Iterator[tuple[type[BundleError], Attack]]:
    yield BundleNotFound, replace("manifest.json", nothing)
    yield from ((ManifestInvalid, attack) for attack in (*SCHEMA, *BYTES))
    yield ManifestInvalid, replace("manifest.json", a_folder)
    yield ManifestInvalid, replace("manifest.json", a_pipe)
    yield from ((SchemaTooNew, attack) for attack in (*TOO_NEW, newer_and_different))
    yield from ((PathEscape, attack) for attack in DEEP_PATHS)
    yield PathEscape, replace("manifest.sig", a_link_out)
    for link in (a_link_out, a_link_in, a_link_to_itself, a_linked_folder):
        for path in ("manifest.json", "a.onnx", "shared/more"):
            yield PathEscape, replace(path, link)
    yield PathEscape, linked_parent
    yield FileMissing, replace("a.onnx", nothing)
    yield FileMissing, list_also("a.onnx/inner")
    yield FileMissing, put("pipeline.folder", "elsewhere")
    yield FileMissing, put("pipeline.parts", ["vae"])
    yield FileMissing, no_pipeline
    for more in (a_file, a_folder, a_pipe, a_socket):
        yield FileUnexpected, replace("shared/more", more)
    yield FileUnexpected, replace("a.onnx", a_folder)
    yield FileUnexpected, replace("a.onnx", a_pipe)
    yield FileUnexpected, odd_name
    for no_signature in (a_file, a_folder, a_pipe, sparse):
        yield FileUnexpected, replace("manifest.sig", no_signature)
    yield DigestMismatch, replace("a.onnx", other_bytes)
    yield DigestMismatch, replace("a.onnx", longer)
    yield DigestMismatch, put("files.0.sha256", ZERO)
    yield DigestMismatch, put("files.0.bytes", 7)
    yield DigestMismatch, put("pipeline.digest", ZERO)
    yield DigestMismatch, put("digest", ZERO)
    yield DigestMismatch, unsealed


TABLE = [pytest.param(*row, id=f"{row[0].__name__}-{n}") for n, row in enumerate(table())]


@pytest.mark.parametrize(("error", "attack"), TABLE)
def test_every_attack_is_refused_and_explained(
    tmp_path: Path, error: type[BundleError], attack: Attack
) -> None:
    folder, manifest = tmp_path / "b", valid_manifest()
    folder.mkdir()
    write(folder, manifest)
    attack(folder, manifest)
    if manifest:
        (folder / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, environment=never)
    assert type(caught.value) is error, (attack, caught.value)
    assert_message(caught.value, folder)


def assert_message(error: BundleError, folder: Path) -> None:
    text = str(error)
    assert text.startswith(f"bundle {str(folder)!r}"[:90])
    assert all((error.given, error.expected, error.fix))
    assert text.endswith(f"{error.given}; expected {error.expected}. Fix: {error.fix}")
    assert len(text.splitlines()) <= 2
    assert len(text) < 600
    assert all(character.isprintable() or character == "\n" for character in text)


def test_every_leaf_of_the_tree_is_attacked() -> None:
    leaves = {leaf for leaf in BundleError.__subclasses__() if not leaf.__subclasses__()}
    elsewhere = {EnvironmentMismatch, ContentInvalid, BundleChanged}  # of no single bundle here
    elsewhere |= {NativeCodeNotTrusted, BundleNotSigned, KeyNotUsable}  # test_trust.py
    assert {error for error, _ in table()} == leaves - elsewhere


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_what_is_no_bundle_at_all_is_not_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_bytes(b"")
    if kind == "empty":
        path.mkdir()
    with pytest.raises(BundleNotFound) as caught:
        open_bundle(path)
    assert_message(caught.value, path)


def test_a_link_to_a_whole_bundle_is_fine(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    write(tmp_path / "v1", valid_manifest())
    (tmp_path / "current").symlink_to("v1")
    assert open_bundle(tmp_path / "current").folder == tmp_path / "v1"


# --- any value anywhere -----------------------------------------------------------------------

ANYTHING: list[Any] = [
    None, True, 0, -1, 2**40, 0.5, 1e300, "", "a.onnx", "../x", HOSTILE, ZERO, [], [[]], {}, [0],
    {"name": "x"}, ["a.onnx", "a.onnx"], {"a": {"b": [1]}},
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(pairs):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


def test_any_value_anywhere_is_read_or_refused() -> None:
    """Nothing but BundleError comes out, and what is accepted says the same when written again."""
    original = valid_manifest()
    count = len(list(places(original)))
    for index in range(count):
        for value in ANYTHING:
            manifest = copy.deepcopy(original)
            container, key = list(places(manifest))[index]
            container[key] = value
            check_read_or_refused(sealed(manifest))


def test_random_damage_is_read_or_refused() -> None:
    data = sealed(valid_manifest())
    draw = random.Random(7)
    for _ in range(2000):
        at, length = draw.randrange(len(data)), draw.randrange(4)
        check_read_or_refused(data[:at] + draw.randbytes(length) + data[at + length :])


def check_read_or_refused(data: bytes) -> None:
    try:
        manifest = parse_manifest(data)
    except BundleError:
        return
    again = parse_manifest(finished(manifest, manifest.files).to_bytes())
    assert set(again.files) == set(manifest.files)
    rest = {"files", "digest"}
    assert again.model_dump(exclude=rest) == manifest.model_dump(exclude=rest)
