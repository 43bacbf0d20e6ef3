"""A clip is written whole or not at all, and a strip shows frames from the first to the last."""

from __future__ import annotations

import gc
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fresco_trt.errors import BackendUnavailable, OutputNotWritable, PlanError
from fresco_trt.pipelines.video import check_ffmpeg, check_fps, save_clip, strip

if TYPE_CHECKING:
    from pathlib import Path

encoder: Any = pytest.importorskip("imageio_ffmpeg")

FRAMES = [Image.new("RGB", (32, 16), (20 * number, 0, 200)) for number in range(9)]


def test_a_clip_holds_its_frames_and_says_how_far_it_is(tmp_path: Path) -> None:
    told: list[float] = []
    save_clip(FRAMES, tmp_path / "new" / "clip.mp4", fps=12, progress=told.append)
    (path,) = (tmp_path / "new").iterdir()
    assert encoder.count_frames_and_secs(str(path)) == (9, 0.75)
    command = (encoder.get_ffmpeg_exe(), "-v", "error", "-i", str(path))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    done = subprocess.run([*command, *raw], check=True, capture_output=True)
    read = np.frombuffer(done.stdout, np.uint8).reshape(9, 16, 32, 3)
    for frame, found in zip(FRAMES, read, strict=True):
        assert np.abs(np.asarray(frame).mean((0, 1)) - found.mean((0, 1))).max() < 8
    assert told == [number / 9 for number in range(1, 10)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), ValueError("no")])
def test_an_interrupt_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, stop: BaseException
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def progress(fraction: float) -> None:
        if fraction > 0.5:
            raise stop

    with pytest.raises(type(stop)):
        save_clip(FRAMES, path, progress=progress)
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"old"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_encoder_that_stops_half_way_is_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    with pytest.raises(OutputNotWritable, match="was not written by ffmpeg"):
        save_clip(FRAMES, tmp_path / "out" / "clip.mp4")
    assert list((tmp_path / "out").iterdir()) == []
    gc.collect()  # imageio-ffmpeg leaves the broken pipe open, which is told when it goes


def test_without_ffmpeg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ffmpeg()

    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(encoder, "get_ffmpeg_exe", missing)
    with pytest.raises(BackendUnavailable, match=r"pip install 'fresco-trt\[video\]'"):
        check_ffmpeg()


def test_a_strip_goes_from_the_first_frame_to_the_last() -> None:
    picture = strip(FRAMES, 3)
    assert picture.size == (96, 16)
    assert [picture.getpixel((x, 0)) for x in (0, 40, 95)] == [
        FRAMES[index].getpixel((0, 0)) for index in (0, 4, 8)
    ]
    assert strip(FRAMES[:1]).size == (32, 16)


@pytest.mark.parametrize("fps", [0.0, -1.0, 1000.0, float("nan")])
def test_frames_a_second_are_in_bounds(fps: float) -> None:
    with pytest.raises(PlanError, match="--fps 24"):
        check_fps(fps)
