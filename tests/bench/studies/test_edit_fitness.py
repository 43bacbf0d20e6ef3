"""The study of whether a model edits: its two bounds, and a model that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import edit_fitness
from fresco_trt.bench.quality import DECIBELS
from fresco_trt.bench.scenes.edit_judge import EditVerdict, judged_edits
from fresco_trt.bench.scenes.edits import KINDS
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.build import BuildRequest, run

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

MODEL = (
    "flux-kontext:num_layers=1,num_single_layers=1,num_attention_heads=2,attention_head_dim=16,"
    "axes_dims_rope=4+6+6,joint_attention_dim=32,pooled_projection_dim=32,in_channels=16,vae_scale=4"
)


def built(folder: Path, model: str) -> Path:
    request = BuildRequest(
        model=model, weights="random", backend="eager", size=(64, 64), out=folder, stages=1, steps=1
    )
    return run(request).bundle.folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_random_model_edits_nothing_and_stands_beside_the_bounds(tmp_path: Path) -> None:
    bundle, out = built(tmp_path / "random", MODEL), tmp_path / "found.json"
    edit_fitness.main([bundle], scenes=len(KINDS), out=out)
    document: dict[str, Any] = json.loads(out.read_text())
    unedited, _, drawn = document["rows"]
    assert document["scenes"] == len(KINDS)
    assert (unedited["score"], unedited["outside"]) == (0, DECIBELS)
    assert (drawn["name"], drawn["score"], drawn["nfe"]) == ("random", 0, 1)
    assert drawn["outside"] < 20
    assert all(row["score_low"] <= row["score"] <= row["score_high"] for row in document["rows"])
    assert all(row[kind] == 0 for row in (unedited, drawn) for kind in KINDS)


def test_a_row_counts_each_kind_by_itself() -> None:
    edits = judged_edits(14)
    found = [EditVerdict(made=edit.kind == "add", outside=30.0) for edit in edits]
    row = edit_fitness.row("one", edits, found)
    assert {kind: row[kind] for kind in KINDS} == {kind: float(kind == "add") for kind in KINDS}
    assert row["score"] == pytest.approx(1 / 7)


def test_engines_that_do_not_edit_are_refused(tmp_path: Path, eager_bundle: Path) -> None:
    with pytest.raises(IncompatibleOptions, match="of flux-tiny"):
        edit_fitness.main([eager_bundle], scenes=1, out=tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()
