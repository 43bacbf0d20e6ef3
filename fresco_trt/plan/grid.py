"""Token grids: how many latent pixels and tokens a stage has, and which grid is finer.

Second step of the data path, between the schedule and the stages. A grid counts *latent* pixels and
latent frames, of which a picture has one; a token covers ``patch`` x ``patch`` pixels of one frame.
Tokens are numbered in raster order: frame by frame, row by row. Only height and width are halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import REMAKE, number, record, whole

Size: TypeAlias = tuple[int, int] | tuple[int, int, int]
"""(width, height) in picture pixels, and the frames of a clip behind them."""

_KEYS = ("height", "width", "scale", "patch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """One resolution of the latent.

    ``height`` and ``width`` are this grid's own latent pixels, ``scale`` its side relative to the
    full resolution (1.0, 0.5, 0.25, ...), ``patch`` the latent pixels along a token's side,
    ``frames`` the latent frames (1 for a picture). Raises InvalidPlan unless the sides are positive
    multiples of the patch, the frames positive and the scale is 2**-k.
    """

    height: int
    width: int
    scale: float
    patch: int = 2
    frames: int = 1

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.patch, self.frames) < 1:
            raise _invalid(f"a grid of {self} patch {self.patch}", "positive sides and frames")
        if self.height % self.patch or self.width % self.patch:
            raise _invalid(f"a grid of {self}", f"sides divisible by the patch, {self.patch}")
        if not is_dyadic(self.scale):
            raise _invalid(f"a grid at scale {self.scale}", "1, 1/2, 1/4 or a further halving")

    @property
    def rows(self) -> int:
        """Token rows."""
        return self.height // self.patch

    @property
    def columns(self) -> int:
        """Token columns."""
        return self.width // self.patch

    @property
    def tokens(self) -> int:
        """Image tokens: frames times rows times columns."""
        return self.frames * self.rows * self.columns

    def __str__(self) -> str:
        clip = "" if self.frames == 1 else f", {self.frames} latent frames"
        return f"{self.height}x{self.width} latent pixels{clip}"

    def to_json(self) -> dict[str, object]:
        """``{height, width, scale, patch}``, and ``frames`` of a clip."""
        keys = _KEYS if self.frames == 1 else (*_KEYS, "frames")
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def from_json(cls, value: object) -> Grid:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        has_frames = isinstance(value, Mapping) and "frames" in value
        found = record(value, (*_KEYS, "frames") if has_frames else _KEYS, "grid")
        return cls(
            height=whole(found["height"], "grid height"),
            width=whole(found["width"], "grid width"),
            scale=number(found["scale"], "grid scale"),
            patch=whole(found["patch"], "grid patch"),
            frames=whole(found["frames"], "grid frames") if has_frames else 1,
        )


def is_dyadic(scale: float) -> bool:
    """Whether ``scale`` is 1, 1/2, 1/4, ...: one over a power of two."""
    if not 0.0 < scale <= 1.0:
        return False
    inverse = 1.0 / scale
    return inverse.is_integer() and int(inverse).bit_count() == 1


def halved(grid: Grid) -> Grid:
    """The grid of half the side: of an odd number of token rows or columns it has one half more,
    and stands out over ``grid`` by the other half of its last ones.
    """
    return Grid(
        height=-(-grid.rows // 2) * grid.patch,
        width=-(-grid.columns // 2) * grid.patch,
        scale=grid.scale / 2,
        patch=grid.patch,
        frames=grid.frames,
    )


def is_finer(coarse: Grid, fine: Grid) -> bool:
    """Whether ``fine`` covers the same picture at the same or a higher resolution.

    Patch and frames then are the same, and ``coarse`` is :func:`halved` from it, once a doubling of
    the scale: both sides grow by one ratio, unless ``coarse`` stands out.
    """
    while fine.scale > coarse.scale:
        fine = halved(fine)
    return fine == coarse


def is_doubling(coarse: Grid, fine: Grid) -> bool:
    """Whether ``fine`` is exactly twice ``coarse`` along each side, in pixels, tokens and scale."""
    twice = fine.height == 2 * coarse.height and fine.width == 2 * coarse.width
    return twice and fine.scale == 2 * coarse.scale and is_finer(coarse, fine)


VELOCITY_RATIO = 4
"""How many times coarser along each side the grid is that a coarse velocity is asked on."""


def velocity_grid_of(grid: Grid) -> Grid:
    """The grid of coarse velocities of ``grid``: a quarter of each side, a sixteenth of the tokens.

    Raises InvalidPlan for a grid whose sides have no such quarter.
    """
    if grid.height % (VELOCITY_RATIO * grid.patch) or grid.width % (VELOCITY_RATIO * grid.patch):
        raise _invalid(
            f"a coarse velocity on a grid of {grid}",
            f"sides divisible by {VELOCITY_RATIO * grid.patch}, or another cache",
        )
    return Grid(
        height=grid.height // VELOCITY_RATIO,
        width=grid.width // VELOCITY_RATIO,
        scale=grid.scale / VELOCITY_RATIO,
        patch=grid.patch,
        frames=grid.frames,
    )


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
