"""The command line: every command is a thin shell over the public Python call of the same name.

Exit codes: 0 on success, 2 for a wrong request, 1 for a failure, 130 for an interrupt. Standard
output carries the result (one JSON object with `--json`); progress and warnings go to standard
error.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from errno import EISDIR
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt import display
from fresco_trt.bench.command import bench
from fresco_trt.calibrate import calibrate
from fresco_trt.errors import FrescoError, OutputNotWritable, PlanError
from fresco_trt.options import (
    Actions,
    BaselineSteps,
    Cache,
    Delta,
    Engines,
    Interval,
    Json,
    Model,
    PlainSteps,
    Preset,
    Seed,
    Site,
    Sizes,
    Stages,
    Warmup,
    Weights,
)
from fresco_trt.plan.caching import NONE, CacheChoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from fresco_trt.pipeline import FrescoPipeline, Result
    from fresco_trt.plan.sizes import Size

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compiled, progressive-resolution generation for diffusion transformers.",
)


@app.command()
def plan(
    model: Model,
    stages: Stages = 3,
    size: Sizes = None,
    preset: Preset = None,
    steps: BaselineSteps = None,
    delta: Delta = None,
    cache: Cache = NONE,
    interval: Interval = None,
    warmup: Warmup = None,
    actions: Actions = None,
    site: Site = None,
    as_json: Json = False,
) -> None:
    """Show the stages of a plan and what they cost beside the plain pipeline."""
    from fresco_trt.models.zoo import model_facts
    from fresco_trt.plan.cost import plan_summary
    from fresco_trt.plan.making import make_plan

    facts = model_facts(model)
    chosen = make_plan(
        facts,
        stages=stages,
        preset=preset,
        size=_only_size(size),
        steps=steps,
        delta=delta,
        cache=_cache(cache, interval, warmup, actions, site),
    )
    summary = plan_summary(facts, chosen, steps)
    _print(summary, as_json, display.plan_table)


Backend = Annotated[
    str, typer.Option(help="eager, inductor, onnxruntime, tensorrt or tensorrt-rtx.")
]
Precision = Annotated[str, typer.Option(help="fp32, bf16, fp16, fp8 or int8.")]
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


@app.command()
def build(
    model: Model,
    stages: Stages = 3,
    size: Sizes = None,
    preset: Preset = None,
    steps: PlainSteps = None,
    delta: Delta = None,
    weights: Weights = None,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    cache: Cache = NONE,
    interval: Interval = None,
    warmup: Warmup = None,
    actions: Actions = None,
    site: Site = None,
    basis: BasisPath = None,
    target: Target = None,
    out: BundleFolder = None,
    graphs: GraphsFolder = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile every stage of a plan to a static-shape engine and write the bundle."""
    from fresco_trt.lower import build as lower

    request = lower.BuildRequest(
        model=model,
        stages=stages,
        preset=preset,
        steps=steps,
        delta=delta,
        weights=weights,
        backend=backend,
        precision=precision,
        cache=_cache(cache, interval, warmup, actions, site),
        basis=basis,
        targets=_targets(target),
        out=out,
        graphs=graphs,
    )
    requests = lower.requests_of(request, size or [])
    if dry_run:
        drafts = [lower.describe(each) for each in requests]
        _print({"builds": drafts}, as_json, display.dry_run_table)
        return
    with display.progress() as report:
        built = [lower.run(each, progress=report).to_json() for each in requests]
    _print({"bundles": built}, as_json, display.built_table)


