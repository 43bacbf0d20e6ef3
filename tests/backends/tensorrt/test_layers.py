"""What an inspector's JSON says of layers and their precision, in the spellings of versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fresco_trt.backends.tensorrt.layers import engine_information, layer_report


def layer(kind: str, *types: str, tactic: str = "") -> dict[str, Any]:
    return {
        "Name": "some",
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Format/Datatype": each} for each in types],
        "Outputs": [{"Name": "y", "Format/Datatype": "Float"}],
        "TacticName": tactic,
    }


def report(*layers: Any, key: str = "Bindings") -> dict[str, Any] | None:
    return layer_report(json.dumps({"Layers": list(layers), key: ["x", "y"]}))


@pytest.mark.parametrize("key", ["Bindings", "I/O Tensors"])
def test_layers_are_counted_by_the_narrowest_type_they_take(key: str) -> None:
    found = report(
        layer("gemm", "FP8", "FP8"),
        layer("gemm", "Half", "FP8"),
        layer("kgen", "Half", tactic="sm80_xmma_gemm_f16f16"),
        layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format."),
        layer("kgen", "Row major linear FP32", "BFloat16"),
        layer("Shape", "Int32"),
        layer("signal"),
        key=key,
    )
    assert found == {
        "layers": 7,
        "precisions": {"fp8": 2, "fp16": 1, "int8": 1, "bf16": 1, "other": 1, "not told": 1},
        "products": {"fp8": 2, "fp16": 1, "int8": 1},
    }


def test_layers_that_were_kept_by_name_tell_no_precision() -> None:
    assert report("matmul + add", "softmax") == {
        "layers": 2,
        "precisions": {"not told": 2},
        "products": {},
    }


@pytest.mark.parametrize(
    "text",
    [None, "", "layers", "[]", "{}", '{"Layers": []}', '{"Layers": "all"}', "[" * 100_000],
    ids=lambda text: str(text)[:20],
)
def test_what_tells_no_layers_is_no_report(text: str | None) -> None:
    assert layer_report(text) is None


@pytest.mark.parametrize("inputs", ["x", [3], [{"Format/Datatype": 3}], [None]])
def test_inputs_of_another_form_tell_no_precision(inputs: object) -> None:
    found = report({"LayerType": 3, "Inputs": inputs})
    assert found is not None
    assert found["precisions"] == {"not told": 1}


def test_a_library_without_an_inspector_is_not_asked() -> None:
    assert engine_information(object(), object(), object()) is None
