"""Options of the commands, each with its one name and help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model name, e.g. flux-tiny or flux, or one like it: flux:num_layers=8."
NamedModel = Annotated[str | None, typer.Option("--model", help=_MODEL)]
Model = Annotated[str, typer.Option("--model", help=_MODEL)]
Stages = Annotated[
    int | None,
    typer.Option("--stages", help="Resolution stages; 1 is the plain sampler.", show_default="3"),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", help="Picture size WxH, or WxHxF of a clip; may be given several times."
    ),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Frames of a clip: --size WxH --frames F is --size WxHxF."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="quality, balanced, fast or turbo; flux also has fresco-30, fresco-18, fresco-11; "
        "then delta= (where SPEED's criterion switches), shift= (time shift of every stage), "
        "solver= (euler, multistep, dpmpp_2m or unipc), text_tokens=128+256+512 (of each stage; "
        "cuts the text's padding). Models that edit have "
        "specedit, then threshold= (from where on a token is edited), and references=fine (the "
        "source at full size in every stage).",
        show_default="balanced",
    ),
]
BaselineSteps = Annotated[
    int | None, typer.Option("--steps", help="Steps of the plain baseline (and of a 1-stage plan).")
]
PlainSteps = Annotated[
    int | None, typer.Option("--steps", help="Steps of a 1-stage plan; others have the preset's.")
]
Cache = Annotated[
    str,
    typer.Option(
        "--cache",
        help="What answers skipped steps: none, reuse, taylor, hicache, svd, freqca or "
        "coarse_velocity; then interval=, warmup_steps=, max_order=, actions=FFBF+FBF, site=, "
        "basis=FILE.",
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="A file of 'fresco-trt plan --json', in place of stages, size, preset, steps, cache.",
    ),
]
Engines = Annotated[Path, typer.Option("--engines", help="Folder that 'fresco-trt build' wrote.")]
Trusted = Annotated[
    bool, typer.Option("--trust", help="Load native code that this user did not build.")
]
VerifyKey = Annotated[
    Path | None,
    typer.Option(
        "--verify-key", help="Take only a bundle that is signed by this public key, a PEM file."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the one noise field.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale.", show_default="the model's")
]
Picture = Annotated[Path, typer.Option("--out", help="PNG to write.")]
Preview = Annotated[
    bool, typer.Option("--preview", help="Also save the picture at the end of each stage.")
]
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
        help="With --weights random, so many blocks of each kind: 1,1 of FLUX, 1 of Qwen-Image.",
        show_default="all of the model's",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="eager, inductor, onnxruntime, tensorrt or tensorrt-rtx.",
        show_default="what this machine runs best",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, bf16, fp16, fp8 or int8; then recipe=, keep='*.ff.net.2+proj_out', amax=FILE, "
        "force=true.",
        show_default="bf16 on a GPU, else fp32",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="batch=4, pictures that engines take at once; for TensorRT GPU architectures first, "
        "sm89+sm120, and layout=static (a plan for each stage) or profiles (one, the weights "
        "once), stream_weights=true.",
        show_default="all that the library builds for",
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
