"""The oracle's study from options to files, on a few scenes of each caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.ablations import ABLATED
from bench.oracle import command
from bench.tables import methods_table
from fresco_trt.bench import job
from fresco_trt.bench.options import Options
from tests.bench.files import check_files


@pytest.mark.slow
def test_every_plan_is_drawn_and_counted_in_flops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "QUICK_RENDERS", 20)
    monkeypatch.setattr(command, "QUICK_MEMBERS", 3)
    command.main(out=tmp_path, scenes=2, quick=True, size="64x64")
    document: dict[str, Any] = json.loads((tmp_path / "flux-tiny-oracle-quick.json").read_text())
    check_files(document, tmp_path, methods_table(document))
    assert document["instrument"] == document["compare"] == "oracle"
    methods = {row["method"] for row in document["rows"]}
    assert methods == {"plain", "few-step", "spectral", "ralu", "fresco"}
    assert all(row["speedup"] is None for row in document["rows"])
    assert document["rows"][0]["score"] == 1  # the reference's nearest scene is its own
    left_out = {each["what"].split(",")[0] for each in document["left_out"]}
    assert {"taylorseer", "first-block", "cache-dit"} <= left_out
    shown = capsys.readouterr().out  # the table is for people
    assert f"fresco, {ABLATED}, noise fresh" in shown
    assert "not measured: cache-dit" in shown


def test_more_scenes_are_another_request() -> None:
    assert not command.STUDY.scenes_alone
    few = Options(model="flux-tiny", scenes=3)
    assert few.line(command.STUDY.program) == (
        "python -m bench.oracle --model flux-tiny --scenes 3 --out bench-out"
    )


def test_another_model_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        command.main(model="flux-tiny-turbo", out=tmp_path / "out", quick=True)
    assert caught.value.exit_code == 2
    assert "expected flux-tiny" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
