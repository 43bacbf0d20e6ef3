"""The next demo's pictures: the same at every size, everything in them to be seen."""

from __future__ import annotations

import math
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco_trt.bench.scenes.scene import COLOURS
from fresco_trt.errors import ComponentFailed, ContentInvalid, DigestMismatch, FileMissing
from tests.training.discs import Discs
from training.scenes import drawings
from training.scenes.captions import captioned
from training.scenes.drawings import PACKAGES, SIDE, StoredDrawings, fetch_archives, squared
from training.scenes.objects import STYLES
from training.scenes.render import background_of, coverage, render
from training.scenes.scene import TEXTURES, Backdrop, Item, Scene, random_scene, relations_of
from training.scenes.sheet import sheet_of
from training.scenes.textures import share_of

DISCS = Discs()


def backdrop(texture: str, seed: int = 1) -> Backdrop:
    rng = random.Random(seed)
    return Backdrop(
        texture=texture,
        colour="blue",
        angle=rng.uniform(0, 2 * math.pi),
        frequency=rng.uniform(3, 7),
        phase=rng.random(),
        contrast=0.4,
        seed=seed,
    )


def scene(*items: Item, light: str = "evenly") -> Scene:
    return Scene(items=items, style="flat", backdrop=backdrop("graded"), light=light)


def test_a_scene_gives_the_same_pixels_every_time() -> None:
    drawn = [random_scene(random.Random(8)) for _ in range(2)]
    first, second = (render(each, Discs(), 64) for each in drawn)
    assert (first == second).all()
    assert first.shape == (64, 64, 3)


def test_a_scene_has_one_layout_at_every_size() -> None:
    rng = random.Random(2)
    for _ in range(12):
        each = random_scene(rng)
        large, small = (render(each, DISCS, side).astype(float) for side in (256, 64))
        averaged = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(averaged - small).mean() < 6


def test_a_wide_frame_has_the_scene_in_the_middle_of_its_background() -> None:
    each = replace(random_scene(random.Random(2)), light="evenly")
    item = each.items[0]
    square, wide = (coverage(each, item, DISCS, width, 64) for width in (64, 96))
    assert (wide[:, 16:80] == square).all()
    assert render(each, DISCS, 96, 64).shape == (64, 96, 3)


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_has_both_tones_and_is_the_same_at_every_size(texture: str) -> None:
    for seed in range(6):
        given = backdrop(texture, seed)
        large, small = (share_of(given, side, side) for side in (256, 64))
        assert 0 <= large.min() <= 0.35
        assert 0.65 <= large.max() <= 1
        assert 0.08 < large.mean() < 0.92
        assert np.abs(large.reshape(64, 4, 64, 4).mean(axis=(1, 3)) - small).mean() < 0.06


def test_textures_of_one_background_are_all_different() -> None:
    shares = [share_of(backdrop(texture), 64, 64) for texture in TEXTURES]
    apart = [np.abs(a - b).mean() for i, a in enumerate(shares) for b in shares[:i]]
    assert min(apart) > 0.1


def test_a_background_is_nearest_to_the_colour_that_is_named() -> None:
    for colour in COLOURS:
        for texture in TEXTURES:
            given = replace(backdrop(texture), colour=colour, contrast=-0.4)
            mean = background_of(given, 64, 64).mean(axis=(0, 1))
            tones = {name: np.asarray(tone) / 255 for name, tone in COLOURS.items()}
            # A darker or lighter tone is the same colour, so directions are compared.
            near = {
                name: float(mean @ tone / np.linalg.norm(mean) / np.linalg.norm(tone))
                for name, tone in tones.items()
            }
            assert max(near, key=lambda name: near[name]) == colour


def test_what_is_in_front_hides_what_is_behind_and_not_all_of_it() -> None:
    rng, seen = random.Random(4), 0
    while seen < 8:
        each = random_scene(rng)
        items = {item.name: item for item in each.items}
        for front, relation, back in relations_of(each):
            if relation == "in front of":
                covers, covered = (
                    coverage(each, items[name], DISCS, 64) > 127 for name in (front, back)
                )
                both = (covers & covered).sum()
                assert both > 8
                assert both < 0.6 * covered.sum()
                seen += 1


def test_an_object_fills_its_square_and_nothing_beyond() -> None:
    item = Item(name="cat", x=0.5, y=0.25, side=0.5)
    covered = coverage(scene(item), item, DISCS, 64)
    rows, columns = np.nonzero(covered > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 31, 16, 47)


def test_a_painted_object_has_that_colour() -> None:
    for name in ("cat", "dog", "owl"):
        item = Item(name=name, x=0.5, y=0.5, side=0.5, paint="green")
        middle = render(scene(item), DISCS, 64)[32, 32]
        assert np.abs(middle.astype(int) - COLOURS["green"]).max() <= 12


