"""A whole tune of the demo's student at 64x64: files, resuming, scorers, targets out of reach."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from bench import presets
from fresco_trt.cli.main import main
from fresco_trt.errors import (
    CalibrationError,
    IncompatibleOptions,
    PlanError,
    ScorerFailed,
    TargetNotReached,
)
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.stored import check_plan, read_plan
from fresco_trt.tune import families, job
from fresco_trt.tune.judge import Judge
from fresco_trt.tune.model_runner import ModelRunner
from fresco_trt.tune.options import Options
from fresco_trt.tune.prompts import MOST, read_prompts
from fresco_trt.tune.request import Effort
from fresco_trt.tune.scorer import load_scorer, score_of
from tests.shallow import shallow_pipeline

# The student with a block of each kind.
MODEL = "flux-tiny-turbo:num_layers=1,num_single_layers=1"
EFFORT = Effort(rounds=((7, 1), (3, 2)), near=2, turns=1, sampled=4, beside=1)


def silent(*told: object) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of its weights."""
    folder = tmp_path_factory.mktemp("model") / "flux-tiny-turbo"
    return str(shallow_pipeline(folder, model_facts("flux-tiny-turbo")))


def options_of(folder: Path, weights: str, **given: Any) -> Options:
    (folder / "prompts.txt").write_text("a star\n\na cat on a red background\n", encoding="utf-8")
    asked = {"model": MODEL, "weights": weights, "size": (64, 64), "backend": "eager"}
    asked["out"] = folder / "plan.json"
    target = {} if "floor" in given else {"speed": 1.5}
    return Options(**{**asked, **target, "prompts": folder / "prompts.txt", **given})


def run(options: Options, said: list[str] | None = None) -> job.Tuned:
    return job.run(options, silent, silent if said is None else said.append, EFFORT)


class Killed(BaseException):
    """What ends a run at once."""


class Counting:
    """A scorer that remembers its calls, and ends the run or fails at one of them."""

    def __init__(self, at: int | None = None, then: Callable[[], float] = lambda: 0.0) -> None:
        self.at, self.then, self.calls = at, then, list[str]()

    def __call__(self, picture: Image, prompt: str) -> float:
        self.calls.append(prompt)
        return self.then() if len(self.calls) == self.at else float(picture.width == 64)


def killed() -> float:
    raise Killed


@pytest.fixture(scope="module", autouse=True)
def _few_controls_on_a_steady_clock() -> Iterator[None]:
    """Four controls of 28; a second for each 64 tokens, whatever this machine does beside."""
    timed = ModelRunner.time

    def steady(self: ModelRunner, *given: Any) -> dict[str, float]:
        found = timed(self, *given)
        assert min(found.values()) >= 0.0
        return {kind: 0.0 if " to " in kind else _tokens(kind) / 64 for kind in found}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "LOG_SHIFTS", (1.6,))
        patch.setattr(families, "SOLVERS", ("euler", "multistep"))
        patch.setattr(ModelRunner, "time", steady)
        yield


