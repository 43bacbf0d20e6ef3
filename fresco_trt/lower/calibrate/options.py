"""What `fresco-trt calibrate` can be asked for: its measurements, and which option each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.config import CacheConfig, QuantConfig
from fresco_trt.plan.presets import DEFAULT_PRESET
from fresco_trt.plan.recipes import Recipe, find_recipe

DEMO = "flux-tiny"
"""The model whose pictures can be drawn here; all others need a folder of them."""

SCENES = 512
OUT = Path("calibration")

Measure = Literal["spectrum", "basis", "cache-schedule", "sea-schedule", "amax", "sensitivity"]

_FILES: Mapping[Measure, str] = {
    "spectrum": "spectrum.json",
    "basis": "basis.safetensors",
    "cache-schedule": "cache-schedule.json",
    "sea-schedule": "sea-schedule.json",
    "amax": "amax.safetensors",
    "sensitivity": "sensitivity.json",
}

CACHE, STAGES = "hicache", 3
"""What a cache schedule is measured for, and the stages of a plan, unless another is asked for."""

_ASKED = ("prompts", "pictures")
"""What is drawn: prompts, or for a model that edits a folder of pictures with theirs."""

_QUANTISED = (*_ASKED, "precision", "stages", "preset", "size")

READS: Mapping[Measure, tuple[str, ...]] = {
    "spectrum": ("pictures", "scenes"),
    "basis": (*_ASKED, "energy"),
    "cache-schedule": (*_ASKED, "cache", "stages", "preset", "tolerance"),
    "sea-schedule": (*_ASKED, "stages", "preset", "tolerance"),
    "amax": _QUANTISED,
    "sensitivity": _QUANTISED,
}
"""What is measured, and the options that this reads beside those that all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was asked for; None means the default."""

    model: str
    measure: Measure = "spectrum"
    pictures: Path | None = None
    scenes: int | None = None
    prompts: Path | None = None
    energy: float | None = None
    cache: CacheConfig | None = None
    stages: int | None = None
    preset: str | None = None
    tolerance: float | None = None
    precision: QuantConfig | None = None
    size: str | None = None
    weights: str | None = None
    out: Path = OUT

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.out / "-".join((self.model, *self._subject, _FILES[self.measure]))

    @property
    def _subject(self) -> tuple[str, ...]:
        """What a measurement of one plan is of, in the words of its file's name."""
        if self.measure in ("spectrum", "basis"):
            return ()
        size = () if self.size is None else (self.size,)
        plan = (*size, f"{self.stages or STAGES}stage", self.preset or DEFAULT_PRESET)
        if self.measure == "sea-schedule":
            return plan
        what = self._predictor if self.measure == "cache-schedule" else self.quantised.name
        return (*plan, what)

    @property
    def _predictor(self) -> str:
        asked = self.predictor
        return asked.name if asked.max_order is None else f"{asked.name}-order{asked.max_order}"

    @property
    def predictor(self) -> CacheConfig:
        """What a cache schedule is measured for. Raises IncompatibleOptions for a schedule."""
        asked = self.cache or CacheConfig(name=CACHE)
        if asked != CacheConfig(name=asked.name, max_order=asked.max_order):
            raise IncompatibleOptions(
                f"--cache {asked} with --measure {self.measure}",
                expected="a name and max_order: which steps are skipped is what is measured",
                fix="leave the rest out",
            )
        return asked

    @property
    def quant(self) -> QuantConfig:
        """What amax are for. Raises IncompatibleOptions for what nothing would read."""
        asked = self.precision or QuantConfig(precision="int8")
        if asked.force or asked.amax is not None:
            raise IncompatibleOptions(
                f"--precision {asked} with --measure {self.measure}",
                expected="a precision, recipe and keep: nothing is judged, and amax are measured",
                fix="leave force and amax out",
            )
        return asked

    @property
    def quantised(self) -> Recipe:
        """The recipe that amax are for. Raises IncompatibleOptions for none."""
        recipe = find_recipe(self.quant.precision, self.quant.recipe)
        if recipe is None:
            raise IncompatibleOptions(
                f"--precision {self.precision} with --measure {self.measure}",
                expected="int8 or fp8: no other precision quantises",
                fix="leave --precision out for int8",
            )
        return recipe
