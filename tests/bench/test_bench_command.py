"""`fresco-trt bench` from options to files: refusals at once, and a whole run of two scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.oracle.command import every_point
from fresco_trt.bench import job, memory
from fresco_trt.bench.job import METHODS
from fresco_trt.bench.methods import Point
from fresco_trt.bench.options import Options
from fresco_trt.bench.points import chosen
from fresco_trt.bench.table import bench_table
from fresco_trt.cli import main as cli
from fresco_trt.models.registry import model_facts
from tests.bench.files import check_files
from tests.bench.shallow import shallow_models

TINY = model_facts("flux-tiny")
SMALL = ["--size", "64x64", "--backend", "eager", "--quick"]


@pytest.fixture
def quick_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Less of what is the same for every run: blocks, plain steps, presets, true renders, and
    memory processes.
    """

    def few(*given: Any, **options: Any) -> list[Point]:
        points = chosen(*given, **options)
        return [each for each in points if each.preset not in {"quality", "balanced", "fast"}]

    monkeypatch.setattr(job, "chosen", few)
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(job, "peak_mb", lambda setup, point, table: 123.0)
    with shallow_models(tmp_path / "models"):
        yield


def bench(*arguments: object) -> int:
    return cli.main(["bench", "--model", "flux-tiny", *SMALL, *map(str, arguments)])


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--methods", "plain,fresko"], "fresko"),
        (["--scenes", "0"], "--scenes 0"),
        (["--model", "flux-huge"], "flux-huge"),
        (["--size", "65x64"], "65x64"),
        (["--backend", "onyx"], "onyx"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    code = bench("--out", out, *arguments)
    error = capsys.readouterr().err
    assert code == 2
    assert named in error
    assert "Fix:" in error
    assert not out.exists()


@pytest.mark.parametrize("option", ["--instrument", "--compare"])
def test_what_became_a_study_is_no_option(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--out", tmp_path / "out", option, "anything") == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_is_the_request_whatever_was_typed() -> None:
    options = Options(
        model="flux-tiny",
        out=Path("out"),
        scenes=3,
        methods=("plain", "ralu"),
        quick=True,
        backend="onnxruntime",
    )
    assert options.line("fresco-trt bench") == (
        "fresco-trt bench --model flux-tiny --scenes 3"
        " --methods plain,ralu --backend onnxruntime --out out --quick"
    )
    assert job.files_of(options).result == Path("out/flux-tiny-quick.json")
    assert job.files_of(options, replace(METHODS, name="study")).table == Path(
        "out/flux-tiny-study-quick.md"
    )


def test_more_scenes_are_the_same_request() -> None:
    few = Options(model="flux-tiny", scenes=3)
    assert METHODS.scenes_alone
    assert few.line("bench", scenes=False) == replace(few, scenes=64).line("bench", scenes=False)
    assert few.line("bench", scenes=False) != replace(few, size="64x64").line("bench", scenes=False)
    assert replace(few, scenes=None).line("bench") == replace(few, scenes=64).line("bench")


# --- whole runs -------------------------------------------------------------------------------


@contextmanager
def killed_before_writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def kill(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "store", kill)
        yield


@pytest.mark.slow
def test_a_run_leaves_its_files_and_a_killed_one_its_measurements(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quick_parts: None,
) -> None:
    out = tmp_path / "out"
    request = ("--methods", "fresco,ralu,taylorseer", "--out", out, "--json")
    with killed_before_writing(monkeypatch):
        assert bench("--scenes", 3, *request) == cli.INTERRUPTED
    assert not (out / "flux-tiny-quick.json").exists()
    capsys.readouterr()
    assert bench("--scenes", 2, *request) == 0
    said = capsys.readouterr()
    assert "going on" in said.err
    document = json.loads(said.out)
    assert document["scenes"] == 2
    check_files(document, out, bench_table(document))
    assert {row["method"] for row in document["rows"]} == {"plain", "fresco", "ralu", "taylorseer"}
    assert all(row["peak_mb"] == 123.0 for row in document["rows"])
    assert all(row["distance_low"] < row["distance_high"] for row in document["rows"])
    assert set(document["frontier"]) == {"speedup", "flops_ratio"}


# --- memory -----------------------------------------------------------------------------------


def test_points_that_load_the_same_things_share_a_measurement() -> None:
    points = {point.name: point for point in every_point(TINY, TINY.default_size)}

    def kind(name: str) -> str:
        return memory.kind_of(points[name], TINY, TINY.default_size)

    assert kind("plain") == kind("few-step, 5 steps, diffusers, default shift")
    assert kind("fresco, turbo") == kind("fresco, turbo, noise fresh")
    assert kind("fresco, turbo") != kind("fresco, turbo, selection converged")
    assert kind("cache, hicache, interval 3") == kind("cache, hicache, interval 7")
    assert kind("cache, hicache, interval 3") != kind("few-step, 5 steps, engine, default shift")
    kinds = {memory.kind_of(point, TINY, TINY.default_size) for point in points.values()}
    assert len(kinds) < len(points) / 5


PEAKS = """
from fresco_trt.files.peak_memory import peak_memory
before = peak_memory().own
block = bytearray(b"x") * (256 << 20)
print(before, peak_memory().own)
"""


def test_the_peak_is_this_process_own() -> None:
    """A fresh process, for here the peak may lie far above what is held now."""
    block = bytearray(b"x") * (512 << 20)  # held by the parent: not to be counted in the child
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True, timeout=300
    )
    before, after = (int(word) for word in done.stdout.split())
    assert before < len(block)
    assert after >= before + (200 << 20)
