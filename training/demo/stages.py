"""What the demo's training does in which order, and how its minutes are shared out.

The codec learns pictures. The transformer and its text encoders then learn its latents by flow
matching, at 64 pixels, on up to 128 and on up to 256; then the guidance scale as an input, as
FLUX.1-dev has it, from the data itself (:mod:`training.objective`). Last, low-rank factors on the
transformer learn four steps that do the work of sixteen (:mod:`training.distil`).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from training.curriculum import COARSE, FINE, MIDDLE
from training.curriculum import Shape as Shape

CODEC, TURBO = "codec", "turbo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the training: its share of the minutes, the shares of coarse, middle and fine
    batches among its steps, and that of steps which learn guided velocities.

    Small sizes keep a share to the end: sketches are drawn there, and a model that no longer sees
    them forgets them.
    """

    name: str
    share: float
    sizes: tuple[float, float, float] = (0, 0, 0)
    guided: float = 0.0

    def shape(self, rng: random.Random) -> Shape:
        """The size of one step's pictures."""
        (group,) = rng.choices((COARSE, MIDDLE, FINE), self.sizes)
        (shape,) = rng.choices(group, [each.weight for each in group])
        return shape


STAGES: tuple[Stage, ...] = (
    Stage(name=CODEC, share=0.1),
    Stage(name="64px", share=0.28, sizes=(1, 0, 0)),
    Stage(name="128px", share=0.2, sizes=(0.35, 0.65, 0)),
    Stage(name="256px", share=0.2, sizes=(0.25, 0.2, 0.55), guided=0.2),
    Stage(name="guidance", share=0.12, sizes=(0.3, 0.2, 0.5), guided=0.7),
    Stage(name=TURBO, share=0.1, sizes=(0.3, 0.2, 0.5)),
)

FLOW: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage.name not in (CODEC, TURBO))
"""Stages of the one transformer, which share its optimisers and one schedule of the rate."""

DECAY, FLOOR = 0.4, 0.05
"""The rate stays what it is, and falls to a floor over the last part of what there is."""


def side_of(stage: Stage) -> int:
    """The largest side of the stage's pictures; those of the codec do not count."""
    groups = zip((COARSE, MIDDLE, FINE), stage.sizes, strict=True)
    return max((shape.width for group, share in groups if share for shape in group), default=0)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What of a run's minutes is used: seconds and steps of each stage, and how many batches of
    each size ("64x64") the transformer was shown.
    """

    minutes: float
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)

    def budget(self, stage: Stage) -> float:
        """Seconds that a stage has in all."""
        return 60 * self.minutes * stage.share

    def is_due(self, stage: Stage) -> bool:
        """Whether a stage has time left; each gets one step at least."""
        return not self.steps[stage.name] or self.seconds[stage.name] < self.budget(stage)

    def progress(self, *stages: Stage) -> float:
        """Share of the stages' time that is used, in [0, 1]."""
        used = sum(min(self.seconds[each.name], self.budget(each)) for each in stages)
        return min(1.0, used / sum(map(self.budget, stages)))

    def left(self) -> float:
        """Seconds that all stages have left."""
        return sum(max(0.0, self.budget(each) - self.seconds[each.name]) for each in STAGES)

    def used(self) -> float:
        """Seconds that all stages have used."""
        return sum(self.seconds.values())

    def count(self, stage: Stage, seconds: float) -> None:
        """One step more."""
        self.steps[stage.name] += 1
        self.seconds[stage.name] += seconds

    def forget(self, stage: Stage) -> None:
        """Let a stage begin anew."""
        for counts in (self.steps, self.seconds):
            counts.pop(stage.name, None)


def rate_factor(progress: float, step: int, warm: int = 100) -> float:
    """The learning rate's factor: warm, then constant, then down to the floor in a line."""
    falling = min(1.0, (1 - progress) / DECAY)
    return max(FLOOR, falling) * min(1.0, (step + 1) / warm)
