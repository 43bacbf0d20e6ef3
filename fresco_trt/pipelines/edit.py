"""The source picture of an edit: read whatever form it has, brought to the built size, encoded.

In front of the pipelines. What has to be changed of a source is said in a :class:`SourceWarning`
and never done in silence; nothing is ever cropped.
"""

from __future__ import annotations

import io
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from fresco_trt.errors import FrescoError, IncompatibleOptions, InvalidArgument, PictureInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.bundle import Bundle
    from fresco_trt.models.family import Encoder
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

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


def check_source(facts: ModelFacts, image: Source | None) -> None:
    """Raise IncompatibleOptions where a model that edits has no source, or another has one."""
    if facts.references and image is None:
        raise IncompatibleOptions(
            f"no source picture for {facts.name}",
            expected="the picture to edit: the engines were built with its tokens beside the new",
            fix="pass --image picture.png, on the command line to 'fresco-trt edit'",
        )
    if image is not None and not facts.references:
        raise IncompatibleOptions(
            f"--image for {facts.name}",
            expected="a model that edits pictures, such as flux-kontext",
            fix="leave --image out, or build engines of such a model",
        )


def source_picture(image: Source, size: Size) -> Image:
    """A source as RGB of ``size`` (width, height), upright; a new picture.

    Warns (SourceWarning) of what :func:`read_source` notes, and raises what that raises.
    """
    picture, notes = read_source(image, size)
    for note in notes:
        warnings.warn(note, SourceWarning, stacklevel=3)
    return picture


def read_source(image: Source, size: Size) -> tuple[Image, tuple[str, ...]]:
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


def source_latents(encoder: Encoder, picture: Image) -> Tensor:
    """Normalised latents float32 [1,C,h,w] of an RGB picture of the built size."""
    import numpy as np

    return encoder(np.array(picture)[None])  # a copy: torch wants memory that it may write to


def example_source(bundle: Bundle) -> Image | None:
    """A picture to try engines of a model that edits with, the same every time: colours that change
    slowly and the edges of a square. None for a model that does not edit.
    """
    import numpy as np
    from PIL import Image

    from fresco_trt.models.registry import model_facts

    if not model_facts(bundle.manifest.model.name).references:
        return None
    width, height = bundle.plan.size[:2]
    pixels = np.full((height, width, 3), 128.0)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (220, 40, 40)
    return Image.fromarray(pixels.round().astype(np.uint8))


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
