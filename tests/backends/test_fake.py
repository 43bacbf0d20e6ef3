"""Laws of the public fake runner: as strict as an engine, and a witness of every call."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import EngineFailed, SignatureMismatch
from fresco_trt.plan.signature import GraphSignature, TensorSpec

SIGNATURE = GraphSignature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
)


def double(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"y": inputs["x"] * 2}


def test_calls_are_recorded_as_they_were() -> None:
    fake = FakeRunner(SIGNATURE, double)
    x = torch.tensor([1.0, 2.0])
    with fake:
        fake({"x": x})
        x.zero_()
        fake({"x": x})
    assert [call["x"].tolist() for call in fake.calls] == [[1.0, 2.0], [0.0, 0.0]]
    assert fake.entered == 1


def test_outputs_are_valid_until_the_next_call_only() -> None:
    with FakeRunner(SIGNATURE, double) as fake:
        first = fake({"x": torch.ones(2)})["y"]
        assert first.tolist() == [2.0, 2.0]
        second = fake({"x": torch.zeros(2)})["y"]
        assert second.data_ptr() == first.data_ptr()
        assert first.tolist() == [0.0, 0.0]


def test_without_a_function_outputs_are_zeros() -> None:
    with FakeRunner(SIGNATURE) as fake:
        assert fake({"x": torch.ones(2)})["y"].tolist() == [0.0, 0.0]


def test_scope_and_signature_are_enforced() -> None:
    fake = FakeRunner(SIGNATURE, double)
    with pytest.raises(RuntimeError, match="inside its scope"):
        fake({"x": torch.ones(2)})
    with fake, pytest.raises(SignatureMismatch):
        fake({"x": torch.ones(3)})
    assert fake.calls == []


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2).double()])
def test_a_function_that_breaks_the_signature_is_an_engine_that_fails(wrong: Tensor) -> None:
    with FakeRunner(SIGNATURE, lambda inputs: {"y": wrong}) as fake, pytest.raises(EngineFailed):
        fake({"x": torch.ones(2)})
