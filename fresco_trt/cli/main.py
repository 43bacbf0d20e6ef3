"""The command line: every command is a thin shell over the public Python call of the same name.

Exit codes: 0 on success, 2 for a wrong request, 1 for a failure, 130 for an interrupt. Standard
output carries the result (one JSON object with `--json`); progress and warnings go to standard
error.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display
from fresco_trt.cli.bench import bench
from fresco_trt.cli.calibrate import calibrate
from fresco_trt.cli.options import (
    Actions,
    AmaxPath,
    Backend,
    BaselineSteps,
    BasisPath,
    BlockCounts,
    BundleFolder,
    Cache,
    Delta,
    DryRun,
    Engines,
    Force,
    GraphsFolder,
    Interval,
    Json,
    Keep,
    Layout,
    Model,
    Order,
    PlainSteps,
    Precision,
    Preset,
    RecipeName,
    Seed,
    Shift,
    Site,
    Sizes,
    Stages,
    StreamWeights,
    Target,
    Warmup,
    Weights,
)
from fresco_trt.errors import FrescoError, OutputNotWritable, PlanError
from fresco_trt.files.atomic_file import check_writable, replacing
from fresco_trt.plan.caching import NONE, CacheChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL.Image import Image

    from fresco_trt.bundle import Bundle
    from fresco_trt.lower.build import BuildRequest
    from fresco_trt.pipelines.image import FrescoPipeline, Result
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
    shift: Shift = None,
    cache: Cache = NONE,
    interval: Interval = None,
    warmup: Warmup = None,
    actions: Actions = None,
    site: Site = None,
    order: Order = None,
    as_json: Json = False,
) -> None:
    """Show the stages of a plan and what they cost beside the plain pipeline."""
    from fresco_trt.models.registry import model_facts
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
        shift=shift,
        cache=_cache(cache, interval, warmup, actions, site, order),
    )
    summary = plan_summary(facts, chosen, steps)
    _print(summary, as_json, display.plan_table)


@app.command()
def build(
    model: Model,
    stages: Stages = 3,
    size: Sizes = None,
    preset: Preset = None,
    steps: PlainSteps = None,
    delta: Delta = None,
    shift: Shift = None,
    weights: Weights = None,
    blocks: BlockCounts = None,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    recipe: RecipeName = None,
    keep: Keep = None,
    amax: AmaxPath = None,
    force: Force = False,
    cache: Cache = NONE,
    interval: Interval = None,
    warmup: Warmup = None,
    actions: Actions = None,
    site: Site = None,
    order: Order = None,
    basis: BasisPath = None,
    target: Target = None,
    layout: Layout = "static",
    stream_weights: StreamWeights = False,
    out: BundleFolder = None,
    graphs: GraphsFolder = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile every stage of a plan to a static-shape engine and write the bundle."""
    from fresco_trt.lower import build as lower
    from fresco_trt.plan.depth import parse_blocks

    request = lower.BuildRequest(
        model=model,
        stages=stages,
        preset=preset,
        steps=steps,
        delta=delta,
        shift=shift,
        weights=weights,
        blocks=None if blocks is None else parse_blocks(blocks),
        backend=backend,
        precision=precision,
        quant=lower.QuantChoice(recipe=recipe, keep=tuple(keep or ()), amax=amax, force=force),
        cache=_cache(cache, interval, warmup, actions, site, order),
        basis=basis,
        targets=_targets(target),
        layout=layout,
        stream_weights=stream_weights,
        out=out,
        graphs=graphs,
    )
    requests = lower.requests_of(request, size or [])
    if dry_run:
        _print(_drafts(requests), as_json, display.dry_run_table)
        return
    with display.progress() as report:
        summary = lower.run_all(requests, progress=report)
    _print(summary, as_json, display.built_table)


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
    from fresco_trt.models.family import PromptWarning
    from fresco_trt.pipelines.image import FrescoPipeline, check_seed

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
    summary = {
        "folder": str(folder),
        **json.loads(bundle.manifest.to_bytes()),
        "networks": _networks(bundle),
    }
    _print(summary, as_json, display.manifest_table)


def _networks(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Matrix products by type of each engine whose library counted them."""
    from fresco_trt.backends.tensorrt.backend import PRODUCTS

    counted = {
        engine.name: bundle.folder / path
        for engine in bundle.manifest.engines
        for path in engine.files
        if path.endswith(PRODUCTS)
    }
    return {name: json.loads(path.read_bytes()) for name, path in counted.items()}


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can build and run, and the command that adds the rest."""
    from fresco_trt.cli.doctor import examine

    _print(examine(), as_json, display.doctor_table)


def save_picture(image: Image, path: Path) -> None:
    """Write a PNG; whatever happens, `path` is the old file or the new one.

    Raises OutputNotWritable or DiskFull.
    """
    with replacing(path) as partial:
        image.save(partial, format="PNG")


def _check_picture(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise OutputNotWritable(
            f"--out {path}", expected="a file name ending in .png", fix="pass --out picture.png"
        )
    check_writable(path)


def _drafts(requests: Iterable[BuildRequest]) -> dict[str, Any]:
    from fresco_trt.lower.build import describe

    return {"builds": [describe(each) for each in requests]}


def _targets(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))


def _cache(
    name: str,
    interval: int | None,
    warmup: int | None,
    actions: str | None,
    site: str | None,
    order: int | None,
) -> CacheChoice:
    words = None if actions is None else tuple(word.strip() for word in actions.split(","))
    return CacheChoice(
        name=name, interval=interval, warmup=warmup, actions=words, site=site, order=order
    )


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
        "blocks": pipe.bundle.manifest.built.options.get("blocks"),
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
