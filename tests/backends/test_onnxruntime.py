"""Laws of the ONNX Runtime backend: equal to eager, weights shared, memory reused, errors named."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch

from fresco_trt.backends import onnxruntime as module
from fresco_trt.backends.base import BuildOptions
from fresco_trt.backends.onnxruntime import OnnxRuntimeBackend
from fresco_trt.errors import (
    BuildError,
    ContentInvalid,
    EngineFailed,
    FileMissing,
    IncompatibleOptions,
    OutOfDeviceMemory,
    UnsupportedPrecision,
)

if TYPE_CHECKING:
    from tests.backends.conftest import Record, Stage

    Stages = tuple[Stage, ...]


NATIVE = import_module("onnxruntime.capi.onnxruntime_pybind11_state")


def build_all(stages: Stages, folder: Path) -> list[Record]:
    backend = OnnxRuntimeBackend(threads=1)
    options = BuildOptions(folder=folder, threads=1)
    return [stage.record(backend.build(stage.graph, options)) for stage in stages]


def worst(outputs: Any, expected: dict[str, torch.Tensor]) -> float:
    assert list(outputs) == list(expected)
    return max(float((outputs[name] - expected[name]).abs().max()) for name in expected)


# --- what it leaves ---------------------------------------------------------------------------


def test_it_does_not_report_what_it_loads(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    code = "from fresco_trt.backends.onnxruntime import _library; _library()"
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "TMPDIR": str(tmp_path)}, check=True
    )
    assert list(tmp_path.iterdir()) == []


# --- parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prepack_bytes", [module.PREPACK_BYTES, 0], ids=["packed", "mapped"])
def test_every_output_at_every_grid_equals_eager(
    stages: Stages, folder: Path, prepack_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREPACK_BYTES", prepack_bytes)
    records = build_all(stages, folder)
    backend = OnnxRuntimeBackend(threads=1)
    with ExitStack() as scope:
        runners = [scope.enter_context(backend.load(folder, record)) for record in records]
        for _ in range(2):
            for runner, stage in zip(runners, stages, strict=True):
                assert worst(runner(stage.inputs), stage.expected()) < 1e-4


def test_poisoned_buffers_and_strided_inputs_change_nothing(stages: Stages, folder: Path) -> None:
    stage = stages[0]
    (record,) = build_all((stage,), folder)
    strided = {
        name: value.repeat_interleave(2, -1)[..., ::2] for name, value in stage.inputs.items()
    }
    assert not strided["latents"].is_contiguous()
    with OnnxRuntimeBackend(threads=1).load(folder, record) as runner:
        first = dict(runner(stage.inputs))
        addresses = {name: value.data_ptr() for name, value in first.items()}
        for value in first.values():
            value.fill_(float("nan"))
        second = runner(strided)
        assert worst(second, stage.expected()) < 1e-4
        assert {name: value.data_ptr() for name, value in second.items()} == addresses


# --- files and settings -----------------------------------------------------------------------


def test_all_stages_hold_the_weights_once_on_disk(stages: Stages, folder: Path) -> None:
    records = build_all(stages, folder)
    assert {record.files[1] for record in records} == {"weights.bin"}
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {name for record in records for name in record.files}
    assert stages[0].graph.weights is not None
    assert files["weights.bin"] == stages[0].graph.weights.stat().st_size


def test_large_weights_are_mapped_rather_than_packed(
    stages: Stages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = build_all(stages[:1], folder)
    path = folder / record.files[0]
    size = (folder / "weights.bin").stat().st_size
    for limit, packed in ((size, True), (size - 1, False)):
        monkeypatch.setattr(module, "PREPACK_BYTES", limit)
        settings = module._settings(module._library(), path, 1)
        entry = settings.get_session_config_entry
        if packed:
            with pytest.raises(RuntimeError, match="disable_prepacking"):
                entry("session.disable_prepacking")
        else:
            assert entry("session.disable_prepacking") == "1"
        assert entry("session.use_env_allocators") == "1"


def test_threads_are_the_callers_then_torchs(
    stages: Stages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = build_all(stages[:1], folder)
    seen: list[int] = []
    settings = module._settings

    def watched(library: Any, path: Path, threads: int) -> Any:
        seen.append(threads)
        return settings(library, path, threads)

    monkeypatch.setattr(module, "_settings", watched)
    for threads in (2, None):
        with OnnxRuntimeBackend(threads=threads).load(folder, record):
            pass
    assert seen == [2, torch.get_num_threads()]


# --- refusals ---------------------------------------------------------------------------------


def test_options_it_cannot_honour_are_refused(stages: Stages, folder: Path) -> None:
    graph = stages[0].graph
    backend = OnnxRuntimeBackend()
    with pytest.raises(UnsupportedPrecision):
        backend.build(graph, BuildOptions(folder=folder, precision="bf16"))
    with pytest.raises(IncompatibleOptions):
        backend.build(graph, BuildOptions(folder=folder, targets=("sm89",)))
    with pytest.raises(ValueError, match="was not exported"):
        backend.build(replace(graph, onnx=None), BuildOptions(folder=folder))
    half = replace(graph, module=torch.nn.Linear(1, 1, dtype=torch.bfloat16))
    with pytest.raises(BuildError, match=r"torch\.bfloat16; expected float32 for --precision fp32"):
        backend.build(half, BuildOptions(folder=folder))
    assert list(folder.iterdir()) == []


def test_a_graph_it_cannot_load_fails_the_build_not_the_request(
    stages: Stages, folder: Path, tmp_path: Path
) -> None:
    graph = stages[0].graph
    model = onnx.load(str(graph.onnx), load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "stage1.full.onnx"
    onnx.save(model, str(path))
    with pytest.raises(BuildError, match=r"refuses stage1\.full.*NoSuchOperator"):
        OnnxRuntimeBackend().build(replace(graph, onnx=path), BuildOptions(folder=folder))


def test_damaged_and_missing_files_are_named(stages: Stages, folder: Path) -> None:
    (record,) = build_all(stages[:1], folder)
    graph = folder / record.files[0]
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ContentInvalid, match=graph.name):
        OnnxRuntimeBackend().load(folder, record)
    (folder / "weights.bin").unlink()
    with pytest.raises(FileMissing, match=r"weights\.bin"):
        OnnxRuntimeBackend().load(folder, record)


def test_a_silent_fallback_to_another_provider_is_an_error(
    stages: Stages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = build_all(stages[:1], folder)
    library = module._library()

    class Fallen:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    names = ("OrtMemoryInfo", "OrtAllocatorType", "OrtMemType", "OrtArenaCfg", "SessionOptions")
    parts = {name: getattr(library, name) for name in names}
    scripted = SimpleNamespace(
        **parts,
        create_and_register_allocator=lambda *arguments: None,
        InferenceSession=Fallen,
    )
    monkeypatch.setattr(module, "_library", lambda: scripted)
    monkeypatch.setattr(module, "_device", lambda: "cuda")
    runner = OnnxRuntimeBackend(threads=1).load(folder, record)
    with pytest.raises(EngineFailed, match="fell back to CPUExecutionProvider"), runner:
        pass


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (
            NATIVE.RuntimeException("Failed to allocate memory"),
            OutOfDeviceMemory,
        ),
        (RuntimeError("std::bad_alloc"), OutOfDeviceMemory),
        (MemoryError(), OutOfDeviceMemory),
        (NATIVE.Fail("Non-zero status code returned while running Add node"), EngineFailed),
        (RuntimeError("Got invalid dimensions for output: velocity"), EngineFailed),
        (ValueError("Required inputs (['text']) are missing"), EngineFailed),
        (RuntimeError("a\x1b]52;c;eA==\x07\u202e\n" + "long " * 5000), EngineFailed),
    ],
    ids=lambda value: None if isinstance(value, type) else type(value).__name__,
)
def test_failures_while_running_are_told_apart_on_one_line(
    raised: Exception, kind: type[EngineFailed | OutOfDeviceMemory]
) -> None:
    with (
        pytest.raises(kind, match="running the engine") as found,
        module._errors("running the engine"),
    ):
        raise raised
    assert str(found.value).isprintable()
    assert len(str(found.value)) <= 500
