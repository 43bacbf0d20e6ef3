"""What a tune is asked for. Light to import: no engine, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fresco_trt.errors import IncompatibleOptions, OutputNotWritable, PlanError
from fresco_trt.plan.sizes import format_size

if TYPE_CHECKING:
    from fresco_trt.plan.sizes import Size

Metric = Literal["ssim", "perceptual", "score"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""What is known of a picture beside the many-step picture of its prompt and seed, all of them
better where they are higher: SSIM; 1 less the distance of a network's features; and what the
user's scorer gives."""

OUT = Path("plan.json")

Scorer = str | Callable[..., Any]
"""``module:function``, or from Python the function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that a metric may be, on average over the pictures."""

    metric: Metric
    least: float

    def __str__(self) -> str:
        return f"{self.metric}={self.least:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; None is what the program does unless asked otherwise.

    Either ``speed``, how many times less time than the plain pipeline, of which the closest plan is
    looked for; or ``floor``, of which the fastest plan is. ``prompts`` is a text file, or for a
    model that edits a folder of sources with theirs. Raises PlanError leaves and OutputNotWritable.
    """

    model: str
    weights: str | None = None
    speed: float | None = None
    floor: Floor | None = None
    prompts: Path | None = None
    scorer: Scorer | None = None
    size: Size | None = None
    backend: str | None = None
    quick: bool = False
    out: Path = OUT

    def __post_init__(self) -> None:
        if (self.speed is None) == (self.floor is None):
            raise IncompatibleOptions(
                "neither --speed nor --floor" if self.speed is None else "--speed and --floor",
                expected="one target: how much faster, or how close",
                fix="pass --speed 10 for the closest plan of that speed, or --floor ssim=0.9 for "
                "the fastest one that close",
            )
        if self.speed is not None and not (isfinite(self.speed) and 1.0 < self.speed <= 1000.0):
            raise PlanError(
                f"--speed {self.speed:g}",
                expected="times faster than the plain pipeline, above 1 and up to 1000",
                fix="pass --speed 10",
            )
        if self.floor is not None and self.floor.metric == "score" and self.scorer is None:
            raise IncompatibleOptions(
                f"--floor {self.floor} without a scorer",
                expected="something that gives scores",
                fix="pass --scorer module:function, or --floor ssim=0.9",
            )
        if self.out.suffix.lower() != ".json":
            raise OutputNotWritable(
                f"--out {self.out}",
                expected="a name that ends in .json",
                fix="pass --out plan.json",
            )

    @property
    def state(self) -> Path:
        """The folder of all that a run keeps: its measurements, engines, table and report."""
        return self.out.with_name(f"{self.out.stem}.tune")

    @property
    def line(self) -> str:
        """The command that asks for this."""
        scorer = self.scorer if self.scorer is None else name_of(self.scorer)
        given: Mapping[str, object] = {
            "--model": self.model,
            "--weights": self.weights,
            "--speed": None if self.speed is None else f"{self.speed:g}",
            "--floor": self.floor,
            "--prompts": self.prompts,
            "--scorer": scorer,
            "--size": None if self.size is None else format_size(self.size),
            "--backend": self.backend,
            "--out": self.out,
        }
        parts = [f"{name} {value}" for name, value in given.items() if value is not None]
        return " ".join(["fresco-trt tune", *parts, *(["--quick"] if self.quick else [])])

    @property
    def target(self) -> str:
        """What was asked for, in words."""
        return f"speed {self.speed:g}" if self.floor is None else f"{self.floor}"


def name_of(scorer: Scorer) -> str:
    """What a scorer is called, as ``module:function`` where it has such a name."""
    if isinstance(scorer, str):
        return scorer
    name = getattr(scorer, "__qualname__", type(scorer).__qualname__)
    return f"{getattr(scorer, '__module__', '')}:{name}"


def parse_floor(text: str) -> Floor:
    """``ssim=0.9`` as a floor. Raises PlanError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    try:
        least = float(value)
    except ValueError:
        least = float("nan")
    for metric in METRICS:
        if metric == name and equals and isfinite(least):
            check_floor(metric, least)
            return Floor(metric=metric, least=least)
    raise PlanError(
        f"--floor {text}",
        expected=f"a name and a number, the name one of {', '.join(METRICS)}",
        fix="write it like --floor ssim=0.9",
    )


def check_floor(metric: Metric, least: float) -> None:
    """Raise PlanError for a floor that every picture reaches, or none."""
    if metric != "score" and not 0.0 < least < 1.0:
        raise PlanError(
            f"--floor {metric}={least:g}",
            expected="between 0 and 1, which is the many-step picture itself",
            fix=f"write it like --floor {metric}=0.9",
        )
