"""What a pipeline gives back: pictures, and where the time of their request went."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from fresco_trt.run.sampler import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One denoising step: its stage (from 1), noise level, action, wall seconds, and the run of the
    engines that it was in (from 1).
    """

    stage: int
    sigma: float
    action: str
    seconds: float
    engine_seconds: float
    run: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall-clock seconds of one request by part; `engines` is the share of `denoise` inside them.

    Of several pictures, of all of them together. `total` also has what the caller's callbacks took;
    the other parts do not.
    """

    total: float
    text: float
    denoise: float
    engines: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Pictures or clips of one request, the seed of each, and where its time went.

    `images` has all pictures of the first prompt, then those of the next. `nfe` is how often the
    network was asked for each picture. `runs` says how they were drawn: the pictures of each run of
    the engines, `(4, 2)` for six by engines of a batch of four, `(1, 1)` for two one after another.
    `steps` are those of all runs in order, empty where each stage was replayed in one launch: no
    step of it has a time. `masks`, of engines that refine only what an edit touches, say what that
    was: one a picture, mode "L", white where it was edited. Engines that draw clips give `frames`
    and no `images`: of each clip all frames, in order.
    """

    images: list[Image]
    seeds: tuple[int, ...]
    nfe: int
    seconds: Seconds
    steps: tuple[StepTime, ...] = field(repr=False)
    runs: tuple[int, ...] = (1,)
    masks: list[Image] = field(default_factory=list)
    frames: list[list[Image]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """That of the first picture."""
        return self.seeds[0]


def time_of_step(step: Step, run: int = 1) -> StepTime:
    """A step as it is reported."""
    return StepTime(
        stage=step.stage + 1,
        sigma=step.sigma,
        action=step.action,
        seconds=step.engine_seconds + step.host_seconds,
        engine_seconds=step.engine_seconds,
        run=run,
    )


class Clock:
    """Wall time in laps."""

    def __init__(self) -> None:
        self._began = self._last = perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, perf_counter()
        return self._last - before

    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._began
