"""Options that several commands share, each with its one name and help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", help="Model name, e.g. flux-tiny or flux.")]
Stages = Annotated[int, typer.Option("--stages", help="Resolution stages; 1 is the plain sampler.")]
Sizes = Annotated[
    list[str] | None, typer.Option("--size", help="Picture size WxH; may be given several times.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="quality, balanced, fast or turbo; flux also has fresco-30, fresco-18, fresco-11.",
        show_default="balanced",
    ),
]
BaselineSteps = Annotated[
    int | None, typer.Option("--steps", help="Steps of the plain baseline (and of a 1-stage plan).")
]
PlainSteps = Annotated[
    int | None, typer.Option("--steps", help="Steps of a 1-stage plan; others have the preset's.")
]
Delta = Annotated[
    float | None,
    typer.Option(
        "--delta",
        help="Switch where SPEED's spectral criterion says, at this tolerance; 0.01 to 0.2.",
        show_default="the preset's switches",
    ),
]
Cache = Annotated[
    str,
    typer.Option("--cache", help="Feature cache: none, reuse, taylor, hicache, svd or freqca."),
]
Interval = Annotated[
    int | None,
    typer.Option(
        "--interval",
        help="With a cache, one full step in so many, in each stage.",
        show_default="7 with 1 stage, else 2",
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        "--warmup",
        help="With a cache, full steps at the start of each stage.",
        show_default="3 with 1 stage, else 2",
    ),
]
Actions = Annotated[
    str | None,
    typer.Option(
        "--actions",
        help="With a cache, each step: words like FFBF,FBF (full, bypass), one a stage.",
    ),
]
Site = Annotated[
    str | None,
    typer.Option(
        "--site",
        help="With a cache, what is predicted: final, or trunk (the first block always runs).",
        show_default="final",
    ),
]
Engines = Annotated[Path, typer.Option("--engines", help="Folder that 'fresco-trt build' wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the one noise field.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Diffusers folder, one .safetensors file, or 'random'.",
        show_default="bundled, then the hub",
    ),
]