@pytest.mark.parametrize(
    ("light", "bright", "dim"),
    [
        ("from the left", np.s_[:, :16], np.s_[:, 48:]),
        ("from the right", np.s_[:, 48:], np.s_[:, :16]),
        ("from above", np.s_[:16], np.s_[48:]),
        ("from below", np.s_[48:], np.s_[:16]),
    ],
)
def test_a_light_brightens_its_side_and_throws_shadows_to_the_other(
    light: str, bright: slice, dim: slice
) -> None:
    plain, lit = (render(scene(light=each), DISCS, 64).astype(float) for each in ("evenly", light))
    gain = lit / plain
    assert gain[bright].mean() > 1.02
    assert gain[dim].mean() < 0.78
    item = Item(name="cat", x=0.5, y=0.5, side=0.4)
    shadow = lit - render(scene(item, light=light), DISCS, 64)
    shadow[coverage(scene(item), item, DISCS, 64) > 0] = 0
    assert shadow[dim].sum() + shadow[16:48, 16:48].sum() > 0
    towards = {"from the left": 0, "from the right": 1, "from above": 2, "from below": 3}[light]
    halves = (shadow[:, :32], shadow[:, 32:], shadow[:32], shadow[32:])
    sums = [half.sum() for half in halves]
    assert sums[towards] < 0.5 * sums[towards ^ 1]


def test_a_drawing_is_cut_to_what_is_seen_and_put_in_the_middle() -> None:
    wide = Image.new("RGBA", (100, 80))
    wide.paste((200, 10, 10, 255), (30, 50, 70, 60))
    alpha = np.asarray(squared(wide).getchannel("A"))
    rows, columns = np.nonzero(alpha > 127)
    assert alpha.shape == (SIDE, SIDE)
    assert (columns.min(), columns.max()) == (0, SIDE - 1)
    assert (rows.min(), rows.max()) == (96, 159)


def test_drawings_that_are_not_there_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"training.scenes drawings --out .*drawings.zip"):
        StoredDrawings(tmp_path / "drawings.zip")
    (tmp_path / "drawings.zip").write_text("nothing")
    with pytest.raises(ContentInvalid, match="every object in every style"):
        StoredDrawings(tmp_path / "drawings.zip")


def test_archives_that_are_not_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "drawings.zip"
    with pytest.raises(FileMissing, match="npm pack @iconify-json/noto@"):
        drawings.store_drawings(tmp_path, out)
    (tmp_path / PACKAGES[0].archive).write_bytes(b"another")
    with pytest.raises(DigestMismatch, match=PACKAGES[0].sha256):
        drawings.store_drawings(tmp_path, out)
    assert [path.name for path in tmp_path.iterdir()] == [PACKAGES[0].archive]


def test_without_npm_the_archives_can_be_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawings.shutil, "which", lambda name: None)
    with pytest.raises(ComponentFailed, match=r"npm pack @iconify-json/noto@1\.2\.9 @icon"):
        fetch_archives(tmp_path)
    for package in PACKAGES:
        (tmp_path / package.archive).touch()
    fetch_archives(tmp_path)


def test_archives_are_fetched_once_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pack(command: list[str], cwd: str, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[2:])
        for package in PACKAGES[:2]:
            (Path(cwd) / package.archive).write_bytes(b"data")
        return subprocess.CompletedProcess(command, len(asked) - 1, "", "npm error 404\n")

    monkeypatch.setattr(drawings.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(drawings.subprocess, "run", pack)
    fetch_archives(tmp_path)
    assert len(asked[0]) == len(PACKAGES)
    with pytest.raises(ComponentFailed, match="npm error 404"):
        fetch_archives(tmp_path)
    assert [name.rsplit("@", 1)[0] for name in asked[1]] == [p.name for p in PACKAGES[2:]]


def test_every_style_has_a_package_and_every_package_a_free_licence() -> None:
    assert tuple(package.style for package in PACKAGES) == STYLES
    assert {package.licence.rsplit(", ", 1)[1] for package in PACKAGES} == {
        "Apache-2.0",
        "MIT",
        "CC-BY-4.0",
    }


def test_a_sheet_shows_every_scene_with_its_caption() -> None:
    rng = random.Random(1)
    scenes = [captioned(random_scene(rng), rng) for _ in range(7)]
    sheet = np.asarray(sheet_of(scenes, DISCS, 64))
    assert (sheet[4:68, 4:68] == render(scenes[0].scene, DISCS, 64)).all()
    assert (sheet[70:100, 4:100] < 90).any()
