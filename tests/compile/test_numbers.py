"""Python numbers as arguments: one engine for each shape, whatever their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fresco_trt.compile import counters
from tests.compile.compiling import Small, compiled, since


class Scaled(Small):
    """A model that holds a float, and takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 0.5

    def forward(self, x: Tensor, scale: float = 1.5) -> Tensor:
        return super().forward(x * self.half) * scale


def test_with_open_shapes_floats_are_passed_and_an_engine_built_for_each_shape(cache: Path) -> None:
    module, before = Scaled(), counters()
    fast = compiled(module, cache, dynamic=True, strict=True)
    for rows, scale in ((2, 1.5), (2, 2.5), (3, 2.5)):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x, scale), module(x, scale))
    module.half = 0.25
    torch.testing.assert_close(fast(x), module(x))
    assert since(before) == (2, 0, 0)


@pytest.mark.usefixtures("torch_tensorrt")
def test_a_second_value_of_a_float_gets_the_last_engine_that_is_built(cache: Path) -> None:
    module, x, before = Scaled(), torch.randn(2, 4), counters()
    fast = compiled(module, cache, dynamic=None, strict=True, backend="torch-tensorrt")
    for scale in (1.0, 2.0, 3.0, 4.0):
        torch.testing.assert_close(fast(x, scale), module(x, scale))
    assert since(before) == (2, 0, 0)


def arithmetic(x: Tensor, t: float) -> Tensor:
    x = (x + t * 2.0 / 3 - t**2) / (t + 4) + x.abs() ** t + (x > t) * (5 - x)
    filled = torch.full((x.shape[0], 1), t) + torch.tensor([t, 1.0, t * 2, 3], dtype=torch.float64)
    return x * filled.float() + torch.tensor(t)


def timestep(x: Tensor, t: float) -> Tensor:
    """As diffusers' UNet takes a number for a timestep."""
    kind = torch.float64 if isinstance(t, float) else torch.int64
    times = torch.tensor([t], dtype=kind).expand(x.shape[0])
    return x * torch.sin(times[:, None].float() / 1000)


def attribute(x: Tensor, t: float) -> Tensor:
    return nn.functional.layer_norm(x, (4,), eps=t)


def bound(x: Tensor, t: float) -> Tensor:
    return x.clamp(max=t) + torch.arange(4) * t


def double(x: Tensor, t: float) -> Tensor:
    """As the rotary positions of Flux take their base."""
    return x + (1.0 / (t * 1000.0) ** (torch.arange(4, dtype=torch.float64) / t)).float()


def size(x: Tensor, t: int) -> Tensor:
    return x[:, :t] * t


# How many engines a few values take: one where the number is passed, else one for each value.
USES: list[tuple[Callable[..., Tensor], Sequence[float], int]] = [
    (arithmetic, (0.5, 0.25, 0.125), 1),
    (timestep, (500, 250, 125), 1),
    (attribute, (0.5, 0.25), 2),
    (bound, (0.5, 0.25), 2),
    (double, (0.3, 0.7), 2),
    (size, (2, 3), 2),
]


@pytest.mark.usefixtures("torch_tensorrt")
@pytest.mark.parametrize(
    ("function", "values", "engines"), USES, ids=lambda each: getattr(each, "__name__", None)
)
def test_numbers_are_passed_or_built_in_by_what_takes_them(
    cache: Path, function: Callable[..., Tensor], values: Sequence[Any], engines: int
) -> None:
    x, before = torch.randn(2, 4), counters()
    # Built in, a number is no matter of the library: the quickest to build will do.
    name = "onnxruntime" if engines == 1 else "torch-tensorrt"
    fast = compiled(function, cache, dynamic=True, strict=True, backend=name)
    for value in (*values, values[0]):
        torch.testing.assert_close(fast(x, value), function(x, value))
    assert since(before) == (engines, 0, 0)


@pytest.mark.usefixtures("torch_tensorrt")
def test_a_number_in_half_precision_changes_no_dtype(cache: Path) -> None:
    x, before = torch.randn(2, 4, dtype=torch.float16), counters()
    name = "torch-tensorrt"
    fast = compiled(lambda x, t: x * t, cache, dynamic=True, strict=True, backend=name)
    for value in (0.5, 0.3):
        found = fast(x, value)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, x * value)
    assert since(before) == (1, 0, 0)
