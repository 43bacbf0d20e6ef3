"""Files are written whole or not at all, and what the system refuses has a name."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from fresco_trt.errors import DiskFull, OutputNotWritable
from fresco_trt.files.atomic_file import check_writable, replacing, store_json, writing


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull),
        (OSError(errno.EACCES, "Permission denied"), OutputNotWritable),
        (ValueError("not the system's"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_half_a_file_is_never_left(
    tmp_path: Path, error: BaseException, raised: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_text(old)
    before = {each.name: each.read_text() for each in tmp_path.iterdir()}
    with pytest.raises(raised):
        _fail(path, error)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == before


def _fail(path: Path, error: BaseException) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise error


def test_a_whole_file_takes_the_place_of_the_old_one_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "result.json"
    for text in ("first", "second"):
        with replacing(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_json_is_what_it_was_and_what_is_not_finite_leaves_the_old(tmp_path: Path) -> None:
    path, document = tmp_path / "result.json", {"schema": 1, "values": [0.5, None]}
    store_json(document, path)
    assert json.loads(path.read_text()) == document
    with pytest.raises(ValueError, match="JSON compliant"):
        store_json({"value": float("nan")}, path)
    assert json.loads(path.read_text()) == document


def test_a_refusal_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "gone.txt"
    said = r"gone\.txt cannot be written.*pass another --out"
    with pytest.raises(OutputNotWritable, match=said), writing(path):
        (tmp_path / "nowhere" / path.name).write_text("")


def test_asking_whether_a_file_can_be_written_writes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "file.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(OutputNotWritable):
            check_writable(path)
