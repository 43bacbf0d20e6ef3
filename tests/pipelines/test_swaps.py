"""Both doors to a bundle's engines load what was checked, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.errors import BundleChanged
from fresco_trt.pipelines import image
from tests.hostile.swaps import rebuilt


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[Any]]:
    """Have a bundle rebuilt right before its engines are loaded; those that were."""

    def arrange(folder: Path) -> list[Any]:
        real, loaded = image.load_runners, list[Any]()

        def load(bundle: Any, library: Any, scope: Any) -> Any:
            rebuilt(folder)
            loaded.append(real(bundle, library, scope))
            return loaded[-1]

        monkeypatch.setattr(image, "load_runners", load)
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
    swapped: Callable[[Path], list[Any]], eager_bundle: Path, tmp_path: Path, pipe: Any
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link)
    loaded = swapped(folder)
    with pytest.raises(BundleChanged, match="its folder was replaced"):
        fresco_trt.enable(pipe, engines=folder)
    assert closed(loaded)
