"""A compiler that has seen nothing, and an engine cache with nothing in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _operators(operators_once: None) -> None:
    """Engines for ONNX Runtime are exported, one for each graph."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in that compiles to the program itself and saves it in torch's own format."""
    fake = SimpleNamespace(__version__="0.0", asked=[])

    def compile(program: Any, *, arg_inputs: Any) -> Any:
        fake.asked.append([tuple(each.shape) for each in arg_inputs])
        return program

    def save(program: Any, path: str, *, arg_inputs: Any) -> None:
        torch.export.save(program, path)

    fake.dynamo = SimpleNamespace(compile=compile)
    fake.save, fake.load = save, torch.export.load
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    monkeypatch.setattr("fresco_trt.compile.torch_tensorrt.DEVICE", "cpu")
    return fake
