"""Pictures that somebody gave, read whatever form they have and brought to one size.

In front of the pipelines and of calibrations. What had to be changed of a picture is told to the
caller, who says it and never keeps it silent; nothing is ever cropped.
"""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from fresco_trt.errors import FrescoError, InvalidArgument, PictureInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

Source: TypeAlias = "Image | str | os.PathLike[str] | BinaryIO"
"""A picture of PIL, the path of a file that holds one, or such a file, open in binary mode."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
"""What is read of files. Pillow knows more, and runs other programs for some of them."""

MAX_SOURCE_PIXELS = 2**26
"""Pixels of the largest source that is read, 8192x8192: asked of the header, before any is."""

_WHITE = (255, 255, 255, 255)
_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class SourceWarning(UserWarning):
    """A source picture was changed before it was edited; the message says how."""


def read_source(image: Source, size: tuple[int, ...]) -> tuple[Image, tuple[str, ...]]:
    """A source as RGB of ``size`` (width, height), upright, and what was changed of it.

    Lanczos, as diffusers resizes. Notes another size, transparency, which becomes white, and frames
    after the first. Raises PictureInvalid for a file that is no picture, is cut short or has over
    :data:`MAX_SOURCE_PIXELS`, InvalidArgument for another type. Touches no state that threads
    share, the filters of warnings among it.
    """
    from PIL.Image import Resampling
    from PIL.ImageOps import exif_transpose

    notes = []
    with opened_picture(image, "source picture") as (source, name):
        if getattr(source, "is_animated", False):  # counting its frames may take minutes
            notes.append(f"{name} has several frames: the first one is edited")
        rgb, is_clear = _rgb(exif_transpose(source), name)
        if is_clear:
            notes.append(f"{name} is transparent: what lies behind it is white")
    width, height = size[:2]
    if rgb.size != (width, height):
        given = rgb.size[0] / rgb.size[1]
        aspect = "" if abs(given * height / width - 1) < 0.01 else ", which changes its aspect"
        notes.append(f"{name} is {rgb.size[0]}x{rgb.size[1]}: resized to {width}x{height}{aspect}")
        rgb = rgb.resize((width, height), Resampling.LANCZOS)
    return rgb, tuple(notes)


@contextmanager
def opened_picture(image: Source, what: str) -> Iterator[tuple[Any, str]]:
    """A picture whose pixels were read, and what it is called in messages: by its path, or ``what``
    it is. Raises as :func:`read_source`.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, Image.Image):
        _check_pixels(image, f"the {what}")
        yield image, f"the {what}"
        return
    name = _name(image, what)
    try:
        with Image.open(image, formats=FORMATS) as opened:
            _check_pixels(opened, name)
            opened.load()
            yield opened, name
    except FrescoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise _invalid(f"{name}: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise _invalid(f"{name}, which holds no picture") from error
    except Exception as error:  # of whatever kind: decoders are many, and say it in their own ways
        raise _invalid(f"{name}, which holds no picture that can be read ({error})") from error


def _name(image: Source, what: str) -> str:
    """What a file is called in messages. Raises InvalidArgument for what is none."""
    if isinstance(image, io.BufferedIOBase | io.RawIOBase):
        return f"the {what}"
    if not isinstance(image, str | os.PathLike) or isinstance(os.fspath(image), bytes):
        raise InvalidArgument(
            f"a {what} of type {type(image).__name__}",
            expected="a picture of PIL, the path of one, or its file in binary mode",
            fix='pass one like "picture.png"',
        )
    return str(Path(image))


def _check_pixels(picture: Any, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_SOURCE_PIXELS:
        raise _too_large(name, f" of {width}x{height}")
    if not width * height:
        raise _invalid(f"{name} of {width}x{height}")


def _rgb(picture: Any, name: str) -> tuple[Image, bool]:
    """Eight bits of red, green and blue, transparency over white; whether there was any."""
    import numpy as np
    from PIL import Image

    if picture.mode in _16_BITS:
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise _invalid(f"{name} with values from {values.min()} to {values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB"), False
    if picture.mode == "F":
        raise _invalid(f"{name} of floating-point values, whose range nobody says")
    if not picture.has_transparency_data:
        converted: Image.Image = picture.convert("RGB")
        return (converted.copy() if converted is picture else converted), False
    layered = picture.convert("RGBA")
    over = Image.alpha_composite(Image.new("RGBA", layered.size, _WHITE), layered)
    return over.convert("RGB"), layered.getextrema()[3][0] < 255


def _too_large(name: str, size: str) -> PictureInvalid:
    return PictureInvalid(
        f"{name}{size}",
        expected=f"at most {MAX_SOURCE_PIXELS} pixels, such as 8192x8192",
        fix="make it smaller: a source is resized to the built size anyway",
    )


def _invalid(given: str) -> PictureInvalid:
    return PictureInvalid(
        given,
        expected="a PNG, JPEG, WebP, TIFF, GIF or BMP picture of 8 or 16 bits",
        fix="open it in a picture editor and save it as PNG",
    )
