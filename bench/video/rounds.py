"""The measurement: every clip drawn by every point in turn, and kept as soon as it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bench import turns
from fresco_trt.bench.scenes.clip_judge import clip_verdicts, judged_clips
from fresco_trt.bench.scenes.pictures import scaled
from fresco_trt.lower.similarity import ssim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bench.video.engines import Engines, Frames
    from fresco_trt.bench.instrument import Draw, Drawn, LeftOut
    from fresco_trt.bench.results_log import ResultsLog
    from fresco_trt.bench.scenes.clips import Clip
    from fresco_trt.bench.scenes.judge import Judge

Scores = dict[str, Any]
"""Of one clip by one point: right, object, colour, direction, flicker and ssim to the plain one,
seconds, engine_seconds and flops; None for what it does not have."""


def warmed_up(draws: Mapping[str, Draw], engines: Engines) -> tuple[dict[str, Draw], list[LeftOut]]:
    """Draw a clip that no round has with each point; those that cannot are left out."""
    (clip,) = judged_clips(1, seed=turns.WARM_UP_SEED)
    return turns.warmed_up(draws, engines.prepared(clip))


def measure(
    clips: Sequence[Clip],
    draws: Mapping[str, Draw],
    engines: Engines,
    judge: Judge,
    log: ResultsLog,
    reference: str,
) -> list[dict[str, Scores]]:
    """The scores of every clip by the name of its point, with the clip's number as its seed;
    ``reference`` names the point that closeness and flicker are to.
    """

    def line(clip: Clip, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
        frames = {name: engines.frames(each.latents) for name, each in drawn.items()}
        seen = judged(judge, clip, frames, frames[reference])
        scores = {name: {**seen[name], **_costs(each)} for name, each in drawn.items()}
        return {"caption": clip.caption, "scores": scores}

    lines = turns.take_turns("clip", clips, draws, engines.prepared, line, log)
    return [each["scores"] for each in lines]


def judged(
    judge: Judge, clip: Clip, frames: Mapping[str, Frames], reference: Frames
) -> dict[str, Scores]:
    """What is seen in several drawings uint8 [F,H,W,3] of a clip, beside one of them, or the true
    clip: flicker and SSIM over all frames are to that.
    """
    against = scaled(reference)
    pictures = {name: scaled(each) for name, each in frames.items()}
    videos = torch.stack([_video(each) for each in pictures.values()])
    found = clip_verdicts(judge, videos, [clip] * len(videos), _video(against).expand_as(videos))
    return {
        name: {
            "right": verdict.right,
            "object": verdict.object,
            "colour": verdict.colour,
            "direction": verdict.direction,
            "flicker": verdict.flicker,
            "ssim": ssim(each, against).mean().item(),
        }
        for (name, each), verdict in zip(pictures.items(), found, strict=True)
    }


def _video(pictures: Tensor) -> Tensor:
    """Frames [F,3,H,W] as a video [3,F,H,W]."""
    return pictures.transpose(0, 1)


def _costs(drawn: Drawn) -> Scores:
    return {
        "seconds": drawn.seconds,
        "engine_seconds": drawn.engine_seconds,
        "flops": drawn.flops,
    }
