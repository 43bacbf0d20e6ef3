"""Clips as files: an MP4 through ffmpeg, and a strip of frames as one picture.

Behind a pipeline whose bundle draws clips. ffmpeg comes with the extra 'video' (imageio-ffmpeg). A
file is written whole or not at all, whatever interrupts.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import BackendUnavailable, OutputNotWritable, PlanError
from fresco_trt.files.atomic_file import replacing
from fresco_trt.files.canonical_json import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL.Image import Image

FPS = 24
"""Frames a second of HunyuanVideo's clips."""

MAX_FPS = 240
STRIP_FRAMES = 8

_QUALITY = ("-crf", "17", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4")
"""x264 without a loss that one sees, in a file that plays while it is still loading."""


def check_ffmpeg() -> None:
    """Raise BackendUnavailable where there is no ffmpeg to write a clip with."""
    _encoder()


def check_fps(fps: float) -> float:
    """``fps``, if a clip can have it. Raises PlanError."""
    if not 1 <= fps <= MAX_FPS:
        raise PlanError(
            f"{fps:g} frames a second",
            expected=f"a number from 1 to {MAX_FPS}",
            fix=f"pass --fps {FPS}",
        )
    return fps


def save_clip(
    frames: Sequence[Image],
    path: Path,
    *,
    fps: float = FPS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write RGB ``frames`` of one even size as an MP4 (H.264); ``progress`` is told after each.

    Whatever happens, ``path`` is the old file or the new one. Raises BackendUnavailable where there
    is no ffmpeg, OutputNotWritable or DiskFull for a path that cannot be written, or a file that
    ffmpeg did not write.
    """
    encoder = _encoder()
    with replacing(path) as partial:
        found = 0
        try:
            # Closing it ends ffmpeg, before the partial file is renamed or goes away.
            with closing(
                encoder.write_frames(
                    str(partial),
                    frames[0].size,
                    fps=fps,
                    codec="libx264",
                    macro_block_size=2,
                    quality=None,
                    ffmpeg_log_level="error",
                    output_params=list(_QUALITY),
                )
            ) as writer:
                writer.send(None)
                for number, frame in enumerate(frames, start=1):
                    writer.send(frame.convert("RGB").tobytes())
                    progress(number / len(frames))
            # It does not say whether it could write the end of the file.
            found, _ = encoder.count_frames_and_secs(str(partial))
        except (OSError, RuntimeError) as error:
            raise _unwritten(path, excerpt(error)) from error
        if found != len(frames):
            raise _unwritten(path, f"{found} of {len(frames)} frames are in it")


def strip(frames: Sequence[Image], count: int = STRIP_FRAMES) -> Image:
    """At most ``count`` frames of a clip, evenly spread from first to last, side by side."""
    from PIL.Image import new

    count = min(count, len(frames))
    each = [
        frames[round(number * (len(frames) - 1) / max(count - 1, 1))] for number in range(count)
    ]
    width, height = each[0].size
    picture = new("RGB", (width * count, height))
    for number, frame in enumerate(each):
        picture.paste(frame, (width * number, 0))
    return picture


def _encoder() -> Any:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailable(
            f"no ffmpeg to write a clip with ({excerpt(error)})",
            expected="imageio-ffmpeg, which brings one and comes with the extra 'video'",
            fix="pip install 'fresco-trt[video]'",
        ) from error
    return imageio_ffmpeg


def _unwritten(path: Path, why: str) -> OutputNotWritable:
    return OutputNotWritable(
        f"{path} was not written by ffmpeg ({why})",
        expected="a clip of frames of one size, and a folder with room for it",
        fix="pass another --out",
    )
