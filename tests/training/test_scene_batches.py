"""Batches of the next demo's scenes: the same whoever draws them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from fresco_trt.bench.scenes.pictures import scaled
from tests.training.discs import Discs
from training.scenes.batches import Recipe, SceneBatches
from training.scenes.drawings import SMALLEST, StoredDrawings, entries
from training.scenes.objects import OBJECTS
from training.scenes.render import pixels_of
from training.scenes.scene import kept_apart

RECIPE = Recipe(seed=5)


def test_a_batch_has_its_scenes_captions_and_pictures() -> None:
    with SceneBatches(RECIPE, Discs()) as batches:
        scenes, pictures = batches.take(3, 48, 32)
    assert scenes == RECIPE.batch((3, 48, 32), 0)
    drawn = pixels_of([each.scene for each in scenes], Discs(), 48, 32)
    assert torch.equal(pictures, scaled(drawn))
    assert pictures.shape == (3, 3, 32, 48)


def test_batches_depend_neither_on_processes_nor_on_other_sizes() -> None:
    here, there = SceneBatches(RECIPE, Discs()), SceneBatches(RECIPE, Discs(), workers=1)
    with here, there:
        plain = [here.take(2, 32, 32) for _ in range(2)]
        mixed = [there.take(2, 32, 32), there.take(3, 16, 16), there.take(2, 32, 32)]
        by_number = [list(each.numbered((2, 32, 32), [1, 0])) for each in (here, there)]
        here.begin((2, 32, 32), 1)
        again = here.take(2, 32, 32)
    for (scenes, pictures), (same, other) in zip(plain, [mixed[0], mixed[2]], strict=True):
        assert scenes == same
        assert torch.equal(pictures, other)
    for found in by_number:
        assert [scenes for scenes, _ in found] == [plain[1][0], plain[0][0]]
        assert torch.equal(found[0][1], plain[1][1])
    assert again[0] == plain[1][0]
    assert plain[0][0] != plain[1][0]
    assert RECIPE.batch((2, 32, 32), 0) != Recipe(seed=6).batch((2, 32, 32), 0)


def test_a_recipe_says_which_objects_and_which_pairs() -> None:
    names = tuple(OBJECTS)[:12]
    scenes = Recipe(seed=1, names=names, apart="style", detail=1.0).batch((8, 64, 64), 0)
    for each in scenes:
        assert {item.name for item in each.scene.items} <= set(names)
        assert kept_apart(each.scene) == {"style"}
        assert any(fact.kind == "style" for fact in each.facts)


def test_stored_drawings_are_opened_anew_by_another_process(tmp_path: Path) -> None:
    path, disc = tmp_path / "drawings.zip", tmp_path / "disc.webp"
    Discs().levels("cat", "flat")[0].save(disc, lossless=True)
    with zipfile.ZipFile(path, "w") as files:
        for name in entries():
            files.write(disc, name)
    sent = pickle.loads(pickle.dumps(StoredDrawings(path)))
    levels = sent.levels("owl", "3d")
    assert [level.width for level in levels] == [256, 128, 64, SMALLEST]
    assert levels is sent.levels("owl", "3d")
    path.unlink()
    with pytest.raises(Exception, match="no drawings at"):
        pickle.loads(pickle.dumps(sent))
