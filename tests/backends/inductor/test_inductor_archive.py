"""Laws of a ``.pt2`` file as an archive: refused by name as a whole, or unpacked as it is."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

import fresco_trt
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor import runtime
from fresco_trt.backends.inductor.archive import MOST_BYTES, opened
from fresco_trt.errors import EngineFailed
from tests.hostile import native


@pytest.mark.parametrize("make", native.MAKERS[1:], ids=lambda make: make.__name__)
@pytest.mark.parametrize("folders", [True, False], ids=["unpacked", "as an archive"])
def test_hostile_archives_are_refused_by_name_and_leave_nothing(
    make: Callable[[Path], None],
    folders: bool,
    eager_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trusted, and wherever torch unpacks: in its own way before 2.13."""
    bundle = shutil.copytree(eager_bundle, tmp_path / "in" / "bundle", copy_function=os.link)
    make(bundle)
    monkeypatch.setattr(inductor, "loads_folders", lambda: folders)
    with pytest.raises(EngineFailed, match=r"\.pt2 cannot be read: ") as caught:
        fresco_trt.FrescoPipeline.from_bundle(bundle, trust_native_code=True)
    assert len(str(caught.value)) < 500
    assert not native.mark_of(bundle).exists()


def test_a_file_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.pt2"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=r"large\.pt2 cannot be read: it has"), opened(path):
        pass


def test_random_damage_is_refused_or_read(tmp_path: Path) -> None:
    """Of an archive and of the library in it: ValueError, and nothing else."""
    whole = native.archive({native.LIBRARY: native.shared_object(tmp_path / "ran")})
    draw, path = random.Random(5), tmp_path / "x.pt2"
    heads = len(whole) - 600
    for _ in range(150):
        at = draw.choice((draw.randrange(400), heads + draw.randrange(600)))
        path.write_bytes(whole[:at] + draw.randbytes(4) + whole[at + 4 :])
        try:
            runtime.needed(path)
        except ValueError as error:
            assert str(error).startswith("x.pt2 cannot be read: ")  # noqa: PT017


def test_a_whole_archive_is_unpacked_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(native.archive({native.LIBRARY: b"code", "model/data/more": b""}))
    (tmp_path / "place").mkdir()
    folder = inductor._unpacked(path, tmp_path / "place")
    assert (folder.name, (tmp_path / "place" / native.LIBRARY).read_bytes()) == ("model", b"code")
    assert len(ZipFile(io.BytesIO(path.read_bytes())).namelist()) == 3
