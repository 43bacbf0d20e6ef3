"""The GPU benchmark's dry run: the code that a GPU will run, at tiny dimensions.

On eager engines, for compiling takes ten seconds a block: one block is compiled, in FP8.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import job
from bench.gpu.command import _result
from bench.gpu.engines import Workshop, engines_of, place_weights, subject_of
from bench.gpu.job import measure
from bench.gpu.methods import points_of
from bench.gpu.report import DRY_RUN, gpu_table, step_table
from fresco_trt import errors
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.transformer import FOLDER
from fresco_trt.errors import UnsupportedPrecision

pytestmark = pytest.mark.slow

ROUNDS = 1
SUBJECT = subject_of("cpu", tiny=True, layers=None)
POINTS = [point.name for point in points_of(SUBJECT.facts, SUBJECT.size)]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries are not tried and nothing is compiled: that is slow, and tested above."""
    monkeypatch.setattr(job, "OTHERS", ())
    monkeypatch.setattr(job, "compiled_blocks", lambda transformer: transformer)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command stores and prints, as a user runs it."""
    folder = tmp_path_factory.mktemp("gpu")
    out, work = folder / "gpu.json", folder / "work"
    command = ["--tiny", "--rounds", str(ROUNDS), "--minutes", "600", "--backend", "eager"]
    done = _run(*command, "--out", str(out), "--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    return {"document": document, "printed": done.stdout, "work": work}


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_method_is_measured_in_every_round(stored: dict[str, Any]) -> None:
    document = stored["document"]
    assert document["failed"] == []
    assert document["dropped"] == []
    assert [row["method"] for row in document["rows"]] == POINTS
    assert all(row["rounds"] == ROUNDS and row["finite"] for row in document["rows"])
    assert document["complete"]


def test_it_says_that_it_is_a_dry_run_wherever_it_is_read(stored: dict[str, Any]) -> None:
    document = stored["document"]
    assert document["dry_run"]
    assert document["note"] == DRY_RUN
    assert gpu_table(document) in stored["printed"]
    assert step_table(document) in stored["printed"]
    assert stored["printed"].count(DRY_RUN) == 2


def test_every_engine_is_compared_with_the_eager_graph(stored: dict[str, Any]) -> None:
    engines = stored["document"]["engines"]
    assert {each["tokens"] for each in engines} == {4, 16, 64}
    assert len(engines) == 9
    assert all(each["relative"] < 1e-4 and each["cuda_graph"] is False for each in engines)


def test_each_stage_is_built_once_and_the_rest_shares_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def compile_pieces(pieces: Any, *rest: Any) -> None:
        asked.append(len(pieces))
        for piece in pieces:
            piece.path.write_bytes(b"code")

    monkeypatch.setattr(inductor, "compile_pieces", compile_pieces)
    place_weights(SUBJECT, tmp_path)
    workshop = Workshop(SUBJECT, "inductor", tmp_path)
    network = workshop.network()
    plans = [point.plan for point in points_of(SUBJECT.facts, SUBJECT.size) if point.plan]
    engines = engines_of(SUBJECT.facts, plans)
    compiled = {
        kind.key: workshop.build(kind, signature, network)["compiled"]
        for kind, signature in engines.items()
    }
    # Embedders, both blocks and the head of each grid, and one conditioning for all of them.
    assert compiled["64"] == 5
    assert compiled["16"] == compiled["4"] == 4
    shared = {name: count for name, count in compiled.items() if "-" in name}
    assert len(shared) == 6
    assert set(shared.values()) == {0}
    whole = [kind for kind in engines if kind.graph == "full"]
    code = [workshop.bytes_of(whole[:count])["code"] for count in (1, 2, 3)]
    assert 0 < code[0] < code[1] < code[2]
    # Asked for together, they are compiled together.
    asked.clear()
    other = Workshop(SUBJECT, "inductor", tmp_path / "other")
    shutil.copytree(tmp_path / FOLDER, tmp_path / "other" / FOLDER)
    assert other.prepare(engines, network)["compiled"] == 13
    assert [other.build(*each, network)["compiled"] for each in engines.items()] == [0] * 9
    assert asked == [13]


def test_weights_are_on_disk_once_whatever_the_number_of_stages(stored: dict[str, Any]) -> None:
    document = stored["document"]
    disk = document["disk"]
    assert [each["stages"] for each in disk] == [1, 2, 3]
    assert {each["weights"] for each in disk} == {document["weights"]["bytes"]}
    code = [each["code"] for each in disk]
    assert code == sorted(code)
    assert [each["stages"] for each in document["memory"]] == [1, 2, 3]
    assert len(list(stored["work"].rglob("*.safetensors"))) == 1


def test_seconds_inside_the_network_are_part_of_those_on_the_wall(stored: dict[str, Any]) -> None:
    for each in stored["document"]["rounds"]:
        assert len(each["matmul"]) == 2
        for timed in each["methods"].values():
            assert 0.0 < timed["engine_seconds"] < timed["seconds"]


def test_the_memory_of_every_method_is_asked_for(stored: dict[str, Any]) -> None:
    names = [each["method"] for each in stored["document"]["peaks"]]
    plain = [name for name in POINTS if name.startswith("diffusers")]
    assert names == ["diffusers", "diffusers, torch.compile"] + [
        name for name in POINTS if name not in plain
    ]


def test_the_document_says_where_it_comes_from(stored: dict[str, Any]) -> None:
    document = stored["document"]
    assert document["command"].startswith("python -m bench.gpu --tiny")
    assert document["machine"]["torch"] == torch.__version__
    assert document["layers"] == [1, 1]
    assert len(document["sources"]) == 64
    assert {each["name"] for each in document["libraries"]} == {
        "tensorrt-rtx",
        "tensorrt",
        "eager",
    }


@NO_GPU
def test_a_library_that_does_not_run_here_says_why(stored: dict[str, Any]) -> None:
    for each in stored["document"]["libraries"][:2]:
        assert not each["ran"]
        kind = getattr(errors, each["refused"].partition(":")[0])
        assert issubclass(kind, errors.FrescoError)
        assert each["missing"]


@pytest.mark.usefixtures("quick")
def test_a_run_whose_time_is_up_builds_nothing_more_and_says_so(tmp_path: Path) -> None:
    document = measure(
        SUBJECT,
        library="eager",
        work=tmp_path,
        out=tmp_path / "out.json",
        dry_run=True,
        minutes=0.0,
    )
    assert document["complete"]
    assert document["rows"] == []
    dropped = {each["what"] for each in document["dropped"]}
    assert {"engine 64", "engine 4-bypass", *POINTS} <= dropped


@pytest.mark.usefixtures("quick")
def test_an_engine_that_fails_takes_along_only_the_plans_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(runner: Any, transformer: Any, device: str) -> dict[str, Any]:
        if runner.signature.outputs[0].shape[1] == 4:
            raise RuntimeError("no kernel image is available")
        return {"relative": 0.0, "seconds": 1e-3, "cuda_graph": False}

    monkeypatch.setattr(job, "examine", failing)
    document = measure(
        SUBJECT, library="eager", work=tmp_path, out=tmp_path / "o.json", dry_run=True, rounds=1
    )
    failed = {each["what"]: each["reason"] for each in document["failed"]}
    assert failed.keys() == {"engine 4", "engine 4-feature", "engine 4-bypass"}
    assert "no kernel image is available" in failed["engine 4"]
    measured = {row["method"] for row in document["rows"]}
    assert {name for name in POINTS if name not in measured} == {
        name for name in POINTS if "3 stages" in name
    }


@NO_GPU
def test_without_a_gpu_only_the_dry_run_is_offered(tmp_path: Path) -> None:
    done = _run("--out", str(tmp_path / "out.json"))
    assert done.returncode == 2
    assert "pass --tiny" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_depths_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    done = _run("--tiny", "--layers", "many", "--out", str(tmp_path / "out.json"))
    assert done.returncode == 2
    assert "--layers many" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_does_not_land_among_the_results() -> None:
    fp8 = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    assert _result(SUBJECT, tiny=False) == Path("bench/results/gpu.json")
    assert _result(fp8, tiny=False) == Path("bench/results/gpu-fp8.json")
    assert _result(fp8, tiny=True) == Path("bench-out/gpu-tiny-fp8.json")


@pytest.mark.usefixtures("quick")
def test_fp8_engines_stand_beside_the_plain_pipeline_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One grid, and of its parts one is compiled: the others run as they are.
    compile_pieces = inductor.compile_pieces
    loaded = inductor._loaded

    def compile_single(pieces: Any, *rest: Any) -> None:
        single = [piece for piece in pieces if piece.name.startswith("single")]
        compile_pieces(single, *rest)
        for piece in pieces:
            if piece not in single:
                piece.path.write_bytes(b"code")

    monkeypatch.setattr(inductor, "compile_pieces", compile_single)
    monkeypatch.setattr(
        inductor,
        "_loaded",
        lambda part, *rest: loaded(part, *rest) if part.kind == "single" else part.layers,
    )
    points = points_of(SUBJECT.facts, SUBJECT.size)
    kept = tuple(point for point in points if "stages" not in point.group)
    monkeypatch.setattr(job, "points_of", lambda *_: kept)
    subject = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    document = measure(
        subject,
        library="inductor",
        work=tmp_path,
        out=tmp_path / "out.json",
        dry_run=True,
        minutes=600.0,
        rounds=1,
    )
    assert document["failed"] == []
    assert document["precision"] == "fp8"
    assert [row["method"] for row in document["rows"]] == [point.name for point in kept]
    assert all(row["finite"] for row in document["rows"])
    # The compiled engine multiplies in FP8, as the eager graph of the same modules does.
    (engine,) = document["engines"]
    assert (engine["engine"], engine["cuda_graph"]) == ("64", False)
    assert engine["relative"] < 1e-2
    assert document["disk"][0]["code"] > 0
    assert document["fp8_modules"]["bytes"] < 0.6 * document["weights"]["bytes"]
    assert {each["weights"] for each in document["disk"]} == {document["fp8_modules"]["bytes"]}


def test_a_precision_that_is_not_to_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="one of bf16, fp8"):
        subject_of("cuda", tiny=False, layers=None, precision="int8")
    fp8 = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    with pytest.raises(UnsupportedPrecision, match="backend eager"):
        measure(fp8, library="eager", work=tmp_path, out=tmp_path / "o.json", dry_run=True)
    assert list(tmp_path.iterdir()) == []
