"""Pictures of a folder, cut and reduced to the one size that a measurement is made at.

Left of :mod:`fresco_trt.lower.calibrate.spectrum`. Nothing is ever enlarged: an enlarged picture
has no detail of its own at the frequencies that decide where a stage may end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.errors import CalibrationError
from fresco_trt.plan.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from fresco_trt.plan.sizes import Size

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken for pictures, whatever the case of their letters."""

_FIX = "repair it, or take it out of the folder"


def find_pictures(folder: Path, size: Size) -> tuple[Path, ...]:
    """The pictures right in ``folder``, by name; other files and folders are left alone.

    Raises CalibrationError when there are fewer than two, one cannot be opened, or one is narrower
    or lower than ``size``. Reads no more of them than their headers.
    """
    if not folder.is_dir():
        raise _no_pictures(f"--pictures {folder}, which is no folder")
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found = tuple(sorted(path for path in files if path.is_file()))
    if len(found) < 2:
        raise _no_pictures(f"{len(found)} pictures in {folder}")
    sizes = {path: _size_of(path) for path in found}
    small = [path for path in found if sizes[path][0] < size[0] or sizes[path][1] < size[1]]
    if small:
        raise CalibrationError(
            f"{small[0]} of {format_size(sizes[small[0]])}, and {len(small) - 1} more too small",
            expected=f"every picture at least {format_size(size)}: none is enlarged",
            fix="take the small ones out of the folder",
        )
    return found


def read_picture(path: Path, size: Size) -> npt.NDArray[np.uint8]:
    """The middle of a picture at the proportions of ``size``, reduced to it: uint8 sRGB [H,W,3].

    Raises CalibrationError for a file that cannot be decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), size[:2], Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return np.asarray(fitted)


def _size_of(path: Path) -> Size:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _no_pictures(given: str) -> CalibrationError:
    return CalibrationError(
        given,
        expected=f"a folder of two or more pictures ({', '.join(SUFFIXES)}), some hundreds at best",
        fix="pass --pictures with such a folder",
    )


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    said = " ".join(str(error).split())[:200]
    return CalibrationError(f"{path}: {said}", expected="a picture that can be read", fix=_FIX)
