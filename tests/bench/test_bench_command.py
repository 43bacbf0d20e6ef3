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
from PIL import Image

from fresco_trt.bench import job, memory
from fresco_trt.bench.command import Options
from fresco_trt.bench.points import ABLATED, points_of
from fresco_trt.bench.table import tables
from fresco_trt.cli.main import main as cli
from fresco_trt.models.registry import model_facts

TINY = model_facts("flux-tiny")
SMALL = ["--size", "64x64", "--backend", "eager", "--quick"]


@pytest.fixture
def quick_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of what is the same for every run: true renders, known scenes, memory processes."""
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(job, "QUICK_MEMBERS", 3)
    monkeypatch.setattr(job, "peak_mb", lambda setting, point: 123.0)


def bench(*arguments: object) -> int:
    return cli.main(["bench", "--model", "flux-tiny", *SMALL, *map(str, arguments)])


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--methods", "plain,fresko"], "fresko"),
        (["--scenes", "0"], "--scenes 0"),
        (["--instrument", "orakel"], "orakel"),
        (["--compare", "everything"], "--compare everything"),
        (["--compare", "combinations", "--instrument", "oracle"], "--instrument oracle"),
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


def test_the_command_is_the_request_whatever_was_typed() -> None:
    options = Options(
        model="flux-tiny",
        out=Path("out"),
        scenes=3,
        methods=("plain", "ralu"),
        quick=True,
        instrument="oracle",
        size=None,
        weights=None,
        backend="onnxruntime",
    )
    assert options.command == (
        "fresco-trt bench --model flux-tiny --instrument oracle --scenes 3"
        " --methods plain,ralu --backend onnxruntime --out out --quick"
    )
    assert options.stem == "flux-tiny-oracle-quick"


def test_more_scenes_of_a_model_are_the_same_request_and_more_captions_of_the_oracle_not() -> None:
    few = Options(
        model="flux-tiny",
        out=Path("out"),
        scenes=3,
        methods=None,
        quick=False,
        instrument="model",
        size=None,
        weights=None,
        backend="onnxruntime",
    )
    assert few.request == replace(few, scenes=64).request
    assert few.request != replace(few, backend="eager").request
    oracle = replace(few, instrument="oracle")
    assert oracle.request != replace(oracle, scenes=64).request


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
    request = ("--methods", "fresco,ralu,taylorseer", "--out", tmp_path, "--json")
    with killed_before_writing(monkeypatch):
        assert bench("--scenes", 3, *request) == cli.INTERRUPTED
    assert not (tmp_path / "flux-tiny-quick.json").exists()
    capsys.readouterr()
    assert bench("--scenes", 2, *request) == 0
    said = capsys.readouterr()
    assert "going on" in said.err
    document = json.loads(said.out)
    assert document["scenes"] == 2
    _check(document, tmp_path, {"plain", "fresco", "ralu", "taylorseer"})
    assert all(row["peak_mb"] == 123.0 for row in document["rows"])
    assert all(row["distance_low"] < row["distance_high"] for row in document["rows"])
    assert set(document["frontier"]) == {"speedup", "flops_ratio"}


@pytest.mark.slow
def test_the_oracle_is_an_instrument_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_parts: None
) -> None:
    assert bench("--scenes", 2, "--instrument", "oracle", "--out", tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    _check(document, tmp_path, {"plain", "few-step", "spectral", "ralu", "fresco"})
    assert all(row["speedup"] is None for row in document["rows"])
    assert document["rows"][0]["score"] == 1  # the reference's nearest scene is its own
    skipped = {each["what"].split(",")[0] for each in document["skipped"]}
    assert {"taylorseer", "first-block", "cache-dit"} <= skipped


@pytest.mark.slow
def test_the_table_is_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_parts: None
) -> None:
    assert bench("--scenes", 1, "--instrument", "oracle", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"fresco, {ABLATED}, noise fresh" in shown
    assert "not measured: cache-dit" in shown


def _check(document: dict[str, Any], out: Path, methods: set[str]) -> None:
    """Whatever was measured: the document is the file, and every method has rows or a reason."""
    stem = next(out.glob("*.json")).stem
    assert json.loads((out / f"{stem}.json").read_text()) == document
    assert {"machine", "command", "commit", "rows"} <= document.keys()
    assert {row["method"] for row in document["rows"]} == methods
    left = {path.name for path in out.iterdir()}
    plot = {f"{stem}-pareto.png"} - {each["what"] for each in document["skipped"]}
    assert left == {f"{stem}{end}" for end in (".json", ".jsonl", ".md", "-pictures.png")} | plot
    assert (out / f"{stem}.md").read_text() == f"{tables(document)}\n"
    with Image.open(out / f"{stem}-pictures.png") as drawn:
        drawn.load()


# --- memory -----------------------------------------------------------------------------------


def test_points_that_load_the_same_things_share_a_measurement() -> None:
    points = {point.name: point for point in points_of(TINY)}

    def kind(name: str) -> str:
        return memory.kind_of(points[name], TINY, TINY.default_size)

    assert kind("plain") == kind("few-step, 5 steps, diffusers, default shift")
    assert kind("fresco, turbo") == kind(f"fresco, {ABLATED}, noise fresh")
    assert kind("fresco, turbo") != kind(f"fresco, {ABLATED}, selection converged")
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
