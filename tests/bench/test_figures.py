"""The two pictures: what they show is what was measured, and they are written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fresco_trt.bench.figures import contact_sheet, label_of, pareto, representatives, undominated
from fresco_trt.bench.sheet import CAPTION, COLUMNS, MARGIN, TILE, sheet


def row(method: str, speed: float, **changes: Any) -> dict[str, Any]:
    quality = {f"{q}{end}": 0.5 for q in ("score", "ssim") for end in ("", "_low", "_high")}
    common = {"method": method, "preset": None, "ablation": None, "variant": None}
    return {**common, "speedup": speed, "flops_ratio": speed, **quality, **changes}


points = st.lists(
    st.tuples(st.floats(1, 20), st.floats(0, 1)), min_size=1, max_size=12, unique=True
)


@given(points)
def test_the_front_dominates_every_other_point_and_none_of_itself(
    values: list[tuple[float, float]],
) -> None:
    front = undominated(values)
    assert set(front) <= set(values)
    assert front == sorted(front)
    for speed, quality in values:
        assert any(s >= speed and q >= quality for s, q in front)
    for one in front:
        assert not any(o != one and o[0] >= one[0] and o[1] >= one[1] for o in front)


def test_the_sheet_shows_each_method_at_one_speed_and_all_of_ours() -> None:
    rows = [
        row("plain", 1.0),
        row("few-step", 3.0, ssim=0.9),
        row("few-step", 5.5, ssim=0.6),
        row("few-step", 5.5, ssim=0.7, variant="tuned"),
        row("few-step", 25.0, ssim=0.2),
        row("ralu", 2.0, ssim=0.9),
        row("ralu", 4.0, ssim=0.5),
        row("fresco", 3.0),
        row("fresco", 9.0),
        row("fresco", 5.0, ablation="noise fresh"),
    ]
    shown = representatives(rows, "speedup")
    assert [label_of(each, "speedup") for each in shown] == [
        "plain, 1.0x",
        "few-step, tuned, 5.5x",  # the closest of those that are fast enough
        "ralu, 4.0x",  # none is: its fastest
        "fresco, 3.0x",
        "fresco, 9.0x",
    ]


def test_the_sheet_shows_the_closest_of_the_caches_on_top_of_a_preset() -> None:
    rows = [
        row("plain", 1.0),
        row("fresco", 5.0, preset="fast"),
        row("fresco", 9.0, preset="fast", variant="reuse, interval 3", ssim=0.4),
        row("fresco", 8.0, preset="fast", variant="taylor, interval 3", ssim=0.6),
        row("fresco", 8.0, preset="fast", variant="2 stages", ssim=0.2),
    ]
    assert [label_of(each, "speedup") for each in representatives(rows, "speedup")] == [
        "plain, 1.0x",
        "fresco, fast, 5.0x",
        "fresco, fast, taylor, interval 3, 8.0x",
        "fresco, fast, 2 stages, 8.0x",
    ]


def test_the_sheet_shows_a_sibling_apart_and_says_which() -> None:
    rows = [
        row("plain", 1.0, model="m"),
        row("few-step", 12.0, model="m", ssim=0.9),
        row("few-step", 12.0, model="turbo", ssim=0.7),
        row("few-step", 11.0, model="turbo", ssim=0.6),
        row("fresco", 5.0, model="turbo") | {"speedup": None},
    ]
    shown = representatives(rows, "speedup")
    assert [label_of(each, "speedup", "m") for each in shown] == [
        "plain, 1.0x",
        "few-step, 12.0x",
        "few-step, turbo, 12.0x",
        "fresco, turbo, 5.0x by FLOPs",  # on a machine that only simulates its precision
    ]


def test_the_sheet_shows_the_preset_that_each_precision_changes_most() -> None:
    def quantised(preset: str, twin: float, **changes: Any) -> dict[str, Any]:
        codes = {"model": "m", "precision": "int8", "twin_ssim": twin}
        return row("fresco", 6.0, preset=preset, **{**codes, **changes})

    rows = [
        row("plain", 1.0, model="m"),
        row("fresco", 5.0, model="m", preset="fast"),
        quantised("fast", 0.98),
        quantised("turbo", 0.96),
        quantised("turbo", 0.9, variant="svd, interval 3"),
        quantised("fast", 0.95, precision="fp8"),
        quantised("fast", 0.97, model="n"),
    ]
    assert [label_of(each, "speedup", "m") for each in representatives(rows, "speedup")] == [
        "plain, 1.0x",
        "fresco, fast, 5.0x",
        "fresco, turbo, int8, 6.0x",
        "fresco, fast, fp8, 6.0x",
        "fresco, n, fast, int8, 6.0x",
    ]


def test_the_sheet_shows_the_closest_cache_of_every_model() -> None:
    cached = {"preset": "fast", "variant": "svd, interval 3"}
    rows = [
        row("plain", 1.0, model="m"),
        row("fresco", 6.0, model="m", ssim=0.4, **cached),
        row("fresco", 7.0, model="n", ssim=0.6, **cached),
    ]
    assert [each["model"] for each in representatives(rows, "speedup")] == ["m", "m", "n"]


def test_the_fastest_is_shown_though_some_have_no_seconds() -> None:
    rows = [row("plain", 1.0), row("cache", 4.0), row("cache", 3.0) | {"speedup": None}]
    assert representatives(rows, "speedup")[1]["speedup"] == 4.0


def test_the_sheet_pairs_pictures_and_breaks_into_bands() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    drawn = sheet([("a caption", (red, blue))] * (COLUMNS + 1))
    assert drawn.size == (COLUMNS * TILE, 2 * (2 * TILE + CAPTION))
    assert drawn.getpixel((5, CAPTION + 5)) == (255, 0, 0)
    assert drawn.getpixel((5, CAPTION + TILE + 5)) == (0, 0, 255)
    assert drawn.getpixel((TILE + 5, drawn.height - 5)) == (255, 255, 255)


def test_the_sheet_is_drawn_from_the_kept_tiles(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    for scene in (0, 1):
        (tmp_path / str(scene)).mkdir()
        for index, colour in enumerate(colours):
            Image.new("RGB", (8, 8), colour).save(tmp_path / str(scene) / f"{index}.png")
    out = tmp_path / "sheet.png"
    contact_sheet(["plain", "ours"], [0, 2], ["one", "two"], tmp_path, out)
    with Image.open(out) as drawn:
        assert drawn.size == (MARGIN + COLUMNS * TILE, CAPTION + 2 * TILE)
        assert drawn.getpixel((MARGIN + 5, CAPTION + 5)) == (255, 0, 0)
        assert drawn.getpixel((MARGIN + TILE + 5, CAPTION + TILE + 5)) == (0, 0, 255)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("timed", [True, False])
def test_the_plot_is_a_whole_png(tmp_path: Path, timed: bool) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra 'bench'")
    rows = [row("plain", 1.0), row("fresco", 5.0), row("fresco", 4.8, ablation="noise fresh")]
    rows.append(row("fresco", 45.0, model="turbo"))
    if not timed:
        rows = [each | {"speedup": None} for each in rows]
    document = {"rows": rows, "model": "m", "instrument": "model", "scenes": 2, "score": "share"}
    pareto(document, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as drawn:
        drawn.load()
        wide = drawn.width > drawn.height
    assert wide == timed  # two panels beside each other, or one
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
