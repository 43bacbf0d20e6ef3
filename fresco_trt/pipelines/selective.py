"""Selective edits: the mask of a caller on its way in, and what became of an edit on its way out.

Around :mod:`fresco_trt.run.editing`, in pictures where that is in tokens. A mask is white where the
picture may change, as diffusers' are; one with transparent places says it with these, as OpenAI's.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco_trt.errors import IncompatibleOptions, PictureInvalid
from fresco_trt.files.picture_file import SourceWarning, opened_picture
from fresco_trt.plan.editing import SELECTIVE_PRESET

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from fresco_trt.files.picture_file import Source
    from fresco_trt.plan.grid import Grid
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.captured import StageEnd
    from fresco_trt.run.denoise import Denoiser
    from fresco_trt.run.sampler import Step

_HALF = 128  # of 255: from here on a pixel of a mask is white


class EditWarning(UserWarning):
    """An edit touches nothing, or more than a stage has room for; the message says what follows."""


# --- in ---------------------------------------------------------------------------------------


def check_mask(plan: StagePlan, given: object, option: str = "--mask") -> None:
    """Raise IncompatibleOptions for a mask, to read or to save, of engines that have none."""
    if given is not None and plan.edit is None:
        raise IncompatibleOptions(
            f"{option} with engines that draw every token anew",
            expected="engines that refine only what an edit touches",
            fix=f"leave {option} out, or build with --preset {SELECTIVE_PRESET}",
        )


def mask_picture(mask: Source, size: Size) -> Image:
    """A mask of ``size``, mode "L": 255 where the picture may change, 0 elsewhere.

    Warns (SourceWarning) where it is resized. Raises as :func:`read_mask`.
    """
    picture, notes = read_mask(mask, size)
    for note in notes:
        warnings.warn(note, SourceWarning, stacklevel=3)
    return picture


def read_mask(mask: Source, size: Size) -> tuple[Image, tuple[str, ...]]:
    """A mask as :func:`mask_picture` has it, and what was changed of it.

    Raises PictureInvalid for a file that is no picture and a mask that lets nothing change,
    InvalidArgument for another type.
    """
    from PIL.Image import Resampling

    with opened_picture(mask, "mask") as (picture, name):
        if picture.has_transparency_data:
            clear = picture.convert("RGBA").getchannel("A")
            white = clear.point([255 * (value < _HALF) for value in range(256)])
        else:
            white = picture.convert("L").point([255 * (value >= _HALF) for value in range(256)])
    notes: tuple[str, ...] = ()
    width, height = size[:2]
    if white.size != (width, height):
        notes = (f"{name} is {white.size[0]}x{white.size[1]}: resized to {width}x{height}",)
        white = white.resize((width, height), Resampling.NEAREST)
    if white.getextrema()[1] == 0:
        raise PictureInvalid(
            f"{name}, which is black everywhere",
            expected="white, or transparency, where the picture may change",
            fix="paint that white, or leave the mask out: what the edit touches is then found",
        )
    return white, notes


def mask_latents(mask: Image, scale: int) -> Tensor:
    """Latent pixels bool [1,1,H,W] of ``scale`` pixels a side that hold any white."""
    import numpy as np
    import torch

    white = np.asarray(mask) >= _HALF
    rows, columns = (side // scale for side in white.shape)
    touched = white.reshape(rows, scale, columns, scale).any(axis=(1, 3))
    return torch.from_numpy(touched)[None, None]


def example_masks(plan: StagePlan) -> list[Image | None]:
    """Masks of the built size that lead an edit into each stage behind its draft, the last one all
    white; a None alone for a plan that takes every stage in turn.
    """
    from PIL.Image import Resampling, fromarray

    from fresco_trt.run.editing import leading

    if plan.edit is None:
        return [None]
    shares = [fromarray(_share(tokens, plan.stages[0].grid)) for tokens in leading(plan)]
    return [share.resize(plan.size[:2], Resampling.NEAREST) for share in shares]


@contextmanager
def whole_edits_asked() -> Iterator[None]:
    """Within it nothing is said of edits that touch all of the picture: a mask asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditWarning)
        yield


# --- out --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Edited:
    """What became of an edit: latents [1,C,H,W] of the whole picture, None where it touches
    nothing, and its mask, mode "L" of the built size, white where it was edited.
    """

    latents: Tensor | None
    mask: Image


def edited(denoiser: Denoiser, last: Step | StageEnd, source: Tensor) -> Edited:
    """What became of an edit of ``source``, latents [1,C,H,W], at its last step.

    Warns (EditWarning) where it touches nothing, and where it touches more than a mixed stage has
    room for: then every token was drawn.
    """
    from PIL.Image import Resampling, fromarray

    from fresco_trt.run.editing import keep_source

    plan, touched = denoiser.plan, getattr(last, "edited", None)
    grid, edit = plan.stages[0].grid, plan.edit
    if edit is None:
        raise ValueError("a plan that draws every token; expected one with an edit")
    if touched is None:
        warnings.warn(
            "the edit touches nothing: this is the source. If it should, pass a mask or build with "
            f"a lower threshold, like {SELECTIVE_PRESET},threshold={edit.threshold / 2:g}",
            EditWarning,
            stacklevel=2,
        )
        share, latents = _share(None, grid), None
    else:
        share = _share(touched, grid)
        if last.stage == len(plan.stages) - 1:
            most = max(plan.refined) / grid.tokens
            warnings.warn(
                f"the edit touches {share.mean() / 255:.0%} of the picture, with the even set more "
                f"than the {most:.0%} that a mixed stage has room for: all of it was drawn anew",
                EditWarning,
                stacklevel=2,
            )
        latents = denoiser.latents(last)
        if edit.keep_source:
            source = source.to(latents.device)
            latents = keep_source(latents, source, touched, grid, edit.blend)
    mask = fromarray(share).resize(plan.size[:2], Resampling.NEAREST)
    return Edited(latents=latents, mask=mask)


def _share(edited: Tensor | None, grid: Grid) -> npt.NDArray[np.uint8]:
    """The tokens of the draft's grid as pixels uint8 [R,C], 255 where they are edited."""
    import numpy as np

    if edited is None:
        return np.zeros((grid.rows, grid.columns), np.uint8)
    places: npt.NDArray[np.bool_] = edited.cpu().reshape(grid.rows, grid.columns).numpy()
    return places.astype(np.uint8) * 255