@app.command()
def generate(
    engines: Engines,
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    seed: Seed = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale.", show_default="the model's")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("picture.png"),
    preview: Annotated[
        bool, typer.Option("--preview", help="Also save the picture at the end of each stage.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw one picture with a bundle's engines."""
    from fresco_trt.models.flux_parts import PromptWarning
    from fresco_trt.pipeline import FrescoPipeline, check_seed

    _check_picture(out)
    check_seed(seed)
    warnings.simplefilter("always", PromptWarning)
    previews: list[str] = []

    def keep(stage: int, image: Image) -> None:
        path = out.with_name(f"{out.stem}.stage{stage}.png")
        save_picture(image, path)
        previews.append(str(path))

    with display.progress() as report:
        report("loading engines", 0.0)
        with FrescoPipeline.from_bundle(engines) as pipe:
            report("loading engines", 1.0)
            result = pipe(
                prompt,
                seed=seed,
                guidance=guidance,
                on_step=display.step_reporter(report, len(pipe.plan.stages)),
                on_stage=keep if preview else None,
            )
            summary = _generated(result, pipe, out, previews)
    save_picture(result.images[0], out)
    _print(summary, as_json, display.generated_table)


@app.command()
def verify(
    engines: Engines,
    weights: Weights = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed error of an output, relative to its largest value.",
            show_default="0.001 for fp32",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare every engine with the eager reference, stage by stage, then end to end."""
    from fresco_trt.verify import verify_bundle

    with display.progress() as report:
        found = verify_bundle(
            engines, weights=weights, tolerance=tolerance, seed=seed, progress=report
        )
    _print(found.to_json(), as_json, display.verify_table)
    found.require()


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Bundle folder.")], as_json: Json = False
) -> None:
    """Show what a bundle is, without loading an engine."""
    from fresco_trt.bundle import open_bundle

    bundle = open_bundle(folder)
    summary = {"folder": str(folder), **json.loads(bundle.manifest.to_bytes())}
    _print(summary, as_json, display.manifest_table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can build and run, and the command that adds the rest."""
    from fresco_trt.doctor import examine

    _print(examine(), as_json, display.doctor_table)


def save_picture(image: Image, path: Path) -> None:
    """Write a PNG beside its final place, then rename it.

    Raises OutputNotWritable or DiskFull; whatever happens, `path` is the old file or the new one.
    """
    from fresco_trt.backends.base import writing

    partial = path.with_name(f".{token_hex(8)}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(partial, format="PNG")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_picture(path: Path) -> None:
    """Before any engine is loaded: a minute of work must not end in "no such folder"."""
    from fresco_trt.backends.base import writing

    if path.suffix.lower() != ".png":
        raise OutputNotWritable(
            f"--out {path}", expected="a file name ending in .png", fix="pass --out picture.png"
        )
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        parents = (parent for parent in path.absolute().parents if os.path.lexists(parent))
        with TemporaryFile(dir=next(parents)):
            pass  # nothing is created for a request that may yet be refused


def _targets(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))


def _cache(
    name: str, interval: int | None, warmup: int | None, actions: str | None, site: str | None
) -> CacheChoice:
    words = None if actions is None else tuple(word.strip() for word in actions.split(","))
    return CacheChoice(name=name, interval=interval, warmup=warmup, actions=words, site=site)


def _only_size(sizes: list[str] | None) -> Size | None:
    from fresco_trt.plan.sizes import parse_sizes

    parsed = parse_sizes(sizes or [])
    if len(parsed) > 1:
        raise PlanError(
            f"{len(parsed)} sizes", expected="one --size for a plan", fix="plan one size at a time"
        )
    return parsed[0] if parsed else None


def _generated(
    result: Result, pipe: FrescoPipeline, out: Path, previews: list[str]
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "image": str(out),
        "previews": previews,
        "seed": result.seed,
        "nfe": result.nfe,
        "seconds": asdict(result.seconds),
        "steps": [asdict(step) for step in result.steps],
        "backend": pipe.bundle.manifest.backend.name,
        "model": pipe.bundle.manifest.model.name,
    }


def _print(value: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
    else:
        table(value)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = display.show_warning
        try:
            app(args=arguments)
        except FrescoError as error:
            display.error(str(error))
            return error.exit_code
        except SystemExit as stop:
            return _exit_code(stop)
    return 0


def _exit_code(stop: SystemExit) -> int:
    code = stop.code if isinstance(stop.code, int) else 0
    if code == INTERRUPTED:
        display.error("interrupted; what was being written is gone, what was there before is kept")
    return code


app.command()(calibrate)  # each its own file: options, run and table of one command
app.command()(bench)


if __name__ == "__main__":
    sys.exit(main())
