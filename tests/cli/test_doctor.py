"""What this machine can build and run: two questions, two answers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends import backend_names
from fresco_trt.backends.base import BackendFacts, Missing
from fresco_trt.backends.missing import in_words, missing_to_build, missing_to_run
from fresco_trt.cli import tables
from fresco_trt.cli.doctor import examine
from fresco_trt.models.registry import model_names

GPU = Missing(what="a GPU", fix="use a machine with one")


class Library:
    """A backend that says what a test wants it to say."""

    def __init__(
        self,
        *,
        version: str | None,
        targets: tuple[str, ...] = (),
        missing: tuple[Missing, ...] = (),
    ) -> None:
        self.name = "a library"
        self._version, self._targets, self._missing = version, targets, missing

    def describe(self) -> BackendFacts:
        return BackendFacts(
            name=self.name,
            library="library",
            version=self._version,
            graph_format="onnx",
            targets=self._targets,
            precisions=("fp32",),
            device="cuda",
        )

    def check(self) -> tuple[Missing, ...]:
        return self._missing


def lacks(**said: Any) -> tuple[Missing, ...]:
    library: Any = Library(**said)
    return missing_to_build(library)


def test_a_library_with_targets_builds_without_a_gpu() -> None:
    assert lacks(version="1", targets=("sm89",), missing=(GPU,)) == ()


def test_a_library_that_builds_on_its_gpu_needs_it() -> None:
    assert lacks(version="1", missing=(GPU,)) == (GPU,)


def test_what_is_needed_only_to_build_keeps_no_engine_from_running() -> None:
    compiler = Missing(what="a compiler", fix="install one", only_to_build=True)
    library: Any = Library(version="1", missing=(compiler, GPU))
    assert missing_to_run(library) == (GPU,)
    assert missing_to_build(library) == (compiler, GPU)


def test_a_library_that_is_absent_builds_nothing() -> None:
    absent = Missing(what="the package", fix="pip install it")
    assert lacks(version=None, missing=(absent,)) == (absent,)


def test_what_is_missing_is_said_with_what_adds_it() -> None:
    assert in_words((GPU, GPU)) == "; ".join(["a GPU (use a machine with one)"] * 2)


def test_every_backend_and_model_is_examined() -> None:
    report = examine()
    assert [each["name"] for each in report["backends"]] == list(backend_names())
    assert [each["name"] for each in report["models"]] == list(model_names())
    for each in report["backends"]:
        assert each["runs"] or each["missing"]
        assert each["builds"] or each["missing"]
        assert len(each["fixes"]) == len(each["missing"])


def test_eager_and_onnxruntime_work_on_any_machine() -> None:
    able = {each["name"] for each in examine()["backends"] if each["builds"] and each["runs"]}
    assert {"eager", "onnxruntime"} <= able


def test_a_machine_without_a_compiler_runs_what_was_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    inductor = next(each for each in examine()["backends"] if each["name"] == "inductor")
    assert (inductor["builds"], inductor["runs"]) == (False, True)
    assert "no-such-compiler" in inductor["missing"][0]


@pytest.mark.rtx
def test_rtx_builds_on_any_machine() -> None:
    rtx = next(each for each in examine()["backends"] if each["name"] == "tensorrt-rtx")
    assert rtx["builds"]
    assert rtx["targets"]


# --- the GPU ----------------------------------------------------------------------------------


def answer(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> str | None:
    """What is found with an nvidia-smi that runs ``script``."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    found: str | None = examine()["machine"]["gpu"]
    return found


def test_gpus_are_named_by_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = "echo NVIDIA H200; echo NVIDIA L4"
    assert answer(monkeypatch, tmp_path, names) == "NVIDIA H200, NVIDIA L4"


@pytest.mark.parametrize("script", ["exit 9", "echo no driver; exit 1", "true"])
def test_a_driver_that_does_not_answer_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    assert answer(monkeypatch, tmp_path, script) is None


@pytest.mark.parametrize("error", [OSError(8, "Exec format"), subprocess.TimeoutExpired("x", 20)])
def test_a_driver_that_hangs_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert answer(monkeypatch, tmp_path, "true") is None


def test_no_tool_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examine()["machine"]["gpu"] is None


# --- the table --------------------------------------------------------------------------------


def test_the_table_prints_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    report = examine()
    report["backends"][0] |= {"missing": ["a [package]"], "fixes": ["pip install x[rtx]"]}
    tables.doctor_table(report)
    words = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "[package]" in words
    assert "x[rtx]" in words
    assert all(name in words for name in backend_names())
