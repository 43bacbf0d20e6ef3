"""Picture sizes: reading them, and which ones a model's grids can hold.

A size is (width, height) in picture pixels, and (width, height, frames) of a clip. Engines have
static shapes, so a size that does not fit is refused with the nearest ones that do; no picture is
ever padded or cropped behind one's back. What a model with margins draws coarsely may stand out by
part of a token, of which nothing is seen: 1280x720 pixels are 45 rows of tokens, and half of them
23.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from fresco_trt.errors import UnsupportedSize
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid, halved
from fresco_trt.plan.grid import Size as Size

_SIZE = re.compile(r"([0-9]{1,9})[xX\u00d7]([0-9]{1,9})(?:[xX\u00d7]([0-9]{1,9}))?")


def parse_size(text: str) -> Size:
    """``"512x384"`` as (512, 384): width first; ``"512x384x33"`` has 33 frames. Raises
    UnsupportedSize for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise UnsupportedSize(
            f"size {shown!r}",
            expected="WIDTHxHEIGHT in whole pixels, or WIDTHxHEIGHTxFRAMES",
            fix="write it like --size 512x384",
        )
    return with_frames((int(found[1]), int(found[2])), int(found[3] or 1))


def frames_of(size: Size) -> int:
    """Frames of a clip; 1 for a picture."""
    return size[2] if len(size) == 3 else 1


def with_frames(side: tuple[int, int], frames: int) -> Size:
    """The size of so many ``frames`` of (width, height); one frame is a picture."""
    return side if frames == 1 else (*side, frames)


def as_size(size: Size | str) -> Size:
    """(512, 384), or ``"512x384"`` for it. Raises UnsupportedSize for another text."""
    return parse_size(size) if isinstance(size, str) else size


def parse_sizes(texts: Iterable[str]) -> tuple[Size, ...]:
    """Several sizes, each once, largest first (then widest first).

    Largest first is the order to build in: the later, smaller engines then reuse its memory.
    Raises UnsupportedSize.
    """
    sizes = {parse_size(text) for text in texts}
    return tuple(sorted(sizes, key=lambda size: (math.prod(size), size[0]), reverse=True))


def format_size(size: Size) -> str:
    """Inverse of :func:`parse_size`."""
    return "x".join(map(str, size))


def size_multiple(facts: ModelFacts, grids: int, *, exact: bool = False) -> int:
    """What each side must be divisible by, so that the coarsest of so many ``grids`` is whole.

    Of a model with margins the finest one must be, unless each is to be ``exact``: twice the last.
    """
    halvings = 0 if facts.margins and not exact else grids - 1
    return facts.vae_scale * facts.patch * (1 << halvings)


def check_size(facts: ModelFacts, size: Size, grids: int, *, exact: bool = False) -> None:
    """Raises UnsupportedSize, naming the nearest sizes that work, unless ``size`` fits; ``exact``
    as of :func:`size_multiple`.

    Raises TypeError when a side is no int: 256.0 would make grids of float sizes.
    """
    if any(type(number) is not int for number in size):
        raise TypeError(f"a size is two ints, or three of a clip, not {size!r}")
    width, height, frames = *size[:2], frames_of(size)
    _check_frames(facts, size, frames)
    multiple = size_multiple(facts, grids, exact=exact)
    if min(width, height) < multiple or width % multiple or height % multiple:
        halvings = multiple // (facts.vae_scale * facts.patch)
        expected = (
            f"each side a positive multiple of {multiple} "
            f"(VAE {facts.vae_scale} x patch {facts.patch} x {halvings} for the "
            f"{'finest' if facts.margins and not exact else 'coarsest'} of {_count(grids)})"
        )
    elif width * height > facts.max_pixels:
        expected = f"at most {facts.max_pixels} pixels in all"
    else:
        return
    fitting = [
        with_frames(each, frames)
        for each in nearest_sizes((width, height), multiple, facts.max_pixels)
    ]
    raise UnsupportedSize(
        f"size {format_size(size)} for {facts.name}",
        expected=expected,
        fix=f"pass --size {' or --size '.join(format_size(each) for each in fitting)}",
    )


def _check_frames(facts: ModelFacts, size: Size, frames: int) -> None:
    step = facts.temporal_scale
    if 1 <= frames <= facts.max_frames and (frames - 1) % step == 0:
        return
    if facts.max_frames == 1:
        expected, fix = "one frame: this model draws pictures", format_size(size[:2])
    else:
        below = min(max((frames - 1) // step * step + 1, 1), facts.max_frames)
        above = min(below + step, facts.max_frames) if frames > below else below
        expected = f"1 + a multiple of {step} frames, at most {facts.max_frames}"
        nearest = (format_size(with_frames(size[:2], each)) for each in (below, above))
        fix = " or --size ".join(dict.fromkeys(nearest))
    raise UnsupportedSize(
        f"{frames} frames for {facts.name}", expected=expected, fix=f"pass --size {fix}"
    )


def nearest_sizes(
    size: tuple[int, int], multiple: int, max_pixels: int
) -> tuple[tuple[int, int], ...]:
    """The sizes that work just below and just above ``size``, each side on its own.

    Where even the lower one has too many pixels: the largest that does not, at about the same
    proportions. ``max_pixels`` must hold at least one square of ``multiple``.
    """
    below = _snap(size, multiple, up=False)
    above = _snap(size, multiple, up=True)
    fitting = [each for each in (below, above) if each[0] * each[1] <= max_pixels]
    return tuple(dict.fromkeys(fitting)) or (_shrink(below, multiple, max_pixels),)


def stage_grids(
    facts: ModelFacts, size: Size, grids: int, *, exact: bool = False
) -> tuple[Grid, ...]:
    """So many ``grids``, coarsest first, each half the side of the next: one a stage where none is
    mixed. Raises UnsupportedSize when ``size`` does not fit; ``exact`` as of :func:`size_multiple`.
    """
    check_size(facts, size, grids, exact=exact)
    found = [
        Grid(
            height=size[1] // facts.vae_scale,
            width=size[0] // facts.vae_scale,
            scale=1.0,
            patch=facts.patch,
            frames=1 + (frames_of(size) - 1) // facts.temporal_scale,
        )
    ]
    while len(found) < grids:
        found.append(halved(found[-1]))
    return tuple(reversed(found))


def _snap(size: tuple[int, int], multiple: int, *, up: bool) -> tuple[int, int]:
    extra = multiple - 1 if up else 0
    width, height = (max((side + extra) // multiple, 1) * multiple for side in size)
    return width, height


def _shrink(size: tuple[int, int], multiple: int, max_pixels: int) -> tuple[int, int]:
    """Scale both sides alike; a side too thin for that stays one multiple and the other gives."""
    factor = math.sqrt(max_pixels / (size[0] * size[1]))
    width, height = _snap((int(size[0] * factor), int(size[1] * factor)), multiple, up=False)
    longest = max_pixels // multiple // multiple * multiple
    return min(width, longest), min(height, longest)


def _count(grids: int) -> str:
    return "1 grid" if grids == 1 else f"{grids} grids"
