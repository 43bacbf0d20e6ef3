"""Laws of strict reading: a type is itself and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import agree, choice, items, number, record, text, whole

VALUES: tuple[object, ...] = (1, 1.5, True, None, "a", [], {}, 10**400, float("nan"))

READERS: dict[Callable[[object, str], object], tuple[object, ...]] = {
    whole: (1,),
    number: (1, 1.5),
    text: ("a",),
    items: ([],),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_reader_takes_its_own_type_only(
    reader: Callable[[object, str], object], value: object
) -> None:
    taken = any(value is own or value == own for own in READERS[reader])
    if taken and not isinstance(value, bool):
        assert reader(value, "thing") == value
    else:
        with pytest.raises(InvalidPlan, match="thing"):
            reader(value, "thing")


@pytest.mark.parametrize(
    ("value", "named"),
    [({"a": 1}, "b"), ({"a": 1, "b": 2, "c": 3}, "c"), ({}, "a, b"), ({"a": 1, 2: 2}, "b")],
)
def test_a_record_has_exactly_its_keys(value: object, named: str) -> None:
    with pytest.raises(InvalidPlan, match=named):
        record(value, ("a", "b"), "thing")


def test_a_record_in_any_order_is_the_record() -> None:
    assert record({"b": 2, "a": 1}, ("a", "b"), "thing") == {"a": 1, "b": 2}


def test_a_choice_is_one_of_its_options() -> None:
    assert choice("b", ("a", "b"), "thing") == "b"
    with pytest.raises(InvalidPlan, match="a, b"):
        choice("c", ("a", "b"), "thing")


def test_a_derived_value_must_agree() -> None:
    agree(3, 3, "thing")
    with pytest.raises(InvalidPlan, match=r"thing is 4 .* expected 3"):
        agree(4, 3, "thing")


@pytest.mark.parametrize(
    "value", ["x" * 10_000, list(range(10_000)), 10**5000], ids=["text", "list", "number"]
)
def test_a_message_stays_readable(value: object) -> None:
    with pytest.raises(InvalidPlan) as raised:
        record(value, ("a",), "thing")
    assert len(str(raised.value)) < 300
