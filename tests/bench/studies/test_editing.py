"""The bench of editing on a model that knows nothing: what is stored, resumed and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer

from bench.editing import command, engines, figures
from bench.editing.command import Options, run
from bench.editing.engines import Engines, Made, Prepared
from bench.editing.peers import peer_draws
from bench.editing.points import GROUPS, EditPoint, points_of
from bench.editing.points import PEERS as PEER_GROUPS
from bench.editing.tables import editing_tables, quantised_tables
from fresco_trt.backends import backend
from fresco_trt.backends.base import silent
from fresco_trt.bench.methods import TaylorSeer
from fresco_trt.bench.quality import DECIBELS
from fresco_trt.bench.scenes.edit_judge import judged_edits
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.build import BuildRequest
from fresco_trt.lower.build import run as build
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from fresco_trt.plan.facts import ModelFacts

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

MODEL = (
    "flux-kontext:num_layers=1,num_single_layers=1,num_attention_heads=2,attention_head_dim=16,"
    "axes_dims_rope=4+6+6,joint_attention_dim=32,pooled_projection_dim=32,in_channels=16,vae_scale=4"
)
PLOTS = find_spec("matplotlib") is not None
"""matplotlib comes with the extra 'bench'."""

PEERS = ("spotedit, 7 steps", "regione, 7 steps")
POINTS = ("few-step, 3 steps", "fresco, turbo", "specedit", *PEERS)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """The plain edit has two steps, and prompts take little room."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "model_facts", lambda name: _shortened(model_facts(name)))
        if not PLOTS:
            patched.setattr(figures, "check_plots", lambda: None)
            patched.setattr(figures, "pareto", lambda document, path: None)
        yield


