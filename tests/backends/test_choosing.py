"""The rule of what a build has that names no library and no precision, on scripted machines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends import choosing
from fresco_trt.backends.base import BackendFacts, Missing
from fresco_trt.backends.choosing import Gpu, this_gpu
from fresco_trt.errors import UnknownBackend
from fresco_trt.lower import request as lower
from fresco_trt.lower.request import BuildRequest, resolve

H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), bytes=80 * 10**9)
RTX = Gpu(name="NVIDIA GeForce RTX 4090", capability=(8, 9), bytes=24 * 10**9)
TURING = Gpu(name="Tesla T4", capability=(7, 5), bytes=16 * 10**9)

PRECISIONS = {
    "tensorrt-rtx": ("fp32", "bf16", "fp16", "fp8"),
    "tensorrt": ("fp32", "bf16", "fp16", "int8", "fp8"),
    "inductor": ("fp32", "bf16", "fp16", "fp8"),
    "onnxruntime": ("fp32", "int8", "fp8"),
}


@dataclass
class Library:
    """A library of a scripted machine; with something ``missing`` unless it is installed."""

    name: str
    installed: bool

    def check(self) -> tuple[Missing, ...]:
        return () if self.installed else (Missing(what="the package", fix="pip install it"),)

    def describe(self) -> BackendFacts:
        modules, cpu = self.name == "inductor", self.name == "onnxruntime"
        return BackendFacts(
            name=self.name,
            library=self.name,
            version="1",
            graph_format="module" if modules else "onnx",
            targets=("sm89",) if self.name == "tensorrt-rtx" else (),
            precisions=PRECISIONS[self.name],
            device="cpu" if cpu else "cuda",
            layouts=("static", "profiles") if "tensorrt" in self.name else ("static",),
        )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what is installed, and the GPU that is found."""

    def script(gpu: Gpu | None, *installed: str) -> None:
        def backend(name: str) -> Library:
            if name not in PRECISIONS:
                raise UnknownBackend(name, expected="another", fix="pass another")
            return Library(name, name in installed)

        monkeypatch.setattr(choosing, "backend", backend)
        monkeypatch.setattr(lower, "this_gpu", lambda: gpu)

    return script


def chosen(**asked: Any) -> tuple[str, str]:
    resolved = resolve(BuildRequest(model="flux-tiny", **asked))
    return resolved.backend.name, resolved.quant.precision  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("gpu", "installed", "wanted"),
    [
        (None, ("onnxruntime", "tensorrt-rtx", "inductor"), ("onnxruntime", "fp32")),
        (RTX, ("tensorrt-rtx", "tensorrt", "inductor"), ("tensorrt-rtx", "bf16")),
        (RTX, ("tensorrt", "inductor"), ("tensorrt", "bf16")),
        (RTX, ("inductor",), ("inductor", "bf16")),
        (H100, ("tensorrt-rtx", "tensorrt", "inductor"), ("tensorrt", "bf16")),
        (H100, ("tensorrt-rtx", "inductor"), ("inductor", "bf16")),
        (H100, (), ("inductor", "bf16")),  # whose build says what is missing, and the fix
        (TURING, ("inductor",), ("inductor", "fp32")),
    ],
)
def test_the_default_is_what_the_machine_runs_best(
    machine: Any, gpu: Gpu | None, installed: tuple[str, ...], wanted: tuple[str, str]
) -> None:
    machine(gpu, *installed)
    assert chosen() == wanted


def test_what_is_asked_by_name_is_had_and_the_rest_follows_from_it(machine: Any) -> None:
    machine(H100, "tensorrt", "inductor")
    assert chosen(backend="onnxruntime") == ("onnxruntime", "fp32")
    assert chosen(backend="inductor") == ("inductor", "bf16")
    assert chosen(precision="fp32") == ("tensorrt", "fp32")
    machine(None, "inductor")
    # Built here for GPUs elsewhere: as before there was a default for them.
    assert chosen(backend="tensorrt-rtx") == ("tensorrt-rtx", "fp32")
    with pytest.raises(UnknownBackend):
        chosen(backend="abacus")


def test_a_library_that_cannot_do_what_else_is_asked_is_passed_over(machine: Any) -> None:
    machine(RTX, "tensorrt-rtx", "tensorrt", "inductor")
    assert chosen(precision="int8") == ("tensorrt", "int8")
    assert chosen(precision="fp8,recipe=fp8-rowwise") == ("inductor", "fp8")
    machine(H100, "inductor")
    assert chosen(precision="int8") == ("onnxruntime", "int8")
    assert chosen(graphs=Path("graphs")) == ("onnxruntime", "fp32")


def test_a_line_says_what_was_not_asked_for_and_why(machine: Any) -> None:
    def said(**asked: Any) -> str | None:
        return resolve(BuildRequest(model="flux-tiny", **asked)).defaults

    machine(None)
    assert said() == "onnxruntime in fp32: no NVIDIA GPU that torch can use is here"
    assert said(precision="int8") == "onnxruntime: no NVIDIA GPU that torch can use is here"
    assert said(backend="onnxruntime") == "fp32: what runs on a CPU has it by default"
    assert said(backend="onnxruntime", precision="fp32") is None
    machine(RTX, "tensorrt-rtx")
    assert said() == (
        "tensorrt-rtx in bf16: the first library for an RTX GPU that is installed here"
    )
    machine(H100)
    assert said() == (
        "inductor in bf16: the library for any CUDA GPU, such as this NVIDIA H100 80GB HBM3"
    )


@pytest.mark.parametrize("version", [None, "2.13.0+cpu"])
def test_torch_built_for_cpus_is_not_imported_to_look_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    monkeypatch.setattr(choosing, "torch_version", lambda: version)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert this_gpu() is None


def test_without_a_gpu_the_default_is_what_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the bundle is the same too: nothing else of a request is in its key."""
    monkeypatch.setattr(lower, "this_gpu", lambda: None)
    default = resolve(BuildRequest(model="flux-tiny"))
    named = resolve(BuildRequest(model="flux-tiny", backend="onnxruntime", precision="fp32"))
    assert replace(default, backend=named.backend, defaults=None) == named
    assert type(default.backend) is type(named.backend)
