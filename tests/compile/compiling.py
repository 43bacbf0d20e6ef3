"""What the tests of torch.compile(backend="fresco_trt") share: a small model, and counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import list_backends, register_backend

from fresco_trt.compile import Counters, compile_graph, counters
from fresco_trt.compile.store import ENTRY
from fresco_trt.plan.signature import GraphSignature, TensorSpec

# The entry point works once the package is installed with it; a checkout registers the function.
if "fresco_trt" not in list_backends():
    register_backend(compiler_fn=compile_graph, name="fresco_trt")


class Small(nn.Module):
    """A linear layer, a constant buffer and a non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.full((3,), 0.5))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) + self.shift)


def compiled(module: Any, cache: Path, *, dynamic: bool | None = False, **options: object) -> Any:
    """A module or function with engines in ``cache``."""
    return torch.compile(
        module, backend="fresco_trt", options={"cache": str(cache), **options}, dynamic=dynamic
    )


def since(before: Counters) -> tuple[int, int, int]:
    """Engines built, reused, and graphs that fell back since a count."""
    now = counters()
    return (
        now.built - before.built,
        now.reused - before.reused,
        now.fallbacks - before.fallbacks,
    )


def entries(cache: Path) -> list[Path]:
    """The engines of a cache, each a folder."""
    return sorted(path.parent for path in cache.glob(f"*/*/{ENTRY}"))


SIGNATURE = GraphSignature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(1,)),),
)
KEY = "0" * 64


def filled(content: bytes) -> Callable[[Path], tuple[str, ...]]:
    """What builds an engine with that content."""

    def make(folder: Path) -> tuple[str, ...]:
        (folder / "engine").write_bytes(content)
        (folder / "left over").write_bytes(b"what it was made from")
        return ("engine",)

    return make
