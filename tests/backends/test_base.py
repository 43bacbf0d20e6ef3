"""Laws that hold for every backend: the registry, a runner's scope, what its inputs must be."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fresco_trt.backends import backend, backend_names
from fresco_trt.backends.base import (
    BuildOptions,
    Call,
    EngineRunner,
    check_precision,
    copy_once,
    find_engine,
    no_targets,
)
from fresco_trt.errors import (
    DiskFull,
    EngineFailed,
    FileMissing,
    IncompatibleOptions,
    OutputNotWritable,
    SignatureMismatch,
    UnknownBackend,
    UnsupportedPrecision,
)
from fresco_trt.plan.signature import GraphSignature, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(2, 3))
SIGNATURE = GraphSignature(
    inputs=(X, TensorSpec(name="n", dtype="int64", shape=(1,))),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 3)),),
)
INPUTS = {"x": torch.ones(2, 3), "n": torch.tensor([2])}


@dataclass(frozen=True)
class Record:
    name: str
    files: tuple[str, ...]
    signature: GraphSignature


class Library:
    """A session that multiplies, and remembers whether it holds anything."""

    def __init__(self, outputs: Mapping[str, Tensor] | None = None) -> None:
        self.open = 0
        self.outputs = outputs

    @contextmanager
    def session(self) -> Iterator[Call]:
        self.open += 1
        try:
            yield self.call
        finally:
            self.open -= 1

    def call(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.outputs or {"y": inputs["x"] * inputs["n"]}


# --- the registry -----------------------------------------------------------------------------


def test_every_registered_backend_is_the_one_it_is_called() -> None:
    for name in backend_names():
        found = backend(name)
        facts = found.describe()
        assert found.name == facts.name == name
        assert facts.graph_format in ("onnx", "module")
        assert facts.device in ("cpu", "cuda")
        assert facts.precisions
        for missing in found.check():
            assert missing.what
            assert missing.fix


def test_an_unknown_backend_is_told_the_names() -> None:
    with pytest.raises(UnknownBackend) as caught:
        backend("openvino")
    assert all(name in str(caught.value) for name in backend_names())


def test_the_registry_imports_no_library() -> None:
    heavy = "('torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'diffusers')"
    lines = (
        "import sys, fresco_trt.backends.base, fresco_trt.backends.fake, fresco_trt.backends as b",
        "[b.backend(name) for name in b.backend_names()]",
        f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- a runner's scope -------------------------------------------------------------------------


def test_a_runner_holds_resources_within_its_scope_only() -> None:
    library = Library()
    runner = EngineRunner(SIGNATURE, library.session)
    for _ in range(2):
        assert library.open == 0
        with pytest.raises(RuntimeError, match="inside its scope"):
            runner(INPUTS)
        with runner:
            assert library.open == 1
            assert torch.equal(runner(INPUTS)["y"], torch.full((2, 3), 2.0))
    assert library.open == 0


def test_an_error_within_the_scope_closes_it() -> None:
    library = Library()
    runner = EngineRunner(SIGNATURE, library.session)
    with pytest.raises(KeyError, match="inside"), runner:
        raise KeyError("inside")
    assert library.open == 0
    with runner:
        runner(INPUTS)


def test_a_scope_is_entered_once() -> None:
    library = Library()
    runner = EngineRunner(SIGNATURE, library.session)
    with runner:
        with pytest.raises(RuntimeError, match="already entered"):
            runner.__enter__()
        runner(INPUTS)
    assert library.open == 0


def test_a_session_that_cannot_open_leaves_the_runner_closed() -> None:
    @contextmanager
    def session() -> Iterator[Call]:
        raise EngineFailed("no", expected="yes", fix="try")
        yield

    runner = EngineRunner(SIGNATURE, session)
    for _ in range(2):
        with pytest.raises(EngineFailed), runner:
            pass
    with pytest.raises(RuntimeError, match="inside its scope"):
        runner(INPUTS)


# --- signatures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": INPUTS["x"]}, "no tensor n"),
        (INPUTS | {"z": torch.ones(1)}, "the tensor z has no place"),
        (INPUTS | {"x": torch.ones(3, 2)}, "x float32[3,2]"),
        (INPUTS | {"x": torch.ones(2, 3, 1)}, "x float32[2,3,1]"),
        (INPUTS | {"n": torch.tensor([2], dtype=torch.int32)}, "n int32[1]"),
        (INPUTS | {"x": torch.ones(2, 3).double()}, "x float64[2,3]"),
    ],
)
def test_wrong_inputs_are_named_beside_what_was_expected(
    inputs: dict[str, Tensor], said: str
) -> None:
    with EngineRunner(SIGNATURE, Library().session) as runner:
        with pytest.raises(SignatureMismatch) as caught:
            runner(inputs)
        runner(INPUTS)  # a refused call changes nothing
    assert caught.value.given == said
    assert caught.value.expected == "x float32[2,3], n int64[1]"


@pytest.mark.parametrize("outputs", [{"z": torch.ones(2, 3)}, {"y": torch.ones(3, 2)}])
def test_an_engine_that_returns_something_else_has_failed(outputs: dict[str, Tensor]) -> None:
    with (
        EngineRunner(SIGNATURE, Library(outputs).session) as runner,
        pytest.raises(EngineFailed, match=r"expected y float32\[2,3\]"),
    ):
        runner(INPUTS)


# --- files and options ------------------------------------------------------------------------


def test_a_shared_file_is_written_once_and_whole(tmp_path: Path, folder: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"first")
    assert copy_once(source, folder) == "weights.bin"
    source.write_bytes(b"second")
    assert copy_once(source, folder) == "weights.bin"
    assert [path.name for path in folder.iterdir()] == ["weights.bin"]
    assert (folder / "weights.bin").read_bytes() == b"first"


def test_the_operating_systems_refusals_have_names(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"data")
    with pytest.raises(OutputNotWritable, match="absent"):
        copy_once(source, folder / "absent")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskFull, match=r"weights\.bin"):
        copy_once(source, folder)
    assert not (folder / "weights.bin").exists()


def test_an_engine_without_its_files_is_named(folder: Path) -> None:
    record = Record(name="stage1.full", files=("a.onnx", "weights.bin"), signature=SIGNATURE)
    (folder / "a.onnx").write_bytes(b"")
    with pytest.raises(FileMissing, match=r"stage1\.full lacks weights\.bin"):
        find_engine(folder, record, ".onnx")
    (folder / "weights.bin").write_bytes(b"")
    assert find_engine(folder, record, ".onnx") == folder / "a.onnx"
    with pytest.raises(FileMissing, match=r"a \.plan file"):
        find_engine(folder, record, ".plan")


def test_options_that_a_backend_cannot_honour_are_refused(folder: Path) -> None:
    facts = backend("onnxruntime").describe()
    with pytest.raises(UnsupportedPrecision, match=r"fp16 .*expected one of fp32"):
        check_precision(facts, "fp16")
    with pytest.raises(IncompatibleOptions, match="sm89 with the backend eager"):
        no_targets("eager", BuildOptions(folder=folder, targets=("sm89",)))
