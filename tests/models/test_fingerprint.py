"""What a fingerprint of weights sees, and what it leaves to the digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fresco_trt.models.fingerprint import LENGTH, LINES, Fingerprint

WHOLE = LINES * LENGTH


@pytest.fixture
def model() -> nn.Module:
    """Weights that are sampled, one of another dtype, and biases that are looked at whole."""
    layers = nn.Sequential(nn.Linear(96, 80), nn.Linear(80, 64, dtype=torch.bfloat16))
    layers.register_buffer("table", torch.randn(3, 7))
    return layers


def tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def first(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def counted(model: nn.Module) -> None:
    with torch.no_grad():
        first(model)[40, 50] += 1


def through_data(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.data += 0.01


def through_data_of_one(model: nn.Module) -> None:
    list(model.parameters())[2].data.mul_(1.1)


def through_numpy(model: nn.Module) -> None:
    array = first(model).detach().numpy()
    array *= np.float32(1.01)


def one_element_of_a_bias(model: nn.Module) -> None:
    list(model.parameters())[1].data[37] = float("nan")


def the_first_element(model: nn.Module) -> None:
    first(model).data[0, 0] = 3.0


def other_memory(model: nn.Module) -> None:
    first(model).data = first(model).detach().clone()


def other_layout(model: nn.Module) -> None:
    square = first(model)
    square.data = square.data.T


def other_tensor(model: nn.Module) -> None:
    model.table = model.table.clone()


def one_fewer(model: nn.Module) -> None:
    del model.table


CHANGES: list[Callable[[nn.Module], None]] = [
    counted,
    through_data,
    through_data_of_one,
    through_numpy,
    one_element_of_a_bias,
    the_first_element,
    other_memory,
    other_layout,
    other_tensor,
    one_fewer,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_a_change_is_seen(model: nn.Module, change: Callable[[nn.Module], None]) -> None:
    before = Fingerprint.of(tensors(model))
    assert before.hold(tensors(model))
    change(model)
    assert not before.hold(tensors(model))
    assert Fingerprint.of(tensors(model)).hold(tensors(model))


def test_a_sparse_write_is_seen_by_chance_as_it_is_stated() -> None:
    """1% of the elements of ten tensors, as sparse adapters write them: each misses 0.6%."""
    weights = [torch.zeros(300, 200) for _ in range(10)]
    before = Fingerprint.of(weights)
    for weight in weights:
        weight.data[torch.rand(300, 200) < 0.01] = 1.0
    assert not before.hold(weights)


def test_a_write_to_one_element_of_a_large_tensor_is_not_seen() -> None:
    """The limit that is stated: such a write needs the digest."""
    weight = torch.zeros(1000, WHOLE)
    before = Fingerprint.of([weight])
    weight.data[1, 100] = 1.0
    assert before.hold([weight])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 4),
        torch.tensor(3.0),
        torch.randn(50, 60).T,
        torch.randn(90, 80)[10:70:2, ::3],
        torch.randn(1, 40).expand(50, 40),
        torch.randn(40, 30).to(torch.float8_e4m3fn),
        torch.full((40, 30), float("nan")),
        torch.randn(2, 6, 8, 9).to(memory_format=torch.channels_last),
        torch.zeros(900, 900, device="meta"),
        torch.eye(30).to_sparse(),
    ],
    ids=lambda each: f"{str(each.dtype)[6:]}-{tuple(each.shape)}-{each.layout}"[:40],
)
def test_any_tensor_has_a_fingerprint(tensor: Tensor) -> None:
    before = Fingerprint.of([tensor])
    assert before.hold([tensor])
    if tensor.is_contiguous() and tensor.dtype == torch.float32 and tensor.numel():
        tensor.data.fill_(0.25)
        assert before.hold([tensor]) == tensor.is_meta


def test_weights_made_in_inference_mode_are_watched_too() -> None:
    with torch.inference_mode():
        weight = torch.ones(80, 80)
        before = Fingerprint.of([weight])
        weight += 1
        assert not before.hold([weight])


def test_tensors_are_held_weakly() -> None:
    weight = torch.ones(3)
    before = Fingerprint.of([weight])
    assert before.alive
    del weight
    assert not before.alive
