"""Laws of graph signatures: static shapes, names once, JSON both ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.signature import DTYPES, GraphSignature, TensorSpec

LAW = settings(deadline=None, max_examples=40, database=None)

SHAPES = st.lists(st.integers(1, 2**40), max_size=5).map(tuple)


def spec(name: str, shape: tuple[int, ...] = (1, 2)) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


@st.composite
def signatures(draw: st.DrawFn) -> GraphSignature:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6, unique=True))
    specs = tuple(
        TensorSpec(name=name, dtype=draw(st.sampled_from(DTYPES)), shape=draw(SHAPES))
        for name in names
    )
    cut = draw(st.integers(1, len(specs) - 1))
    return GraphSignature(inputs=specs[:cut], outputs=specs[cut:])


@LAW
@given(signatures())
def test_json_gives_the_signature_back(signature: GraphSignature) -> None:
    assert GraphSignature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@LAW
@given(signatures())
def test_every_tensor_is_found_on_its_own_side_only(signature: GraphSignature) -> None:
    for each in signature.inputs:
        assert signature.input(each.name) is each
        with pytest.raises(KeyError):
            signature.output(each.name)
    for each in signature.outputs:
        assert signature.output(each.name) is each
        with pytest.raises(KeyError):
            signature.input(each.name)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4", None])
def test_every_dimension_is_a_positive_integer(size: object) -> None:
    with pytest.raises(InvalidPlan, match="x"):
        spec("x", (1, size))  # type: ignore[arg-type]


def test_a_tensor_has_a_name_and_a_known_dtype() -> None:
    with pytest.raises(InvalidPlan, match="name"):
        spec("")
    with pytest.raises(InvalidPlan, match="complex64"):
        TensorSpec(name="x", dtype="complex64", shape=(1,))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(("a", "a"), ("b",)), (("a",), ("b", "b")), (("a",), ("a",)), ((), ("a",)), (("a",), ())],
)
def test_names_occur_once_and_neither_side_is_empty(
    inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidPlan):
        GraphSignature(
            inputs=tuple(spec(name) for name in inputs),
            outputs=tuple(spec(name) for name in outputs),
        )


@pytest.mark.parametrize(
    "change",
    [{"name": 3}, {"dtype": "float33"}, {"dtype": 32}, {"shape": "12"}, {"shape": [1.0]}, {"x": 1}],
)
def test_a_stored_tensor_of_another_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan):
        TensorSpec.from_json({**spec("x").to_json(), **change})