def _tokens(kind: str) -> int:
    """Of a kind of step: 1 where a cache answers."""
    return 1 if "bypass" in kind else int(re.split(r"[- ]", kind)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was killed and gone on with."""
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def tuned(folder: Path, weights: str) -> tuple[job.Tuned, int, list[str]]:
    """A run that was killed, refused with other arguments, and gone on with, when one score was
    none; how many pictures were scored then, and what the run said.
    """
    before, after, said = Counting(5, killed), Counting(2, lambda: float("nan")), list[str]()
    with pytest.raises(Killed):
        run(options_of(folder, weights, scorer=before))
    with pytest.raises(IncompatibleOptions, match=r"--speed 1.5, now 2.0") as caught:
        run(options_of(folder, weights, scorer=before, speed=2.0))
    assert "--weights" not in str(caught.value)
    found = run(options_of(folder, weights, scorer=after), said)
    return found, len(after.calls), said


def test_a_killed_run_goes_on_where_it_was(tuned: tuple[job.Tuned, int, list[str]]) -> None:
    found, scored, said = tuned
    assert any("going on" in each for each in said)
    assert any("engines of an earlier run" in each for each in said)
    judged = sum(row["pictures"] for row in found.document["rows"])
    # Three were kept, one is out, and the two many-step pictures are scored too.
    assert scored == judged - 3 + 1 + 2


def test_the_plan_is_one_that_a_build_takes(
    folder: Path, tuned: tuple[job.Tuned, int, list[str]]
) -> None:
    plan = read_plan(folder / "plan.json")
    check_plan(plan, model_facts(MODEL))
    assert plan == tuned[0].plan


def test_the_document_has_all_that_was_found(
    folder: Path, weights: str, tuned: tuple[job.Tuned, int, list[str]]
) -> None:
    stored = json.loads((folder / "plan.tune" / "tune.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(tuned[0].document))
    rows = stored["rows"]
    assert stored["winner"] == rows[0]["name"]
    assert stored["control"] in {row["name"] for row in rows[: stored["finalists"]]}
    kinds = {row["family"] for row in rows}
    assert "few-step" in kinds
    assert len(kinds) > 2
    assert all(row["speed"] >= 1.5 and -1 <= row["ssim"] < 1 + 1e-6 for row in rows)
    assert all(row["pictures"] == 2 for row in rows[: stored["finalists"]])
    assert sum("beside it" in row["name"] for row in rows) == EFFORT.near
    assert rows[0]["score"] == 1.0
    assert stored["reference"]["steps"] == 4
    asked = f"--model {MODEL} --weights {weights} --speed 1.5"
    assert stored["command"].startswith(f"fresco-trt tune {asked} --prompts ")
    assert stored["beside"]["winner"]["speed"] > 0


def test_the_report_shows_the_winner_beside_the_many_steps(
    folder: Path, tuned: tuple[job.Tuned, int, list[str]]
) -> None:
    page = (folder / "plan.tune" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(tuned[0].pictures) >= 2
    assert tuned[0].document["winner"] in page
    assert page.count("<svg") >= 3


def test_a_score_that_is_none_takes_its_candidate_out(
    tuned: tuple[job.Tuned, int, list[str]],
) -> None:
    document, said = tuned[0].document, " ".join(tuned[2])
    ((name, reason),) = document["left_out"].items()
    assert "the scorer gave nan" in reason
    assert f"{name} is out" in said
    assert name not in {row["name"] for row in document["rows"]}


def test_what_nothing_reaches_is_written_and_raised(
    tmp_path: Path,
    weights: str,
    tuned: tuple[job.Tuned, int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without engines, for nothing is drawn."""
    best = replace(tuned[0], document={**tuned[0].document, "reached": False})
    monkeypatch.setattr(job, "compare", lambda *given: best)
    monkeypatch.setattr(ModelRunner, "require", lambda *given: "no engines")
    monkeypatch.setattr(ModelRunner, "time", lambda *given: {})
    monkeypatch.setattr(ModelRunner, "changes", lambda *given: [])
    options = options_of(tmp_path, weights, speed=900.0)
    with pytest.raises(TargetNotReached, match=r"no plan reaches --speed 900; the best is") as told:
        job.run(options, silent, silent, EFFORT)
    assert told.value.exit_code == 1
    assert read_plan(options.out) == best.plan


def test_the_study_of_presets_stores_the_best_of_each_number_of_stages(
    folder: Path,
    weights: str,
    tmp_path: Path,
    tuned: tuple[job.Tuned, int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On engines that lie there already."""
    again = shutil.copytree(folder, tmp_path / "again")
    options, effort = options_of(again, weights), replace(EFFORT, rounds=((1, 1),))
    monkeypatch.setattr(ModelRunner, "time", lambda *given: tuned[0].document["step_seconds"])
    monkeypatch.setattr(ModelRunner, "changes", lambda *given: [])
    document = json.loads(json.dumps(presets.study(options, (1.5,), effort, silent, silent)))
    assert document == json.loads(options.out.read_text(encoding="utf-8"))
    (first,) = document["speeds"]
    assert first["stages"].keys() >= {"1", "2"}
    assert first["stages"]["1"]["family"] == first["control"]["family"] == "few-step"
    assert first["stages"]["2"]["stages"] == 2
    assert first["best"]["speed"] >= first["speed"] == 1.5
    monkeypatch.setattr(presets, "NAMED", {"quality": 1.5})
    found = [(name, count) for name, count, _ in presets.tuned_presets(document)]
    assert found[:2] == [("quality", 1), ("quality", 2)]


# --- wrong requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "without a prompt"),
        (b"\n \n", "without a prompt"),
        (b"caf\xe9\n", "cannot be read"),
        (b"a cat\n" * 10_000, "with 10000 prompts"),
    ],
)
def test_prompts_that_are_none_are_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(CalibrationError, match=problem):
        read_prompts(path)
    path.write_bytes(b"a cat\n" * MOST)
    assert len(read_prompts(path)) == MOST


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "neither --speed nor --floor"),
        (["--speed", "8", "--floor", "ssim=0.9"], "--speed and --floor"),
        (["--speed", "1"], "above 1"),
        (["--speed", "nan"], "above 1"),
        (["--floor", "lpips=0.1"], "one of ssim, perceptual, score"),
        (["--floor", "ssim=1.5"], "between 0 and 1"),
        (["--floor", "score=1"], "without a scorer"),
        (["--speed", "8", "--scorer", "json"], "it has no module and function"),
        (["--speed", "8", "--scorer", "json:nothing"], "AttributeError"),
        (["--speed", "8", "--out", "plan.txt"], "ends in .json"),
        (["--speed", "8", "--prompts", "nowhere.txt"], "cannot be read"),
        (["--speed", "8", "--size", "60x64"], "60x64"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_made(
    given: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--model", "flux-tiny", "--backend", "eager", *given]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert problem in said
    assert "Fix: " in said
    assert not list(tmp_path.iterdir())


def test_a_model_that_nothing_is_measured_of_is_refused() -> None:
    with pytest.raises(IncompatibleOptions, match="a tune of qwen-image-edit"):
        job.run(Options(model="qwen-image-edit", speed=5.0), silent, silent)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (float("inf"), "gave inf"),
        ("0.9", "type str"),
        ([0.9], "type list"),
        (None, "type NoneType"),
    ],
)
def test_a_score_is_one_number(given: object, problem: str) -> None:
    import numpy as np
    import torch

    picture = Image()
    with pytest.raises(ScorerFailed, match=problem):
        score_of(lambda *asked: given, picture, "x")
    with pytest.raises(ScorerFailed, match="shape"):
        score_of(lambda *asked: np.array([0.9]), picture, "x")
    for fine in (1, np.float32(1), torch.tensor(1.0), True):
        assert score_of(lambda *asked, fine=fine: fine, picture, "x") == 1.0


def test_a_many_step_picture_that_cannot_be_scored_ends_the_run() -> None:
    import numpy as np

    judge = Judge(scorer=lambda picture, prompt: 1 / 0)
    with pytest.raises(ScorerFailed, match="the scorer raised ZeroDivisionError"):
        judge.truth(np.zeros((16, 16, 3), np.uint8), "x")
    assert Judge().metrics == ("ssim",)
    assert judge.metrics == ("ssim", "score")


def test_a_scorer_is_looked_for_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scorer.py").write_text("def score(picture, prompt):\n    return 2\n")
    monkeypatch.chdir(tmp_path)
    assert load_scorer("own_scorer:score")(None, "") == 2
    for wrong in ("own_scorer:nothing", "no_such_module:score", "own_scorer:__name__"):
        with pytest.raises(PlanError, match="--scorer"):
            load_scorer(wrong)
