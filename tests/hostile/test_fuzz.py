"""Hostile bundles from a seeded generator are refused in words, or harmless.

`make fuzz` has thousands, each in a process of its own; here are the first of them, in this one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.hostile.attempt import EQUAL, GOOD, Judged, attempt, compared
from tests.hostile.changes import Change, changed
from tests.hostile.fuzz import build_honest

ATTEMPTS = range(23)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eager engines of a block of each kind. Read only."""
    folder = tmp_path_factory.mktemp("honest")
    build_honest(folder, ["eager"])
    return folder / "eager"


def judged(honest: Path, place: Path, seed: int) -> tuple[Change, Judged]:
    """One attempt on a copy of the honest bundle."""
    folder = shutil.copytree(honest, place / "bundle", copy_function=os.link)
    try:
        return changed(folder, seed), attempt(folder)
    finally:
        shutil.rmtree(folder)


def test_hostile_bundles_are_refused_or_harmless(honest: Path, tmp_path: Path) -> None:
    picture = attempt(honest).picture
    assert picture
    faults = []
    for seed in ATTEMPTS:
        change, found = judged(honest, tmp_path, seed)
        if found.outcome == EQUAL:
            found.outcome = compared(found.picture, picture, change.matters)
        if found.outcome not in GOOD:
            faults.append((seed, change, found))
    assert not faults


def test_a_change_is_the_same_for_the_same_seed(honest: Path, tmp_path: Path) -> None:
    told = []
    for name in ("one", "other"):
        folder = shutil.copytree(honest, tmp_path / name, copy_function=os.link)
        told.append((changed(folder, 3), (folder / "manifest.json").read_bytes()))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("picture", "matters", "outcome"),
    [
        ("a", True, "drawn equal"),
        ("b", False, "drawn from other values"),
        ("b", True, "wrong accept"),
        ("flat b", False, "wrong accept"),
    ],
)
def test_another_picture_is_wrong_unless_it_is_of_other_values(
    picture: str, matters: bool, outcome: str
) -> None:
    assert compared(picture, "a", matters) == outcome
