"""The study of fitness: its tune, its rows and verdict, and a run that is killed and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer

from bench.fitness import command, evaluator, tune
from bench.fitness.command import Options, imagenet, run
from bench.fitness.entries import REFERENCE, STEPS, Entry, steps_of, with_tuned
from bench.fitness.rows import document_of
from bench.fitness.tables import fitness_table, fitness_verdict
from bench.tables import stored
from fresco_trt.backends.base import silent
from fresco_trt.bench.evaluator import decode, encode
from fresco_trt.bench.job import setup_of
from fresco_trt.bench.scenes import judge
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.tune import perceptual
from fresco_trt.tune.perceptual import Network

if TYPE_CHECKING:
    from fresco_trt.bench.instrument import Scores

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the true pictures")

BEST = {10: (1.6, "dpmpp_2m"), 7: (2.4, "unipc"), 5: (None, "euler"), 4: (2.0, "euler")}
"""By number of steps what a scripted tune finds best; of 3 steps all ways are the same."""


def score(entry: Entry, number: int) -> Scores:
    """The best way is closest, and so are many steps; each scene of a sort loses one of them."""
    best = BEST.get(entry.steps) == (entry.mu, entry.solver)
    ssim = 1.0 if entry == REFERENCE else 0.9 + 0.05 * best
    right = entry == REFERENCE or (entry.steps, number % 2) != (10, 1)
    features = encode(torch.full((3,), float(number)) + torch.arange(3))
    return {"right": right, "ssim": ssim, "features": features, "imagenet": features}


def scene(entries: Iterable[Entry], number: int) -> dict[str, Scores]:
    return {each.point.name: score(each, number) for each in (REFERENCE, *entries)}


def entries_of(seen: list[dict[str, Scores]]) -> list[Entry]:
    return with_tuned(tune.tuned(seen))


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Scores]]:
    """The scenes of a whole tune."""
    found: list[dict[str, Scores]] = []
    for number in range(tune.SCENES):
        found.append(scene(tune.contest(number, found), 0))
    return found


# --- the tune ---------------------------------------------------------------------------------


def test_the_best_way_at_each_number_of_steps_is_chosen(seen: list[dict[str, Scores]]) -> None:
    found = {each.steps: (each.mu, each.solver) for each in tune.tuned(seen)}
    assert list(found) == list(STEPS)
    assert found == BEST | {28: BEST[10], 14: BEST[10], 3: (None, "euler")}


def test_a_right_picture_is_worth_more_than_a_close_one() -> None:
    near, right = Entry(steps=5, mu=1.6), Entry(steps=5, mu=2.0)
    scores = {near.point.name: {"right": False, "ssim": 0.9}}
    scores[right.point.name] = {"right": True, "ssim": 0.5}
    assert tune.best_first([near, right], [scores]) == [right, near]


def test_what_is_behind_draws_no_more(seen: list[dict[str, Scores]]) -> None:
    every, few = (len(tune.contest(number, seen)) for number in (0, tune.TRIED))
    assert every == len(tune.TUNED_STEPS) * len(tune.SHIFTS) * len(tune.SOLVERS)
    assert few == len(tune.TUNED_STEPS) * tune.FINALISTS
    stored = tune.tuning_of(seen)
    drawn = [each["scenes"] for each in stored["tried"]]
    assert (max(drawn), min(drawn)) == (tune.SCENES, tune.TRIED)
    assert {"steps": 10, "mu": 1.6, "solver": "dpmpp_2m"} in stored["chosen"]


def test_the_steps_that_are_left_are_those_that_are_drawn(seen: list[dict[str, Scores]]) -> None:
    drawn = [steps_of(tune.contest(number, seen)) for number in range(tune.SCENES)]
    assert tune.steps_left(0, 0) == sum(drawn)
    assert tune.steps_left(3, 0) == sum(drawn[3:])
    # Of 5 and of 3 steps users have what is best, which is drawn once.
    assert tune.steps_left(tune.SCENES, 2) == 2 * (steps_of(entries_of(seen)) + 5 + 3)


# --- rows and verdict -------------------------------------------------------------------------


def test_what_is_lost_is_told_in_pairs_and_decides(seen: list[dict[str, Scores]]) -> None:
    entries = entries_of(seen)
    scenes = [scene(entries, number) for number in range(20)]
    real = {"features": torch.randn(30, 3)}
    document = document_of(entries, scenes, real)
    rows = {row["name"]: row for row in document["rows"]}
    assert (rows["50 steps"]["lost"], rows["50 steps"]["score"]) == (None, 1)
    ten = rows["10 steps"]
    assert (ten["score"], ten["lost"]) == (0.5, 0.5)
    assert ten["lost_low"] < 0.5 < ten["lost_high"]
    tuned = rows["7 steps, tuned (mu 2.4, unipc)"]
    assert (tuned["lost"], tuned["lost_high"], tuned["ssim"]) == (0, 0, 0.95)
    assert tuned["distance"] > 0
    assert tuned["imagenet_distance"] is None  # there are no features of renders to compare with
    assert [each["met"] for each in document["targets"]] == [True, False]
    assert not document["fit"]
    json.dumps(document, allow_nan=False)
    verdict = fitness_verdict(document | {"scenes": 20})
    assert verdict.startswith("**Not fit to judge by** (20 scenes): 10 steps lose 50.0%")
    assert "5 steps, tuned lose 0.0% of the score (0.0% to 0.0%; at least 10%: missed)" in verdict
    few = document_of(entries, scenes[:2], {})
    # A half is lost here too, but of two scenes it may be by chance.
    assert [each["lost"] for each in few["targets"]] == [0.5, 0]
    assert [each["met"] for each in few["targets"]] == [False, False]
    table = fitness_table(document)
    assert "ImageNet" not in table
    assert table.count("\n") == 1 + len(rows)


def test_nothing_is_lost_to_a_reference_that_has_nothing(seen: list[dict[str, Scores]]) -> None:
    entries = entries_of(seen)
    scenes = [scene(entries, number) for number in range(2)]
    for each in scenes:
        each[REFERENCE.point.name]["right"] = False
    document = document_of(entries, scenes, {})
    assert not document["fit"]
    assert "nothing to lose" in fitness_verdict(document | {"scenes": 2})


def test_a_document_from_before_the_targets_is_still_shown() -> None:
    old = {
        "scenes": 32,
        "best_few_step": "7 steps, mu 2.2",
        "rows": [{"name": "50 steps", "score": 0.8, "score_low": 0.7, "score_high": 0.9}],
    }
    assert fitness_table(old).splitlines()[2] == "| 50 steps | 0.80 (0.70 to 0.90) |"
    assert "7 steps, mu 2.2 is not worse" in fitness_verdict(old)


# --- a run ------------------------------------------------------------------------------------


class Script(evaluator.Evaluator):
    """Draws nothing; the scene number :attr:`stop` kills it."""

    stop = -1
    lines: list[int]

    def __init__(self, setup: Any, entries: Iterable[Entry], *others: Any) -> None:
        pass

    def step_seconds(self) -> tuple[float, float]:
        return 0.6, 1.2

    def line(self, number: int, entries: Iterable[Entry]) -> dict[str, Any]:
        if number == self.stop:
            raise KeyboardInterrupt
        self.lines.append(number)
        return {"caption": "a star", "seed": number, "scores": scene(entries, number)}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    monkeypatch.setattr(evaluator, "Evaluator", Script)
    monkeypatch.setattr(Script, "lines", [], raising=False)
    real = {"features": torch.randn(9, 3), "imagenet": torch.randn(9, 3)}
    monkeypatch.setattr(evaluator, "renders", lambda setup, network: real)
    monkeypatch.setattr(judge, "held_out_accuracy", lambda judge, count: 1.0)
    monkeypatch.setattr(command, "imagenet", lambda: (Network(), []))
    return Script


def test_a_killed_run_goes_on_in_the_tune_and_in_the_scenes(
    script: type[Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = Options(scenes=4, out=tmp_path / "fitness.json", backend="eager"), list[str]()
    for stop in (5, 2):
        monkeypatch.setattr(script, "stop", stop)
        with pytest.raises(KeyboardInterrupt):
            run(options, silent, said.append)
    monkeypatch.setattr(script, "stop", -1)
    document = run(options, silent, said.append)
    # Scenes of the tune up to the first kill; its rest, and scenes up to the second; the rest.
    assert script.lines == [*range(8), *range(4)]
    assert json.loads(options.out.read_text()) == document
    assert document["scenes"] == 4
    assert {"machine", "command", "commit", "rows", "tuning", "fit"} <= document.keys()
    assert f"{tune.steps_left(0, 4)} steps: about" in said[1]
    assert any(line.startswith("scene 4 of 4, 0.0 min left") for line in said)


def test_another_request_does_not_go_on_with_it(
    script: type[Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(scenes=9, out=tmp_path / "fitness.json", backend="eager")
    monkeypatch.setattr(script, "stop", 8)
    with pytest.raises(KeyboardInterrupt):
        run(options, silent, lambda text: None)
    before = options.log.read_bytes()
    with pytest.raises(typer.Exit) as raised:
        command.main(scenes=9, size="128x128", backend="eager", out=options.out)
    assert raised.value.exit_code == 2
    monkeypatch.setattr(command, "imagenet", lambda: (None, []))
    with pytest.raises(IncompatibleOptions, match="differs in imagenet"):
        run(options, silent, lambda text: None)
    assert options.log.read_bytes() == before


def test_a_missing_network_is_said_and_stored(
    script: type[Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "find_weights", lambda: None)
    monkeypatch.setattr(command, "imagenet", imagenet)
    said = list[str]()
    options = Options(scenes=2, out=tmp_path / "fitness.json", backend="eager")
    document = run(options, silent, said.append)
    (left_out,) = document["left_out"]
    assert left_out["what"] == "imagenet_distance"
    assert "pip install 'fresco-trt[tune]'" in said[0]


def test_a_scene_is_drawn_and_judged_with_the_features_of_both_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "REFERENCE", Entry(steps=4))
    options = Options(scenes=1, size="64x64", backend="eager")
    tuned = Entry(steps=3, mu=1.6, solver="unipc", tuned=True)
    with ExitStack() as scope:
        setup = setup_of(options.bench, scope, silent)
        drawn = evaluator.Evaluator(setup, [Entry(steps=3), tuned], scope, Network().eval())
        scores = drawn.line(0, [Entry(steps=3), tuned])["scores"]
        wall, cores = drawn.step_seconds()
    plain, ours = (scores[each.point.name] for each in (Entry(steps=3), tuned))
    assert scores[Entry(steps=4).point.name]["ssim"] == 1
    assert plain["ssim"] != ours["ssim"]
    assert (len(decode(ours["features"])), len(decode(ours["imagenet"]))) == (224, 320)
    assert wall > 0
    assert cores > 0
    json.dumps(scores, allow_nan=False)


def test_what_is_stored_names_its_command() -> None:
    assert "fitness" in stored("demo-fitness")["command"]
