"""What the bench measures with: something that draws by every method and judges what it drew.

A model with its trained weights (:mod:`fresco_trt.bench.model_runner`), or what a study puts in its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from fresco_trt.bench.methods import Point

    Pixels = npt.NDArray[np.uint8]

Draw: TypeAlias = "Callable[[Mapping[str, Tensor], int], Drawn]"
"""Draws one picture: (what the prompt was encoded to, seed)."""

Scores: TypeAlias = "dict[str, Any]"
"""What is kept of one picture, as JSON values: seconds, engine_seconds, decode_seconds, flops,
right, psnr, ssim and features, None for what an instrument or a method does not have; and of a
quantised point "twin_ssim", to the picture of the same one unquantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One picture to draw: its number in the run (-1 for the one that warms up), caption, seed."""

    number: int
    caption: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Normalised latents [1,C,h,w] and what they cost: wall seconds of denoising, those of them
    inside engines (None where there are none), and FLOPs.
    """

    latents: Tensor
    seconds: float
    engine_seconds: float | None
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A point, or an output, that there is no row for, and why."""

    what: str
    reason: str


class Instrument(Protocol):
    """See the module. ``facts`` are figures of the instrument itself for the stored document;
    ``timed`` says whether its seconds say anything about a transformer's.
    """

    timed: bool

    @property
    def cases(self) -> Sequence[Case]: ...

    @property
    def warm_up(self) -> Case: ...

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        """What draws, by the point's name; ``scope`` holds what they need."""
        ...

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        """The inputs that a case's caption stands for."""
        ...

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Scores], dict[str, Pixels]]:
        """Scores and pictures uint8 [H,W,3] of what was drawn, by name."""
        ...

    def real_features(self) -> Tensor | None:
        """Features [N,D] of true pictures, for the distance; None where nothing judges."""
        ...

    def facts(self) -> dict[str, Any]:
        """What this instrument is, for the document."""
        ...


def said(error: Exception) -> str:
    """An error as one line of bounded length, with its kind where it is none of ours."""
    kind = "" if isinstance(error, FrescoError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}"[:400]
