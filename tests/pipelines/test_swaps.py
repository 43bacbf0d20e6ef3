"""Both doors to a bundle's engines load what was checked, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fresco_trt
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.errors import BundleChanged
from fresco_trt.pipelines import loading
from tests.hostile.swaps import SWAPS, rebuilt


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[Any]]:
    """Have a bundle rebuilt right after its engines are loaded; those that were."""

    def arrange(folder: Path) -> list[Any]:
        real, loaded = loading.load_runners, list[Any]()

        def load(bundle: Any, *others: Any, **more: Any) -> Any:
            loaded.append(real(bundle, *others, **more))
            rebuilt(folder)
            return loaded[-1]

        monkeypatch.setattr(loading, "load_runners", load)
        return loaded

    return arrange


def closed(loaded: list[Any]) -> bool:
    """Whether the engines were loaded, and are freed."""
    (runners,) = loaded
    for runner in runners.values():
        with pytest.raises(RuntimeError, match="inside its scope"):
            runner({})
    return bool(runners)


def test_a_pipeline(
    swapped: Callable[[Path], list[Any]], eager_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link)
    loaded = swapped(folder)
    with pytest.raises(BundleChanged, match="its folder was replaced"):
        fresco_trt.FrescoPipeline.from_bundle(folder)
    assert closed(loaded)


def test_a_pipeline_of_diffusers(
    swapped: Callable[[Path], list[Any]], demo_bundle: Path, tmp_path: Path, pipe: Any
) -> None:
    folder = shutil.copytree(demo_bundle, tmp_path / "b", copy_function=os.link)
    loaded = swapped(folder)
    with pytest.raises(BundleChanged, match="its folder was replaced"):
        fresco_trt.enable(pipe, engines=folder)
    assert closed(loaded)


@pytest.mark.parametrize("swap", SWAPS)
def test_nothing_is_entered_of_what_was_swapped_while_it_was_read(
    swap: Callable[[Path], None], eager_bundle: Path, tmp_path: Path
) -> None:
    """Native code runs as soon as it is loaded: to look afterwards would be too late."""
    folder = shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link)
    entered = list[str]()

    class Library(EagerBackend):
        def load(self, folder: Path, record: Any) -> Any:
            if record.name == "stage3.full":
                swap(folder)
            return SimpleNamespace(__enter__=lambda: entered.append(record.name))

    bundle = loading.opened(folder)
    with pytest.raises(BundleChanged), ExitStack() as scope:
        loading.load_runners(bundle, Library(), scope)
    assert not entered
