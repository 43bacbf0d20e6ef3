"""What a pipeline gives back: pictures, and where the time of their request went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.run.sampler import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One denoising step: its stage (from 1), noise level, action, and wall seconds."""

    stage: int
    sigma: float
    action: str
    seconds: float
    engine_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall-clock seconds of one request by part; `engines` is the share of `denoise` inside them.

    `total` also has what the caller's callbacks took; the other parts do not.
    """

    total: float
    text: float
    denoise: float
    engines: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Pictures of one request and where its time went.

    `steps` is empty where each stage was replayed in one launch: no step of it has a time.
    """

    images: list[Image]
    seed: int
    nfe: int
    seconds: Seconds
    steps: tuple[StepTime, ...] = field(repr=False)


def time_of_step(step: Step) -> StepTime:
    """A step as it is reported."""
    return StepTime(
        stage=step.stage + 1,
        sigma=step.sigma,
        action=step.action,
        seconds=step.engine_seconds + step.host_seconds,
        engine_seconds=step.engine_seconds,
    )