def _shortened(facts: ModelFacts) -> ModelFacts:
    return replace(facts, default_steps=2, text_tokens=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    request = BuildRequest(
        model=MODEL, weights="random", backend="eager", size=(64, 64), stages=1, steps=1
    )
    bundle = build(replace(request, out=folder / "bundle")).bundle
    shutil.copytree(bundle.pipeline_folder, folder / "whole")
    shutil.copytree(bundle.folder / "transformer", folder / "whole" / "transformer")
    return folder / "whole"


@pytest.fixture(scope="module")
def options(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    return Options(
        model=MODEL,
        scenes=2,
        out=tmp_path_factory.mktemp("out") / "editing.json",
        weights=str(weights),
        size="64x64",
        only=POINTS,
    )


@pytest.fixture(scope="module")
def stored(options: Options) -> dict[str, Any]:
    run(options)
    document: dict[str, Any] = json.loads(options.out.read_text())
    return document


def test_a_run_stores_its_rows_between_the_bounds(stored: dict[str, Any]) -> None:
    unedited, coded = stored["bounds"]
    assert (unedited["score"], unedited["outside"]) == (0, DECIBELS)
    assert coded["outside"] < DECIBELS
    plain, *others = stored["rows"]
    assert (plain["group"], plain["speedup"], plain["flops_ratio"]) == ("plain", 1, 1)
    groups = {"few-step", "fresco", "specedit", "spotedit", "regione"}
    assert {row["group"] for row in others} == groups
    assert all(any(part in row["name"] for part in POINTS) for row in others)
    assert all(0 < row["flops_ratio"] < 1 for row in others)  # two plain steps are few
    assert all(0 <= row["host_share"] < 1 for row in others)
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in others)


def test_rows_that_leave_tokens_out_have_masks(stored: dict[str, Any]) -> None:
    for row in stored["rows"]:
        has_mask = row["group"] in ("specedit", "spotedit", "regione")
        assert (row["iou"] is not None) == has_mask
        assert (row["stages"] is not None) == (row["group"] == "specedit")
        if has_mask:
            assert 0 <= row["iou"] <= 1
        if row["stages"] is not None:
            assert sum(row["stages"].values()) == pytest.approx(1, abs=1e-3)


def test_a_run_draws_its_plot_and_its_sheet(stored: dict[str, Any], options: Options) -> None:
    from PIL import Image

    for name in ("editing-pareto.png", "editing-pictures.jpg")[not PLOTS :]:
        with Image.open(options.out.with_name(name)) as picture:
            assert min(picture.size) > 100


def test_every_table_of_a_run_has_every_row(stored: dict[str, Any]) -> None:
    for table in editing_tables(stored):
        assert "few-step, 3 steps" in table


# --- resuming ---------------------------------------------------------------------------------


def undrawn(*_: object) -> None:
    """In place of a plot or a sheet."""


def unedited(seconds: float, fails_at: int | None = None) -> Any:
    """In place of engines: what gives the source back, in so many seconds."""

    def draw(prepared: Prepared, seed: int) -> Made:
        if seed == fails_at:
            raise KeyboardInterrupt
        pixels = np.asarray(prepared.source)
        return Made(pixels=pixels, seconds=seconds, engine_seconds=seconds, flops=1.0)

    return lambda engines, *_: dict.fromkeys(engines.plans, draw)


@pytest.fixture
def killed(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run that was killed in its second edit."""
    killed = replace(options, out=tmp_path / "editing.json", only=POINTS[:1])
    monkeypatch.setattr(figures, "pareto", undrawn)
    monkeypatch.setattr(figures, "contact_sheet", undrawn)
    monkeypatch.setattr(Engines, "draws", unedited(1.0, fails_at=1))
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert not killed.out.exists()
    return killed


def test_a_killed_run_goes_on_where_it_was(
    killed: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engines, "draws", unedited(3.0))
    document = run(killed)
    assert document["rows"][1]["seconds"] == pytest.approx(2.0)  # one edit of 1 s, one of 3
    said = capsys.readouterr().err
    assert "which has 1 scenes" in said
    assert "edit 2 of 2" in said
    assert "0.0 minutes left" in said


@pytest.mark.parametrize(("field", "value"), [("scenes", 3), ("seed", 1), ("only", ("turbo",))])
def test_another_request_does_not_go_on_with_it(killed: Options, field: str, value: Any) -> None:
    log = killed.out.with_suffix(".jsonl")
    before = log.read_bytes()
    named = "points" if field == "only" else field
    with pytest.raises(IncompatibleOptions, match=f"differs in .*{named}"):
        run(replace(killed, **{field: value}))
    assert log.read_bytes() == before


def test_a_finished_run_is_measured_anew(killed: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engines, "draws", unedited(3.0))
    run(killed)
    assert run(replace(killed, scenes=1))["rows"][0]["seconds"] == pytest.approx(3.0)


def test_a_model_that_does_not_edit_is_refused(options: Options) -> None:
    with pytest.raises(IncompatibleOptions, match="--model flux-tiny"):
        run(replace(options, model="flux-tiny"))


# --- quantised --------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced_once")
def test_quantised_points_stand_beside_those_that_are_not(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same library, with amax that are measured here, on few prompts."""
    monkeypatch.setattr(engines, "AMAX_PROMPTS", 2)
    given = replace(options, out=tmp_path / "editing.json", scenes=1, only=("3 steps, mu",))
    document = run(replace(given, backend="onnxruntime", quant=("int8",)))
    rows = {row["name"]: row for row in document["rows"]}
    bare = [name for name, row in rows.items() if row["quant"] is None]
    assert list(rows) == [*bare, *(f"{name}, int8" for name in bare)]
    assert bare[0] == "plain"
    assert len(bare) > 1
    assert any(rows[name]["outside"] != rows[f"{name}, int8"]["outside"] for name in bare)
    assert all(rows[name]["flops_ratio"] == rows[f"{name}, int8"]["flops_ratio"] for name in bare)
    assert "| plain, int8 | 2 |" in next(quantised_tables(document))


@pytest.mark.parametrize(
    ("backend", "recipe", "named"),
    [("onnxruntime", "int7", "one of int8-smooth"), ("eager", "int8", "nothing quantised")],
)
def test_a_recipe_that_no_engine_has_is_refused(
    options: Options, backend: str, recipe: str, named: str
) -> None:
    only = ("few-step",)
    with pytest.raises(IncompatibleOptions, match=f"--quant {recipe} .*{backend}.*{named}"):
        run(replace(options, backend=backend, quant=(recipe,), only=only))


# --- points -----------------------------------------------------------------------------------


def test_every_group_has_points_of_its_own() -> None:
    points = points_of(model_facts("flux-kontext"))
    names = [point.name for point in points]
    assert points[0].group == "plain"
    assert len(set(names)) == len(names)
    assert {point.group for point in points} == set(GROUPS)
    assert all((point.preset is None) == (point.group in PEER_GROUPS) for point in points)


def test_a_pipeline_whose_cache_skips_nothing_makes_the_plain_edit(tmp_path: Path) -> None:
    facts = replace(model_facts("flux-tiny"), references=1, text_tokens=16)
    points = [
        EditPoint(group="plain", label="2 steps", preset=Preset(steps=(2,))),
        EditPoint(group="taylorseer", label="1", peer=TaylorSeer(steps=2, interval=1)),
    ]
    built = Engines(facts, bundled_folder("flux-tiny"), backend("eager"), (64, 64), points)
    prepared = built.prepared(judged_edits(1)[0])
    with ExitStack() as scope:
        draws = built.draws(tmp_path / "built", scope, silent) | peer_draws(built, points)
        plain, theirs = (draws[point.name](prepared, 3) for point in points)
    assert np.abs(plain.pixels.astype(int) - theirs.pixels).max() <= 2
    assert theirs.flops == pytest.approx(plain.flops, rel=1e-3)


def test_peers_are_not_timed_beside_another_library(options: Options) -> None:
    with pytest.raises(IncompatibleOptions, match="--backend onnxruntime with peers"):
        run(replace(options, backend="onnxruntime"))


def test_the_command_tells_a_wrong_model_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised:
        command.main(model="flux-tiny", scenes=1, seed=0)
    assert raised.value.exit_code == 2
    assert "flux-tiny" in capsys.readouterr().err
