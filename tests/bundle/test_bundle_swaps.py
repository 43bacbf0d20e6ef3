"""A bundle that becomes another one between the check and the load is never loaded as the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.errors import BundleChanged, EngineFailed, FileMissing
from tests.bundle.test_bundle import write
from tests.hostile.swaps import SWAPS, rebuilt, taken_away


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "b", b"one").folder


@pytest.mark.parametrize("swap", SWAPS)
def test_what_was_swapped_while_it_was_loaded_is_refused(
    folder: Path, swap: Callable[[Path], None]
) -> None:
    bundle = open_bundle(folder)
    with bundle.unchanged():
        pass
    with pytest.raises(BundleChanged, match=r"Fix: open it again\Z") as caught, bundle.unchanged():
        swap(folder)
    assert str(folder) in str(caught.value)


def test_an_error_that_came_of_the_swap_says_so_and_another_stays(folder: Path) -> None:
    bundle = open_bundle(folder)
    failed = EngineFailed("no such engine", expected="one", fix="restore the bundle")
    with pytest.raises(EngineFailed, match=r"\Ano such engine; "), bundle.unchanged():
        raise failed
    taken_away(folder)
    with pytest.raises(BundleChanged) as caught, bundle.unchanged():
        raise failed
    assert caught.value.__cause__ is failed


def test_a_bundle_that_was_just_written_is_held_to_what_was_written(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", b"one")
    with bundle.unchanged():
        pass
    write(tmp_path / "b", b"two")
    with pytest.raises(BundleChanged, match="its folder was replaced"), bundle.unchanged():
        pass


def test_a_rebuild_while_it_is_checked_is_no_damage(folder: Path) -> None:
    def rebuild(phase: str, fraction: float) -> None:
        if fraction < 1.0 and not seen:
            seen.append(phase)
            write(folder, b"another")

    seen: list[str] = []
    with pytest.raises(BundleChanged, match="Fix: open it again"):
        open_bundle(folder, progress=rebuild)
    assert json.loads((open_bundle(folder).folder / "manifest.json").read_bytes())["files"]
    (folder / "a.onnx").unlink()
    with pytest.raises(FileMissing):
        open_bundle(folder)
    rebuilt(folder)
    with pytest.raises(FileMissing):
        open_bundle(folder)
