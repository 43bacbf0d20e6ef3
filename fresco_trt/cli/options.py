"""Options of the commands, each with its one name and help text."""

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
Shift = Annotated[
    float | None,
    typer.Option(
        "--shift",
        help="Time shift factor of every stage: above 1, more steps where noise is high.",
        show_default="the preset's or the model's",
    ),
]
Cache = Annotated[
    str,
    typer.Option(
        "--cache",
        help="What answers skipped steps: none, reuse, taylor, hicache, svd, freqca or "
        "coarse_velocity.",
    ),
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
        show_default="final; velocity for coarse_velocity",
    ),
]
Order = Annotated[
    int | None,
    typer.Option(
        "--order",
        help="With a cache that extrapolates, the order: 1 a line, 2 a parabola, 3 a cubic.",
        show_default="2",
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

# --- of a build -------------------------------------------------------------------------------

BlockCounts = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        help="With --weights random, so many double-stream and single-stream blocks, e.g. 1,1.",
        show_default="all of the model's",
    ),
]
Backend = Annotated[
    str, typer.Option(help="eager, inductor, onnxruntime, tensorrt or tensorrt-rtx.")
]
Precision = Annotated[str, typer.Option(help="fp32, bf16, fp16, fp8 or int8.")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="How int8 or fp8 quantises: int8-smooth (SmoothQuant), int8, fp8 or fp8-attention "
        "(attention's products too).",
        show_default="the precision's own",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="With int8 or fp8, a pattern of layers to leave alone, e.g. '*.ff.net.2'; repeatable.",
    ),
]
AmaxPath = Annotated[
    Path | None,
    typer.Option(
        "--amax",
        help="With int8 or fp8, a file of 'fresco-trt calibrate --measure amax'.",
        show_default="measured now, with the prompts in calibration/",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Publish a quantised bundle that fails the quality gate.")
]
BasisPath = Annotated[
    Path | None,
    typer.Option(
        help="With --cache svd, a file of 'fresco-trt calibrate --measure basis'.",
        show_default="measured now, with the prompts in calibration/",
    ),
]
Target = Annotated[
    str | None, typer.Option(help="GPU architectures for TensorRT, e.g. sm89,sm120.")
]
Layout = Annotated[
    str,
    typer.Option(
        help="For TensorRT: static (a plan for each stage) or profiles (one, the weights once)."
    ),
]
StreamWeights = Annotated[
    bool,
    typer.Option(
        "--stream-weights",
        help="For TensorRT: keep on the host what weights the GPU has no room for.",
    ),
]
BundleFolder = Annotated[
    Path | None,
    typer.Option(
        help="Bundle folder; with several sizes, the folder that holds one for each.",
        show_default="engines/<model>-<W>x<H>-<K>stage",
    ),
]
GraphsFolder = Annotated[
    Path | None, typer.Option(help="Keep the exported ONNX graphs in this folder.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be built.")]
