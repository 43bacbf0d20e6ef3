"""What `fresco-trt calibrate` can be asked for: its measurements, and which option each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.plan.making import DEFAULT_PRESET
from fresco_trt.plan.recipes import Recipe, find_recipe

DEMO = "flux-tiny"
"""The model whose pictures can be drawn here; all others need a folder of them."""

SCENES = 512
OUT = Path("calibration")

Measure = Literal["spectrum", "basis", "cache-schedule", "amax", "sensitivity"]

_FILES: Mapping[Measure, str] = {
    "spectrum": "spectrum.json",
    "basis": "basis.safetensors",
    "cache-schedule": "cache-schedule.json",
    "amax": "amax.safetensors",
    "sensitivity": "sensitivity.json",
}

CACHE, STAGES = "hicache", 3
"""What a cache schedule is measured for, and the stages of a plan, unless another is asked for."""

_QUANTISED = ("prompts", "precision", "recipe", "keep", "stages", "preset", "size")

READS: Mapping[Measure, tuple[str, ...]] = {
    "spectrum": ("pictures", "scenes"),
    "basis": ("prompts", "energy"),
    "cache-schedule": ("prompts", "cache", "order", "stages", "preset", "tolerance"),
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
    cache: str | None = None
    order: int | None = None
    stages: int | None = None
    preset: str | None = None
    tolerance: float | None = None
    precision: str | None = None
    recipe: str | None = None
    keep: tuple[str, ...] | None = None
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
        what = self._predictor if self.measure == "cache-schedule" else self.quantised.name
        size = () if self.size is None else (self.size,)
        return (*size, f"{self.stages or STAGES}stage", self.preset or DEFAULT_PRESET, what)

    @property
    def _predictor(self) -> str:
        name = self.cache or CACHE
        return name if self.order is None else f"{name}-order{self.order}"

    @property
    def quantised(self) -> Recipe:
        """The recipe that amax are for. Raises IncompatibleOptions for none."""
        recipe = find_recipe(self.precision or "int8", self.recipe)
        if recipe is None:
            raise IncompatibleOptions(
                f"--precision {self.precision} with --measure {self.measure}",
                expected="int8 or fp8: no other precision quantises",
                fix="leave --precision out for int8",
            )
        return recipe


MeasureName = Annotated[
    str,
    typer.Option(
        help="spectrum (for --delta), basis (for --cache svd), cache-schedule (for --actions), "
        "amax (for --precision int8 or fp8) or sensitivity (for --keep)."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        help="Of a spectrum: folder of pictures like those the model draws, none smaller.",
        show_default=f"for {DEMO}: scenes that are drawn",
    ),
]
Scenes = Annotated[
    int | None, typer.Option(help="Of a spectrum: scenes to draw.", show_default=str(SCENES))
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Of all but a spectrum: text file, one prompt a line.",
        show_default="calibration/<model>-prompts.txt",
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(help="Of a basis: share of energy that is kept.", show_default="0.85"),
]
Predictor = Annotated[
    str | None, typer.Option(help="Of a cache schedule: what predicts.", show_default="hicache")
]
Order = Annotated[
    int | None,
    typer.Option(help="Of a cache schedule: order of extrapolation, 1 to 3.", show_default="2"),
]
PlanStages = Annotated[
    int | None, typer.Option(help="Stages of the plan that is walked.", show_default="3")
]
PlanPreset = Annotated[
    str | None, typer.Option(help="Preset of the plan that is walked.", show_default="balanced")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Of a cache schedule: largest relative error of a velocity.", show_default="several"
    ),
]
Precision = Annotated[str | None, typer.Option(help="Of amax: int8 or fp8.", show_default="int8")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Of amax: int8-smooth, int8, fp8 or fp8-attention.",
        show_default="its own",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Of amax: a pattern of layers to leave alone; repeatable."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", help="Of amax: picture size WxH.", show_default="the model's"),
]
Weights = Annotated[
    str | None, typer.Option(help="Diffusers pipeline folder.", show_default="bundled")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the result.")]
