"""Weights that change under an engine: the new values are drawn with, however they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fresco_trt.compile import counters
from tests.compile.compiling import Small, compiled, since

pytestmark = pytest.mark.usefixtures("torch_tensorrt")  # the quickest to build


class Adapted(Small):
    """A linear layer with a low-rank adapter, whose weights are swapped while it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.scaling = {"default": torch.tensor(0.5)}
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x)) * self.scaling["default"]


def writes_in_place(model: Adapted) -> None:
    model.linear.weight.mul_(2.0)
    model.shift.add_(1.0)


def replaces_one(model: Adapted) -> None:
    model.linear.weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)


def writes_through_data(model: Adapted) -> None:
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)


def copies_averages(model: Adapted) -> None:
    """As a trainer does with diffusers' average of the weights."""
    from diffusers.training_utils import EMAModel

    average = EMAModel(Adapted().parameters())  # type: ignore[no-untyped-call]
    average.copy_to(model.parameters())


def swaps_an_adapter(model: Adapted) -> None:
    """As PEFT does in a model that is compiled: other memory, and another scale in place."""
    for layer in (model.down, model.up):
        layer.weight.data = torch.randn_like(layer.weight)
    model.scaling["default"].fill_(2.0)


def fuses_an_adapter(model: Adapted) -> None:
    model.linear.weight.data += (model.up.weight @ model.down.weight) * 0.5
    model.up.weight.data.zero_()


def writes_to_a_buffer(model: Adapted) -> None:
    model.shift.numpy()[:] = 3.0


CHANGES = [
    writes_in_place,
    replaces_one,
    writes_through_data,
    copies_averages,
    swaps_an_adapter,
    fuses_an_adapter,
    writes_to_a_buffer,
]


@pytest.mark.parametrize("change", CHANGES)
def test_new_values_are_drawn_with(cache: Path, change: Callable[[Adapted], None]) -> None:
    model, x, before = Adapted(), torch.randn(2, 4), counters()
    fast = compiled(model, cache, strict=True, backend="torch-tensorrt")
    old = fast(x)
    change(model)
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast(x), model(x))
    assert change is fuses_an_adapter or not torch.allclose(fast(x), old, atol=1e-3)
    assert since(before) == (2, 0, 0)


def test_values_that_come_back_get_their_engine_from_the_disk_and_old_ones_are_let_go(
    cache: Path,
) -> None:
    model, x, before = Adapted(), torch.randn(2, 4), counters()
    kept: list[object] = []
    options = {"cache": str(cache), "strict": True, "backend": "torch-tensorrt"}

    def backend(graph: object, examples: object) -> object:
        from fresco_trt.compile import compile_graph

        kept.append(compile_graph(graph, examples, options=options))  # type: ignore[arg-type]
        return kept[-1]

    fast = torch.compile(model, backend=backend, dynamic=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x))
        for name, value in model.named_parameters():
            value.data.copy_(state[name] + 0.1)
        torch.testing.assert_close(fast(x), model(x))
        for name, value in model.named_parameters():
            value.data.copy_(state[name])
    assert since(before) == (2, 2, 0)
    assert [len(graph._cases) for graph in kept] == [1]  # type: ignore[attr-defined]


def test_a_graph_that_torch_runs_is_told_once_however_often_its_weights_change(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, x, before = Adapted().requires_grad_(True), torch.randn(2, 4), counters()
    fast = compiled(model, cache, backend="torch-tensorrt")
    for _ in range(3):
        fast(x).sum().backward()
        torch.testing.assert_close(fast(x), model(x))
        with torch.no_grad():
            model.linear.weight.sub_(0.1)
    assert since(before) == (0, 0, 1)
    assert len([each for each in caplog.records if each.name.startswith("fresco_trt")]) == 1
