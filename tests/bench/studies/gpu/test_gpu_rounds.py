"""Laws of fitting into a time: what is dropped, and in which order; rounds are fair and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.methods import Timed
from bench.gpu.rounds import FINISH, Budget, Record, fitting, needed, take_rounds
from fresco_trt.errors import EngineFailed

COSTS = (("first", 40.0), ("second", 20.0), ("third", 4.0))


@dataclass
class Time:
    """A clock that the methods themselves move on, and what ran when."""

    seconds: float = 0.0
    ran: list[str] = field(default_factory=list)

    def method(self, name: str, seconds: float) -> Callable[[int], Timed]:
        def draw(seed: int) -> Timed:
            self.seconds += seconds
            self.ran.append(name)
            inside = {"stage1.full": [seconds / 4, seconds / 4]}
            return Timed(seconds=seconds, inside=inside, latents=torch.zeros(1))

        return draw


def rates() -> Mapping[str, float]:
    return {"8x8x8": 1e12}


def measured(
    time: Time, seconds: Mapping[str, float], minutes: float, path: Path, **changed: Any
) -> dict[str, Any]:
    """The document of rounds over methods that take as long as they should, but for ``changed``."""
    methods = {name: time.method(name, cost) for name, cost in seconds.items()} | changed
    budget = Budget(seconds=60 * minutes + FINISH, began=0.0, now=lambda: time.seconds)
    record = Record(path, {"machine": "here"})
    take_rounds(methods, seconds, rates, budget, record)
    return record.document


# --- dropping ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (64.0, ("first", "second", "third")),
        (63.0, ("first", "second")),
        (59.0, ("first",)),
        (0.0, ("first",)),
    ],
)
def test_groups_are_dropped_from_the_end(left: float, kept: tuple[str, ...]) -> None:
    assert fitting(COSTS, left) == kept


def test_a_cheap_group_is_not_kept_over_a_more_important_one() -> None:
    assert fitting([("first", 1.0), ("dear", 100.0), ("cheap", 0.1)], 50.0) == ("first",)


def test_the_budget_keeps_time_to_finish() -> None:
    budget = Budget(seconds=100.0, began=5.0, now=lambda: 25.0)
    assert budget.spent == 20.0
    assert budget.left == 100.0 - FINISH - 20.0


# --- rounds -----------------------------------------------------------------------------------


def test_methods_take_turns_and_who_begins_moves_on(tmp_path: Path) -> None:
    time = Time()
    measured(time, {"a": 1.0, "b": 1.0, "c": 1.0}, 10.0, tmp_path / "out.json")
    assert time.ran[:9] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_rounds_end_when_another_does_not_fit(tmp_path: Path) -> None:
    document = measured(Time(), {"a": 20.0, "b": 30.0}, 2.0, tmp_path / "out.json")
    assert [each["round"] for each in document["rounds"]] == [0, 1]
    assert all(each["methods"].keys() == {"a", "b"} for each in document["rounds"])


def test_long_methods_are_in_the_first_rounds_only(tmp_path: Path) -> None:
    time = Time()
    budget = Budget(seconds=100.0, began=0.0, now=lambda: time.seconds)
    costs = {"long": 20.0, "short": 1.0}
    methods = {name: time.method(name, cost) for name, cost in costs.items()}
    record = Record(tmp_path / "out.json", {})
    take_rounds(methods, costs, rates, budget, record, most=4, long=["long"])
    found = [set(each["methods"]) for each in record.document["rounds"]]
    assert found == [{"long", "short"}] * 2 + [{"short"}] * 2
    assert needed(20.0, long=True) == 20.0
    assert needed(1.0, long=False) == 4.0


def test_a_second_round_of_long_methods_does_not_cost_the_others_theirs(tmp_path: Path) -> None:
    time = Time()
    budget = Budget(seconds=FINISH + 63.0, began=0.0, now=lambda: time.seconds)
    costs = {"long": 30.0, "short": 2.0}
    methods = {name: time.method(name, cost) for name, cost in costs.items()}
    record = Record(tmp_path / "out.json", {})
    take_rounds(methods, costs, rates, budget, record, most=4, long=["long"])
    found = [set(each["methods"]) for each in record.document["rounds"]]
    assert found == [{"long", "short"}] + [{"short"}] * 3


def test_a_run_that_was_killed_is_gone_on_with_if_it_is_the_same(tmp_path: Path) -> None:
    path, costs = tmp_path / "out.json", {"a": 1.0}
    head = {"machine": "here", "minutes": 4}

    def run(head: Mapping[str, Any], most: int) -> Record:
        time = Time()
        budget = Budget(seconds=100.0, began=0.0, now=lambda: time.seconds)
        record = Record(path, head, ["machine"])
        take_rounds({"a": time.method("a", 1.0)}, costs, rates, budget, record, most=most)
        return record

    run(head, 2)
    again = run({**head, "minutes": 9}, 3)
    assert again.resumed == 2
    assert [each["round"] for each in again.document["rounds"]] == [0, 1, 2]
    assert run({**head, "machine": "there"}, 1).resumed == 0


def test_a_method_that_does_not_fit_is_left_out_and_named_once(tmp_path: Path) -> None:
    document = measured(Time(), {"a": 20.0, "b": 50.0, "c": 5.0}, 1.0, tmp_path / "out.json")
    assert [each["methods"].keys() for each in document["rounds"]] == [{"a", "c"}, {"a", "c"}]
    assert [each["what"] for each in document["dropped"]] == ["b"]


def test_what_comes_of_a_round_is_worked_out_before_the_next_one(tmp_path: Path) -> None:
    time, seen = Time(), list[int]()
    budget = Budget(seconds=100.0, began=0.0, now=lambda: time.seconds)
    record = Record(tmp_path / "out.json", {})
    methods, costs = {"a": time.method("a", 1.0)}, {"a": 1.0}

    def look() -> None:
        seen.append(len(json.loads(record.unfinished.read_text())["rounds"]))

    take_rounds(methods, costs, rates, budget, record, most=3, after=look)
    assert seen == [1, 2, 3]


def test_a_method_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails(seed: int) -> Timed:
        calls.append(seed)
        raise EngineFailed("no kernel for this card", expected="one", fix="none")

    document = measured(Time(), {"a": 1.0, "b": 1.0}, 1.0, tmp_path / "out.json", b=fails)
    assert calls == [0]
    assert [each["what"] for each in document["failed"]] == ["b"]
    assert "no kernel for this card" in document["failed"][0]["reason"]
    assert all(each["methods"].keys() == {"a"} for each in document["rounds"])
    assert len(document["rounds"]) > 1


# --- the record -------------------------------------------------------------------------------


def test_a_killed_run_keeps_every_picture_that_was_timed(tmp_path: Path) -> None:
    path = tmp_path / "out.json"

    def killed(seed: int) -> Timed:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(Time(), {"a": 1.0, "b": 1.0}, 1.0, path, b=killed)
    assert not path.exists()
    stored = json.loads((tmp_path / "out-unfinished.json").read_text())
    assert stored["rounds"][0]["methods"]["a"]["engine_seconds"] == 0.5
    assert stored["rounds"][0]["methods"]["a"]["finite"]
    assert not stored["complete"]
    assert stored["machine"] == "here"


def test_a_part_that_fails_is_timed_and_told_and_ends_there(tmp_path: Path) -> None:
    record = Record(tmp_path / "out.json", {})
    with record.phase("building"):
        record.drop("engine", "no time")
        raise EngineFailed("the compiler is missing", expected="one", fix="install it")
    stored = json.loads(record.unfinished.read_text())
    assert stored["failed"][0]["what"] == "building"
    assert "Fix: install it" in stored["failed"][0]["reason"]
    assert stored["dropped"] == [{"what": "engine", "reason": "no time"}]
    assert stored["phases"]["building"] >= 0.0


def test_a_finished_run_stays_until_another_one_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    Record(path, {"run": 1}).finish()
    second = Record(path, {"run": 2})
    assert json.loads(path.read_text())["run"] == 1
    second.finish()
    stored = json.loads(path.read_text())
    assert (stored["run"], stored["complete"]) == (2, True)
    assert list(tmp_path.iterdir()) == [path]


def test_latents_that_are_no_numbers_are_said_to_be_none(tmp_path: Path) -> None:
    def broken(seed: int) -> Timed:
        return Timed(seconds=1.0, inside={}, latents=torch.tensor([float("nan")]))

    document = measured(Time(), {"a": 1.0}, 1.0, tmp_path / "out.json", a=broken)
    assert not document["rounds"][0]["methods"]["a"]["finite"]
