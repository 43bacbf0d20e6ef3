"""A bundle that is loaded may be replaced or deleted; one that is written over draws no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fresco_trt.errors import BundleChanged
from fresco_trt.pipelines.image import FrescoPipeline

PROMPT = "a bell"


def drawn(pipe: FrescoPipeline) -> Any:
    return np.asarray(pipe(PROMPT, seed=1).images[0])


def weights(folder: Path) -> Path:
    """The largest file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def zeros(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))


WRITTEN: dict[str, Callable[[Path], None]] = {
    "zeros": zeros,
    "cut": lambda file: os.truncate(file, 0),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_written_over_draws_no_more(kind: str, eager_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "bundle")
    with FrescoPipeline.from_bundle(folder) as pipe:
        WRITTEN[kind](weights(folder))
        with pytest.raises(BundleChanged, match="was written to"):
            drawn(pipe)


def test_what_is_written_over_within_a_request_gives_no_picture(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "bundle")
    with FrescoPipeline.from_bundle(folder) as pipe, pytest.raises(BundleChanged):
        pipe(PROMPT, on_step=lambda step: os.utime(weights(folder)))


def test_what_is_replaced_or_deleted_is_drawn_with_as_before(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "bundle")
    before = set(Path("/proc/self/fd").iterdir())
    with FrescoPipeline.from_bundle(folder) as pipe:
        folder.rename(tmp_path / "old")
        other = shutil.copytree(eager_bundle, folder)
        zeros(weights(other))
        replaced = drawn(pipe)
        shutil.rmtree(tmp_path / "old")
        shutil.rmtree(other)
        assert (drawn(pipe) == replaced).all()
    with FrescoPipeline.from_bundle(eager_bundle) as pipe:
        assert (drawn(pipe) == replaced).all()
    assert len(set(Path("/proc/self/fd").iterdir())) == len(before)
