"""What became of a clip: the right object on the right background, where it went, how it flickers.

The demo's classifier judges the middle frame. The object is whatever differs from the clip's most
common colour; its centre of mass is followed through the frames. Flicker is what the second
difference over time has more than that of a reference: an even motion has little of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fresco_trt.bench.quality import mean_interval, wilson_interval
from fresco_trt.bench.scenes.clips import DIRECTIONS, SPEEDS, clip_stream, videos_of
from fresco_trt.bench.scenes.judge import verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fresco_trt.bench.scenes.clips import Clip
    from fresco_trt.bench.scenes.judge import Judge

DIFFERENT = 0.2
"""Mean difference of the channels, of 2, from which a pixel counts as the object's."""

STILL = min(SPEEDS) / 2
"""Fraction of a side a frame below which an object stands still: halfway to the lower speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipVerdict:
    """Whether the middle frame shows the named object and the named colour, and whether the object
    goes where the caption says; ``flicker`` is in grey levels of 255, below 0 for a smoother clip
    than its reference.
    """

    object: bool
    colour: bool
    direction: bool
    flicker: float

    @property
    def right(self) -> bool:
        """Every claim of the caption holds."""
        return self.object and self.colour and self.direction


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """Shares of clips that are right, in all and in each claim, and their mean flicker (grey levels
    of 255), each with the ends of its 95% interval.
    """

    clips: int
    right: tuple[float, float, float]
    object: tuple[float, float, float]
    colour: tuple[float, float, float]
    direction: tuple[float, float, float]
    flicker: tuple[float, float, float]


def judged_clips(count: int, seed: int = 0) -> list[Clip]:
    """Clips to score a model by: every second one is of a pair that training never shows."""
    kinds = [clip_stream(seed, held_out=held_out) for held_out in (False, True)]
    return [next(kinds[index % 2]) for index in range(count)]


@torch.no_grad()
def clip_verdicts(
    judge: Judge, videos: Tensor, clips: Sequence[Clip], reference: Tensor | None = None
) -> list[ClipVerdict]:
    """Judge videos [B,3,F,side,side] in [-1,1] of the captions of ``clips``; layout is free.

    ``reference`` is the videos of the same shape whose flicker is nothing to complain of: those of
    the plain sampler, or by default the clips' own true ones. Raises ValueError for another shape.
    """
    if reference is None:
        reference = videos_of(clips, videos.shape[-1], videos.shape[2])
    if videos.shape[0] != len(clips) or videos.shape != reference.shape:
        raise ValueError(
            f"videos {tuple(videos.shape)} of {len(clips)} clips, and references of shape "
            f"{tuple(reference.shape)}; expected one video a clip and references of its shape"
        )
    middle = videos.shape[2] // 2
    seen = verdicts(judge, videos[:, :, middle], [clip.frame(middle) for clip in clips])
    more = second_difference(videos) - second_difference(reference)
    return [
        ClipVerdict(
            object=each.objects,
            colour=each.colour,
            direction=direction_of(video) == clip.direction,
            flicker=flicker,
        )
        for each, video, clip, flicker in zip(seen, videos, clips, more.tolist(), strict=True)
    ]


def clip_score(found: Sequence[ClipVerdict]) -> ClipScore:
    """The score of a set. Raises ValueError for an empty one."""
    if not found:
        raise ValueError("no clips to score")

    def share(right: Sequence[bool]) -> tuple[float, float, float]:
        return sum(right) / len(right), *wilson_interval(sum(right), len(right))

    return ClipScore(
        clips=len(found),
        right=share([each.right for each in found]),
        object=share([each.object for each in found]),
        colour=share([each.colour for each in found]),
        direction=share([each.direction for each in found]),
        flicker=mean_interval([each.flicker for each in found]),
    )


def second_difference(videos: Tensor) -> Tensor:
    """Mean absolute second difference over time, in grey levels of 255, of each of the videos
    [B,3,F,H,W] in [-1,1]; 0 for one whose pixels change evenly.
    """
    return 127.5 * videos.diff(n=2, dim=2).abs().mean((1, 2, 3, 4))


def direction_of(video: Tensor) -> str | None:
    """What of :data:`~fresco_trt.bench.scenes.clips.DIRECTIONS` the object of a video [3,F,H,W] in
    [-1,1] does; None for a slanting motion, or where nothing is seen in some frame.
    """
    places = track(video)
    if not bool(places.isfinite().all()):
        return None
    moment = torch.linspace(-1, 1, len(places), dtype=places.dtype)
    right, down = (moment @ places / moment.square().sum() * 2 / (len(places) - 1)).tolist()
    known = {step: name for name, step in DIRECTIONS.items()}
    return known.get((_step(right), _step(down)))


def _step(speed: float) -> int:
    """Forward, back or neither, of a side a frame."""
    return 0 if abs(speed) < STILL else (1 if speed > 0 else -1)


def track(video: Tensor) -> Tensor:
    """Centre of mass [F,2] of what differs from the most common colour of a video [3,F,H,W], as
    fractions of width and height; not a number where nothing does.
    """
    background = video.flatten(1).median(dim=1).values
    apart = (video - background[:, None, None, None]).abs().mean(0)
    mass = (apart > DIFFERENT).double()
    total = mass.sum((1, 2))
    centres = []
    for axis, side in ((2, mass.shape[2]), (1, mass.shape[1])):
        place = (torch.arange(side, dtype=mass.dtype) + 0.5) / side
        centres.append(mass.sum(3 - axis) @ place / total)
    return torch.stack(centres, dim=1)
