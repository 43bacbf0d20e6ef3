"""`fresco-trt video`: one clip with a bundle's engines, as an MP4."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.cli import display, tables
from fresco_trt.cli.generate import check_picture, save_picture, timed
from fresco_trt.cli.options import Engines, Guidance, Json, Seed, Trusted, VerifyKey
from fresco_trt.errors import OutputNotWritable
from fresco_trt.files.atomic_file import check_writable

if TYPE_CHECKING:
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.result import Result


def video(
    engines: Engines,
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    seed: Seed = 0,
    guidance: Guidance = None,
    out: Annotated[Path, typer.Option("--out", help="MP4 to write.")] = Path("clip.mp4"),
    strip: Annotated[
        Path | None, typer.Option("--strip", help="PNG to write: frames side by side.")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames a second of the MP4.")] = 24,
    trust: Trusted = False,
    verify_key: VerifyKey = None,
    as_json: Json = False,
) -> None:
    """Draw one clip with the engines of a model that draws clips, such as hunyuan-video."""
    from fresco_trt.models.family import PromptWarning
    from fresco_trt.pipelines.checks import check_clips, check_seed
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.loading import opened, trust_of
    from fresco_trt.pipelines.video import check_ffmpeg, check_fps, save_clip
    from fresco_trt.pipelines.video import strip as stripped

    _check_clip(out)
    if strip is not None:
        check_picture("--strip", strip)
    check_seed(seed)
    check_fps(fps)
    check_ffmpeg()
    warnings.simplefilter("always", PromptWarning)
    trusted = trust_of(trust, verify_key)
    with display.progress() as report:
        report("loading engines", 0.0)
        bundle = opened(engines, trusted)
        check_clips(bundle.plan)
        with FrescoPipeline.over(bundle, trusted) as pipe:
            report("loading engines", 1.0)
            result = pipe(
                prompt,
                seed=seed,
                guidance=guidance,
                on_step=display.step_reporter(report, len(pipe.plan.stages)),
            )
            summary = _drawn(result, pipe, out, fps)
        (frames,) = result.frames
        save_clip(frames, out, fps=fps, progress=lambda done: report("writing the clip", done))
    if strip is not None:
        save_picture(stripped(frames), strip)
        summary["strip"] = str(strip)
    display.show(summary, as_json, tables.generated_table)


def _check_clip(path: Path) -> None:
    if path.suffix.lower() != ".mp4":
        raise OutputNotWritable(
            f"--out {path}", expected="a file name ending in .mp4", fix="pass --out clip.mp4"
        )
    check_writable(path)


def _drawn(result: Result, pipe: FrescoPipeline, out: Path, fps: float) -> dict[str, Any]:
    (frames,) = result.frames
    return {
        "video": str(out),
        "strip": None,
        "frames": len(frames),
        "fps": fps,
        **timed(result, pipe),
    }
