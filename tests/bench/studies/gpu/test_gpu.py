"""The GPU benchmark's dry run: the code that a GPU will run, at tiny dimensions.

On eager engines, for compiling takes ten seconds a block, and by short plans of few kinds.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import job, methods, pieces, plain
from bench.gpu.command import _check_pieces, _result
from bench.gpu.engines import Workshop, engines_of, subject_of
from bench.gpu.job import measure
from bench.gpu.methods import CACHED, PIPELINES, Point, points_of
from bench.gpu.pieces import keep_pieces, take_pieces
from bench.gpu.report import DRY_RUN, gpu_table, step_table
from bench.gpu.weights import make_weights
from fresco_trt import errors
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor.host import this_host, write_host
from fresco_trt.backends.transformer import FOLDER
from fresco_trt.errors import IncompatibleOptions, UnsupportedPrecision
from tests.preloaded import Preloaded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
SHORTEST = ("fast", "turbo")
"""The presets that the command is run with: the others draw by the same code."""

COMMAND = f"""
import runpy
from bench.gpu import methods
methods.PRESETS = {SHORTEST}
runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
"""
ROUNDS = 1
SUBJECT = subject_of("cpu", tiny=True, layers=None)
ABSENT = CACHED if find_spec("cache_dit") is None else ()
"""Ways to run the plain pipeline that need a package of the extra 'bench', which is not here."""

with pytest.MonkeyPatch.context() as _patch:
    _patch.setattr(methods, "PRESETS", SHORTEST)
    _POINTS = points_of(SUBJECT.facts, SUBJECT.size)
POINTS = [point.name for point in _POINTS if point.pipeline not in ABSENT]
LEFT_OUT = [point.name for point in _POINTS if point.pipeline in ABSENT]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement names torch's cache for the rest of its process, which other tests share."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries are not tried, and nothing is traced or profiled: that is tested above."""
    monkeypatch.setattr(job, "OTHERS", ())
    monkeypatch.setattr(plain, "compile_blocks", lambda *_: None)
    monkeypatch.setattr(job, "profiled", lambda *_: {})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest methods alone."""
    monkeypatch.setattr(job, "points_of", few_points)


def few_points(*asked: Any, **named: Any) -> tuple[Point, ...]:
    return tuple(
        point
        for point in points_of(*asked, **named)
        if "turbo" in point.name or point.name.endswith((" 5 steps", "28 steps"))
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded) -> dict[str, Any]:
    """What the command stores and prints, as a user runs it: in a process of its own."""
    folder = tmp_path_factory.mktemp("gpu")
    out, work = folder / "gpu.json", folder / "work"
    command = ["--tiny", "--rounds", str(ROUNDS), "--minutes", "600", "--backend", "eager"]
    command += ["--out", str(out), "--work", str(work)]
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    done = preloaded.run(COMMAND, ROOT, "bench.gpu", *command, environment=environment)
    assert done.status == 0, done.said
    document: dict[str, Any] = json.loads(out.read_text())
    profile = json.loads((folder / "gpu-profile.json").read_text())
    return {"document": document, "printed": done.said, "work": work, "profile": profile}


def test_every_method_is_measured_in_every_round(stored: dict[str, Any]) -> None:
    document = stored["document"]
    assert document["failed"] == []
    assert [each["what"] for each in document["dropped"]] == [*ABSENT, *LEFT_OUT]
    assert [row["method"] for row in document["rows"]] == POINTS
    assert all(row["rounds"] == ROUNDS and row["finite"] for row in document["rows"])
    assert document["complete"]
    assert document["long"]["methods"] == [
        name for name in POINTS if name.endswith(("50 steps", "28 steps"))
    ]


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
    network, _ = make_weights(SUBJECT, tmp_path)
    workshop = Workshop(SUBJECT, "inductor", tmp_path)
    workshop.hold(network)
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
    # The file that says what they are has no values in it, and takes no room.
    (path,) = stored["work"].rglob("*.safetensors")
    assert path.stat().st_size == document["weights"]["bytes"]
    assert path.stat().st_blocks * 512 < 10**5


def test_seconds_inside_the_network_are_part_of_those_on_the_wall(stored: dict[str, Any]) -> None:
    for each in stored["document"]["rounds"]:
        assert len(each["matmul"]) == 2
        for timed in each["methods"].values():
            assert 0.0 < timed["engine_seconds"] < timed["seconds"]


def test_the_memory_of_every_method_is_asked_for(stored: dict[str, Any]) -> None:
    names = [each["method"] for each in stored["document"]["peaks"]]
    plain = [name for name in PIPELINES if name not in ABSENT]
    assert names == [*plain, *(name for name in POINTS if "diffusers" not in name)]
    for row in stored["document"]["rows"]:
        assert row["peak_bytes"]["tensors"] is None
        assert row["peak_bytes"]["host"] is None or row["peak_bytes"]["host"] > 10**7


def test_a_request_of_every_method_is_looked_into(stored: dict[str, Any]) -> None:
    profile = stored["profile"]
    assert profile["dropped"] == []
    assert {each["method"] for each in profile["methods"]} == set(POINTS)
    assert profile["commit"] == stored["document"]["commit"]
    for each in profile["methods"]:
        assert each["kernels"]
        assert 0.0 < each["busy_seconds"] <= each["seconds"]


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
    assert {"engine 64", "engine 4-bypass"} <= dropped
    assert dropped.issuperset(POINTS)


@pytest.mark.usefixtures("quick", "few")
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
    names = [point.name for point in few_points(SUBJECT.facts, SUBJECT.size)]
    measured = [row["method"] for row in document["rows"]]
    assert measured == [name for name in names if "3 stages" not in name] != names


@NO_GPU
def test_without_a_gpu_only_the_dry_run_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "--out", str(tmp_path / "out.json")) == 2
    assert "pass --tiny" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_depths_that_are_no_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "out.json"))
    assert status_of(monkeypatch, "--tiny", "--layers", "many", *out) == 2
    assert "--layers many" in capsys.readouterr().err


def status_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    """How the command ends, in this process; whatever it raises is no exit status."""
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bench.gpu", run_name="__main__")
    return ended.value.code


def test_a_dry_run_does_not_land_among_the_results() -> None:
    fp8 = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    rows = subject_of("cpu", tiny=True, layers=None, precision="fp8,recipe=fp8-rowwise")
    assert _result(rows, tiny=False) == Path("bench/results/gpu-fp8-rowwise.json")
    assert _result(SUBJECT, tiny=False) == Path("bench/results/gpu.json")
    assert _result(fp8, tiny=False) == Path("bench/results/gpu-fp8.json")
    assert _result(fp8, tiny=True) == Path("bench-out/gpu-tiny-fp8.json")


@pytest.mark.usefixtures("quick", "few")
def test_fp8_engines_stand_beside_the_compiled_pipeline_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces run as they are: compiling one takes ten seconds, and is tested with the backend.
    def compile_pieces(pieces: Any, *rest: Any) -> None:
        for piece in pieces:
            piece.path.write_bytes(b"code")

    monkeypatch.setattr(inductor, "compile_pieces", compile_pieces)
    monkeypatch.setattr(inductor, "unpacked", lambda path: path)
    monkeypatch.setattr(inductor, "_loaded", lambda part, *_: part.layers)
    subject = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    points = few_points(subject.facts, subject.size, against="compiled")
    names = [point.name for point in points]
    archive = tmp_path / "pieces.tar.gz"
    document = measure(
        subject,
        library="inductor",
        work=tmp_path,
        out=tmp_path / "out.json",
        dry_run=True,
        minutes=600.0,
        rounds=1,
        pieces=archive,
    )
    assert document["failed"] == []
    assert document["precision"] == "fp8"
    assert [row["method"] for row in document["rows"]] == names
    assert len(names) == 3
    assert all(row["finite"] for row in document["rows"])
    assert all(each["relative"] < 1e-2 for each in document["engines"])
    assert document["disk"][0]["code"] > 0
    assert document["fp8_modules"]["bytes"] < 0.6 * document["weights"]["bytes"]
    assert archive.is_file()


def test_pieces_are_taken_to_another_folder_and_refused_for_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, first, second = (tmp_path / name for name in ("a.tar.gz", "first", "second"))
    (first / "blocks").mkdir(parents=True)
    second.mkdir()
    host = this_host("cpu")
    write_host(first / "blocks" / "host.json", host)
    (first / "blocks" / "single-1.pt2").write_bytes(b"code")
    assert "not there yet" in take_pieces(archive, SUBJECT, second)
    keep_pieces(archive, SUBJECT, first)
    fp8 = replace(SUBJECT, precision="fp8")
    assert "differs in precision" in take_pieces(archive, fp8, second)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "this_host", lambda _: replace(host, torch="2.99.0"))
        assert "this is 2.99.0" in take_pieces(archive, SUBJECT, second)
    assert list(second.iterdir()) == []
    assert take_pieces(archive, SUBJECT, second).startswith("1 pieces of")
    assert (second / "blocks" / "single-1.pt2").read_bytes() == b"code"
    archive.write_bytes(b"nothing")
    assert "of no use" in take_pieces(archive, SUBJECT, second)


def test_pieces_of_a_library_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleOptions, match="--backend eager"):
        _check_pieces(tmp_path / "a.tar.gz", "eager")


def test_a_precision_that_is_not_to_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="one of bf16, fp8"):
        subject_of("cuda", tiny=False, layers=None, precision="int8")
    fp8 = subject_of("cpu", tiny=True, layers=None, precision="fp8")
    with pytest.raises(UnsupportedPrecision, match="backend eager"):
        measure(fp8, library="eager", work=tmp_path, out=tmp_path / "o.json", dry_run=True)
    assert list(tmp_path.iterdir()) == []
