"""What a run of the bench is asked for. Light to import: no engine, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fresco_trt.errors import PlanError

SCENES, QUICK_SCENES = 64, 6
"""What is drawn unless asked otherwise; the quick ones take about 10 minutes on 2 cores, of which a
scene takes 40 seconds, the engines one minute and the peaks of memory three."""

OUT = Path("bench-out")
BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; None is what the program does unless asked otherwise.

    That is :data:`SCENES`, or :data:`QUICK_SCENES` of a ``quick`` run, all methods, the model's own
    size, the bundled weights, and :data:`BACKEND`. Raises PlanError for no scene at all.
    """

    model: str
    out: Path = OUT
    scenes: int | None = None
    methods: tuple[str, ...] | None = None
    quick: bool = False
    size: str | None = None
    weights: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(
                f"--scenes {self.scenes}",
                expected="1 or more",
                fix=f"pass --scenes {QUICK_SCENES}",
            )

    @property
    def count(self) -> int:
        """How many scenes every method draws."""
        if self.scenes is not None:
            return self.scenes
        return QUICK_SCENES if self.quick else SCENES

    def line(self, program: str, *, scenes: bool = True) -> str:
        """The command line of ``program`` that asks for this, with the number of scenes or without.

        Without it is what a killed run and the one that goes on from it have to share, where
        scenes come one after another, however many are asked for.
        """
        given: Mapping[str, object] = {
            "--model": self.model,
            "--scenes": self.count if scenes else None,
            "--methods": None if self.methods is None else ",".join(self.methods),
            "--size": self.size,
            "--weights": self.weights,
            "--backend": self.backend,
            "--out": self.out,
        }
        parts = [f"{name} {value}" for name, value in given.items() if value is not None]
        return " ".join([program, *parts, *(["--quick"] if self.quick else [])])
