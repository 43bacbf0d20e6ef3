"""The source picture of an edit: whether one is wanted, at the built size, and encoded.

In front of the pipelines. What has to be changed of a source is said in a :class:`SourceWarning`
and never done in silence; nothing is ever cropped.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.files.picture_file import Source as Source
from fresco_trt.files.picture_file import SourceWarning as SourceWarning
from fresco_trt.files.picture_file import read_source

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.bundle import Bundle
    from fresco_trt.models.family import Encoder
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size


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
