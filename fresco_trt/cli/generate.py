"""`fresco-trt generate`: one picture with a bundle's engines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.options import (
    Engines,
    Guidance,
    Json,
    Picture,
    Preview,
    Seed,
    Trusted,
    VerifyKey,
)
from fresco_trt.errors import OutputNotWritable
from fresco_trt.files.atomic_file import check_writable, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from fresco_trt.bundle.trust import Trust
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.result import Result


def generate(
    engines: Engines,
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    seed: Seed = 0,
    guidance: Guidance = None,
    out: Picture = Path("picture.png"),
    preview: Preview = False,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Draw one picture with a bundle's engines."""
    from fresco_trt.pipelines.loading import trust_of

    request = {"prompt": prompt, "seed": seed, "guidance": guidance}
    trusted = trust_of(trust, verify_key)
    draw(engines, trusted, request, out, preview=preview, as_json=as_json)


def draw(
    engines: Path,
    trusted: Trust,
    request: Mapping[str, Any],
    out: Path,
    *,
    preview: bool,
    as_json: bool,
    save_mask: Path | None = None,
) -> None:
    """Draw what the arguments of a pipeline's call ask for, save it, and say how long it took."""
    from fresco_trt.models.family import PromptWarning
    from fresco_trt.pipelines.checks import check_pictures, check_seed
    from fresco_trt.pipelines.edit import SourceWarning
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.loading import opened
    from fresco_trt.pipelines.selective import EditWarning, check_mask

    check_picture("--out", out)
    if save_mask is not None:
        check_picture("--save-mask", save_mask)
    check_seed(request["seed"])
    for told in (PromptWarning, SourceWarning, EditWarning):
        warnings.simplefilter("always", told)
    previews: list[str] = []

    def keep(stage: int, image: Image) -> None:
        path = out.with_name(f"{out.stem}.stage{stage}.png")
        save_picture(image, path)
        previews.append(str(path))

    with display.progress() as report:
        report("loading engines", 0.0)
        bundle = opened(engines, trusted)
        check_pictures(bundle.plan)
        check_mask(bundle.plan, save_mask, "--save-mask")
        with FrescoPipeline.over(bundle, trusted) as pipe:
            report("loading engines", 1.0)
            result = pipe(
                **request,
                on_step=display.step_reporter(report, len(pipe.plan.stages)),
                on_stage=keep if preview else None,
            )
            summary = _generated(result, pipe, out, previews)
    save_picture(result.images[0], out)
    if save_mask is not None:
        save_picture(result.masks[0], save_mask)
        summary["mask"] = str(save_mask)
    display.show(summary, as_json, tables.generated_table)


def save_picture(image: Image, path: Path) -> None:
    """Write a PNG; whatever happens, `path` is the old file or the new one.

    Raises OutputNotWritable or DiskFull.
    """
    with replacing(path) as partial:
        image.save(partial, format="PNG")


def check_picture(option: str, path: Path) -> None:
    """Raise OutputNotWritable for a path that is no PNG's, or that cannot be written."""
    if path.suffix.lower() != ".png":
        raise OutputNotWritable(
            f"{option} {path}",
            expected="a file name ending in .png",
            fix=f"pass {option} picture.png",
        )
    check_writable(path)


def _generated(
    result: Result, pipe: FrescoPipeline, out: Path, previews: list[str]
) -> dict[str, Any]:
    return {"image": str(out), "previews": previews, **timed(result, pipe)}


def timed(result: Result, pipe: FrescoPipeline) -> dict[str, Any]:
    """What every command that draws says of a request: its seed, its times, and what drew it."""
    from dataclasses import asdict

    return {
        "seed": result.seed,
        "nfe": result.nfe,
        "seconds": asdict(result.seconds),
        "steps": [asdict(step) for step in result.steps],
        "backend": pipe.bundle.manifest.backend.name,
        "model": pipe.bundle.manifest.model.name,
        "blocks": pipe.bundle.manifest.built.options.get("blocks"),
    }
