"""Pictures of a folder: which are taken, what is cut off, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco_trt.errors import CalibrationError
from fresco_trt.lower.calibrate.pictures import SUFFIXES, find_pictures, read_picture

SIZE = (64, 32)


def painted(path: Path, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Path:
    """A picture with noise of its own; returns its path."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def test_every_picture_right_in_the_folder_is_found_by_name(tmp_path: Path) -> None:
    expected = [painted(tmp_path / f"{name}{SUFFIXES[name]}") for name in range(len(SUFFIXES))]
    expected.append(painted(tmp_path / "b.PNG"))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    painted(tmp_path / "folder.png" / "below.png")
    assert find_pictures(tmp_path, SIZE) == tuple(sorted(expected))


def test_a_picture_of_the_size_is_read_as_it_is(tmp_path: Path) -> None:
    path = painted(tmp_path / "a.png")
    found = read_picture(path, SIZE)
    assert (found.shape, str(found.dtype)) == ((32, 64, 3), "uint8")
    with Image.open(path) as image:
        assert (found == np.asarray(image)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    path = painted(tmp_path / "a.tif", (80, 64), mode)
    assert read_picture(path, SIZE).shape == (32, 64, 3)


def test_the_middle_is_cut_and_only_reduced(tmp_path: Path) -> None:
    # Twice the size, with a band above and below that the proportions have no room for.
    middle = Image.new("RGB", (128, 64), (10, 200, 30))
    whole = Image.new("RGB", (128, 128), (255, 0, 255))
    whole.paste(middle, (0, 32))
    whole.save(tmp_path / "a.png")
    inner = read_picture(tmp_path / "a.png", SIZE)[3:-3]  # a cut's edge blends with what is beyond
    assert (inner == (10, 200, 30)).all()


@pytest.mark.parametrize("size", [(63, 32), (64, 31), (2000, 8)])
def test_a_picture_that_would_be_enlarged_is_refused_and_named(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    painted(tmp_path / "fits.png")
    painted(tmp_path / "small.png", size)
    with pytest.raises(CalibrationError, match=rf"small.png of {size[0]}x{size[1]}.*64x32"):
        find_pictures(tmp_path, SIZE)


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_of_too_few_pictures_is_refused(tmp_path: Path, count: int) -> None:
    for number in range(count):
        painted(tmp_path / f"{number}.png")
    with pytest.raises(CalibrationError, match=f"{count} pictures in"):
        find_pictures(tmp_path, SIZE)


@pytest.mark.parametrize("name", ["absent", "file.png"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    painted(tmp_path / "file.png")
    with pytest.raises(CalibrationError, match="which is no folder"):
        find_pictures(tmp_path / name, SIZE)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    painted(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"b\.png: ") as raised:
        find_pictures(tmp_path, SIZE)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    whole = painted(tmp_path / "a.png")
    broken = tmp_path / "b.png"
    broken.write_bytes(whole.read_bytes()[:-2000])
    assert find_pictures(tmp_path, SIZE) == (whole, broken)
    with pytest.raises(CalibrationError, match=r"b\.png: "):
        read_picture(broken, SIZE)
