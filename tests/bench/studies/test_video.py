"""The bench of clips on a model that knows nothing: what is stored, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.tables import video_tables
from bench.video import command, figures
from bench.video.command import Options, run
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.weights import write_source
from fresco_trt.models.hunyuan.facts import HUNYUAN_TINY
from fresco_trt.models.hunyuan.loading import load_transformer
from fresco_trt.models.hunyuan.random import write_random_pipeline
from fresco_trt.models.registry import model_facts

pytest.importorskip("resvg_py", reason="resvg-py, of the bench extra, draws the icons")

PLOTS = find_spec("matplotlib") is not None
"""matplotlib comes with the extra 'bench'."""

POINTS = ("3 steps, euler, shift 5", "turbo, 2 stages, amplifier", "diffusers", "interval 5")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """The plain clip has four steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            command, "model_facts", lambda name: replace(model_facts(name), default_steps=4)
        )
        if not PLOTS:
            patched.setattr(figures, "check_plots", lambda: None)
            patched.setattr(figures, "pareto", lambda document, path: None)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Of one small clip, over a pipeline folder of random weights."""
    folder = write_random_pipeline(HUNYUAN_TINY, tmp_path_factory.mktemp("weights"))
    write_source(load_transformer("random", HUNYUAN_TINY), folder / "transformer")
    out = tmp_path_factory.mktemp("out") / "video.json"
    return Options(clips=1, out=out, weights=str(folder), size="32x32x5", only=POINTS)


@pytest.fixture(scope="module")
def stored(options: Options) -> dict[str, Any]:
    run(options)
    document: dict[str, Any] = json.loads(options.out.read_text())
    return document


def test_a_run_stores_its_rows_beside_the_plain_clips(stored: dict[str, Any]) -> None:
    assert stored["left_out"] == []
    plain, *others = stored["rows"]
    assert (plain["point"], plain["ssim"]) == ("plain", 1)
    assert plain["flicker"] == pytest.approx(0, abs=1e-5)
    assert (plain["speedup"], plain["flops_ratio"]) == (1, 1)
    assert {row["group"] for row in others} == {"few-step", "fresco", "diffusers", "taylorseer"}
    assert len(others) + len(stored["tuning"]) == 4
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in others)
    assert all(row["ssim"] < 1 for row in others if row["group"] in ("few-step", "fresco"))
    assert [row["ssim"] < 1 for row in stored["bounds"]] == [True]
    for table in list(video_tables(stored))[:2]:
        assert "fresco" in table


def test_diffusers_pipeline_draws_the_plain_clip_at_the_plain_clips_cost(
    stored: dict[str, Any],
) -> None:
    (row,) = (row for row in stored["rows"] if row["group"] == "diffusers")
    assert row["ssim"] > 0.999
    assert row["flops_ratio"] == pytest.approx(1, rel=2e-3)
    (seer,) = (row for row in stored["rows"] if row["group"] == "taylorseer")
    assert seer["flops_ratio"] > 1  # it skips a step of four, after three


def test_a_run_draws_its_plot_and_its_strips_and_is_complete(
    stored: dict[str, Any], options: Options
) -> None:
    from PIL import Image

    for name in ("video-pareto.png", "video-strips.jpg")[not PLOTS :]:
        with Image.open(options.out.with_name(name)) as picture:
            assert min(picture.size) > 100
    assert options.out.with_suffix(".jsonl").read_text().endswith('{"complete": true}\n')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "flux-tiny"}, "--model flux-tiny; expected a model that draws clips"),
        ({"size": "128x64x5"}, "--size 128x64x5; expected square clips"),
        ({"size": "64x64"}, "--size 64x64; expected square clips of 5 frames or more"),
        ({"backend": "onnxruntime"}, "--backend onnxruntime with peers such as cache-dit"),
    ],
)
def test_what_has_no_clips_to_judge_is_refused(
    options: Options, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(IncompatibleOptions, match=said):
        run(replace(options, **change))


def test_the_command_tells_missing_weights_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised:
        command.main(weights=str(Path("nowhere")))
    assert raised.value.exit_code == 2
    assert "nowhere" in capsys.readouterr().err
