"""The measurement's order and its memory, on an instrument that draws by name and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fresco_trt.backends.base import silent
from fresco_trt.bench.instrument import Case, Draw, Drawn, LeftOut, Scores
from fresco_trt.bench.methods import Method, Point
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.rounds import Measured, measure
from fresco_trt.errors import EngineFailed

if TYPE_CHECKING:
    from fresco_trt.bench.instrument import Pixels


def point(method: Method, steps: int) -> Point:
    preset = None if method == "plain" else f"{steps} steps"
    return Point(method=method, settings=Plain(steps=steps), preset=preset)


POINTS = (point("plain", 50), point("few-step", 5), point("few-step", 9), point("ralu", 3))


class Counter:
    """An instrument whose drawings are noted; ``broken`` raise, from the case ``since`` on."""

    timed = True

    def __init__(self, scenes: int, broken: Mapping[str, int] | None = None) -> None:
        self.scenes, self.broken = scenes, broken or {}
        self.drawn: list[tuple[int, str]] = []

    @property
    def cases(self) -> Sequence[Case]:
        return [Case(number=n, caption=f"scene {n}", seed=n) for n in range(self.scenes)]

    @property
    def warm_up(self) -> Case:
        return Case(number=-1, caption="warm", seed=-1)

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        names = [each.name for each in points if each.method != "ralu"]
        left_out = [LeftOut(what="ralu, 3 steps", reason="no such thing here")]
        return {name: self._method(name) for name in names}, left_out

    def _method(self, name: str) -> Draw:
        def draw(inputs: Mapping[str, Tensor], seed: int) -> Drawn:
            if seed >= self.broken.get(name, 10**9):
                raise RuntimeError(f"{name} is\nbroken")
            self.drawn.append((seed, name))
            return Drawn(latents=torch.zeros(1), seconds=1.0, engine_seconds=None, flops=1.0)

        return draw

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        return {}

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Scores], dict[str, Pixels]]:
        pixels = {name: np.zeros((4, 4, 3), np.uint8) for name in drawn}
        return {name: {"seconds": each.seconds} for name, each in drawn.items()}, pixels

    def real_features(self) -> Tensor | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}


def run(instrument: Counter, folder: Path, said: list[str] | None = None) -> Measured:
    with ExitStack() as scope:
        return measure(
            instrument,
            POINTS,
            scope,
            log=folder / "run.jsonl",
            header={"command": "this"},
            tiles=folder / "tiles",
            progress=silent,
            say=(said if said is not None else []).append,
        )


def test_every_scene_is_drawn_by_every_method_in_turn(tmp_path: Path) -> None:
    instrument = Counter(4)
    measured = run(instrument, tmp_path)
    names = [each.name for each in measured.points]
    scenes = [seed for seed, _ in instrument.drawn]
    assert scenes == sorted(scenes)  # a scene is finished before the next begins
    for seed in range(-1, 4):
        assert sorted(name for at, name in instrument.drawn if at == seed) == sorted(names)
    first = [instrument.drawn[len(names) * (seed + 1)][1] for seed in range(len(names))]
    assert set(first) == set(names)  # and each has its turn to begin
    assert sorted(measured.log.scenes) == [0, 1, 2, 3]


def test_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    assert -1 not in run(Counter(1), tmp_path).log.scenes


def test_what_cannot_run_says_why_and_is_no_row(tmp_path: Path) -> None:
    measured = run(Counter(2, {"few-step, 9 steps": -1}), tmp_path)
    assert [each.name for each in measured.points] == ["plain", "few-step, 5 steps"]
    assert {each.what: each.reason for each in measured.left_out} == {
        "ralu, 3 steps": "no such thing here",
        "few-step, 9 steps": "RuntimeError: few-step, 9 steps is broken",
    }


def test_without_the_reference_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="is broken"):
        run(Counter(2, {"plain": -1}), tmp_path)
    assert not (tmp_path / "run.jsonl").exists()


def test_a_killed_run_goes_on_with_the_scene_it_was_at(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(Counter(5, {"few-step, 5 steps": 3}), tmp_path)
    again, said = Counter(5), list[str]()
    measured = run(again, tmp_path, said)
    assert {seed for seed, _ in again.drawn} == {-1, 3, 4}
    assert sorted(measured.log.scenes) == [0, 1, 2, 3, 4]
    assert "going on" in said[0]
    assert "3 scenes" in said[0]


def test_another_set_of_methods_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(Counter(5, {"few-step, 5 steps": 3}), tmp_path)
    again, said = Counter(5, {"few-step, 9 steps": -1}), list[str]()
    run(again, tmp_path, said)
    assert "anew: points differ" in said[0]
    assert {seed for seed, _ in again.drawn} == {-1, 0, 1, 2, 3, 4}


def test_the_first_scenes_pictures_are_kept_by_point(tmp_path: Path) -> None:
    measured = run(Counter(10), tmp_path)
    kept = sorted(path.name for path in (tmp_path / "tiles" / "0").iterdir())
    assert kept == [f"{index}.png" for index in range(len(measured.points))]
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == list("01234567")
