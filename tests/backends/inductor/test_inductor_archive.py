"""Laws of a ``.pt2`` file as an archive: refused by name as a whole, or unpacked as it is."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

import fresco_trt
from fresco_trt.backends.inductor import runtime, unpacking
from fresco_trt.backends.inductor.archive import MOST_BYTES, opened
from fresco_trt.errors import DiskFull, EngineFailed, OutputNotWritable
from tests.hostile import native
from tests.hostile.digests import replaced


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
    monkeypatch.setattr(unpacking, "loads_folders", lambda: folders)
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


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, DiskFull, r"has \d+ bytes free, and \d+ are to be written; .* set TMPDIR"),
        (errno.EACCES, OutputNotWritable, r"cannot be written .* set TMPDIR"),
    ],
)
def test_a_temporary_folder_that_takes_nothing_is_named_and_not_the_bundle(
    number: int, kind: type, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(native.archive({native.LIBRARY: native.shared_object(tmp_path / "ran")}))
    written = list[Path]()

    def refuse(target: Path, data: bytes) -> int:
        written.append(target)
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(kind, match=said) as caught:
        unpacking.unpacked(path)
    assert tempfile.gettempdir() in str(caught.value)
    assert "x.pt2" not in str(caught.value)
    assert not [target for target in written if target.parents[4].exists()]


def test_code_that_is_swapped_while_it_is_unpacked_is_not_taken_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "x.pt2", unpacking._members_in
    path.write_bytes(native.archive({native.LIBRARY: native.shared_object(tmp_path / "ran")}))

    def swapped(given: Path, place: Path) -> Path:
        replaced(path, path.read_bytes())
        return real(given, place)

    monkeypatch.setattr(unpacking, "_members_in", swapped)
    with pytest.raises(EngineFailed, match="replaced while it was read"):
        unpacking.unpacked(path)
    monkeypatch.undo()
    assert unpacking.unpacked(path).is_dir()


def test_a_whole_archive_is_unpacked_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(native.archive({native.LIBRARY: b"code", "model/data/more": b""}))
    (tmp_path / "place").mkdir()
    folder = unpacking._members_in(path, tmp_path / "place")
    assert (folder.name, (tmp_path / "place" / native.LIBRARY).read_bytes()) == ("model", b"code")
    assert len(ZipFile(io.BytesIO(path.read_bytes())).namelist()) == 3
