"""The main job, measured: three static engines against diffusers' own pipeline on the demo model.

    python -m bench.main_job --out bench/results/main-job.json

Every method draws the same scenes from the same seeds; methods take turns scene by scene, so that
a ratio compares neighbours in time. The controls are the plain pipeline at 50 and 28 steps, and at
the step count whose time equals ours, at the default time shift and at a tuned one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fresco_trt.bench.plain import MODEL, Plain, draw, judged_scenes, load_pipeline
from fresco_trt.bench.record import circumstances, median_and_range, store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from fresco_trt.bench.scenes.judge import Judge, Verdict
    from fresco_trt.bench.scenes.scene import Scene

    Method = Callable[[Scene, int], tuple[torch.Tensor, float, float]]

PRESETS = ("quality", "balanced", "fast", "turbo")
TUNED_SHIFTS = (0.8, 1.6)
REFERENCE = "diffusers 50 steps"


@dataclass(slots=True)
class Tally:
    """What one method did over the scenes: denoise and engine seconds, verdicts, pictures."""

    seconds: list[float] = field(default_factory=list)
    engine_seconds: list[float] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    pictures: list[torch.Tensor] = field(default_factory=list)


def plain_method(pipe: Any, point: Plain) -> Method:
    """diffusers' pipeline at one operating point."""

    def method(scene: Scene, seed: int) -> tuple[torch.Tensor, float, float]:
        pictures, seconds = draw(pipe, [scene], [seed], point)
        return pictures, seconds, seconds

    return method


def bundle_method(pipe: Any) -> Method:
    """One of our bundles."""
    import numpy as np
    import torch

    def method(scene: Scene, seed: int) -> tuple[torch.Tensor, float, float]:
        result = pipe(scene.caption, seed=seed)
        pixels = torch.from_numpy(np.asarray(result.images[0]).copy())
        picture = pixels.permute(2, 0, 1).float()[None] / 127.5 - 1
        return picture, result.seconds.denoise, result.seconds.engines

    return method


def take_turns(
    methods: dict[str, Method], scenes: Sequence[Scene], judge: Judge
) -> dict[str, Tally]:
    """Run every method on every scene, one scene after the other; the first scene only warms up."""
    from fresco_trt.bench.scenes.judge import verdicts

    tallies = {name: Tally() for name in methods}
    for number, scene in enumerate([scenes[0], *scenes]):
        for name, method in methods.items():
            picture, seconds, engine_seconds = method(scene, number)
            if number == 0:
                continue
            tally = tallies[name]
            tally.seconds.append(seconds)
            tally.engine_seconds.append(engine_seconds)
            tally.verdicts += verdicts(judge, picture, [scene])
            tally.pictures.append(picture)
        print(f"scene {number}/{len(scenes)}", flush=True)
    return tallies


def rows_of(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    """One row a method: paired speed-ups over the reference, score, closeness to its pictures."""
    reference = tallies[REFERENCE]
    rows = []
    for name, tally in tallies.items():
        pairs = zip(reference.seconds, tally.seconds, strict=True)
        host = 1 - sum(tally.engine_seconds) / sum(tally.seconds)
        rows.append(
            {
                "method": name,
                "denoise_seconds": median_and_range(tally.seconds),
                "speedup": median_and_range([ours / theirs for ours, theirs in pairs]),
                "host_share": round(host, 5),
                "score": sum(v.right for v in tally.verdicts) / len(tally.verdicts),
                "objects": sum(v.objects for v in tally.verdicts) / len(tally.verdicts),
                "psnr": _psnr(tally.pictures, reference.pictures),
            }
        )
    return rows


def _psnr(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float | None:
    """Mean peak signal-to-noise ratio in dB to the reference pictures; None for the reference."""
    import torch

    from fresco_trt.bench.quality import DECIBELS
    from fresco_trt.lower.similarity import psnr

    decibels = torch.cat([psnr(a, b) for a, b in zip(ours, theirs, strict=True)])
    if bool(decibels.isinf().all()):
        return None
    return round(decibels.clamp(max=DECIBELS).mean().item(), 2)


FRESH_PROCESS = """
import sys
from fresco_trt.cli.main import main
code = main(sys.argv[1:])
from fresco_trt.files.peak_memory import peak_memory
print(peak_memory().own, file=sys.stderr)
sys.exit(code)
"""


def cold_start(bundle: Path) -> dict[str, float]:
    """A fresh process from its start to a written picture: wall seconds and peak memory."""
    prompt, out = "a star on a plain blue background", str(bundle.parent / "cold.png")
    request = ["generate", "--engines", str(bundle), "--prompt", prompt, "--out", out]
    before = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, *request], check=True, capture_output=True, text=True
    )
    seconds = perf_counter() - before
    peak = int(done.stderr.splitlines()[-1]) / 2**20
    return {"seconds": round(seconds, 3), "peak_mib": round(peak, 1)}


def import_seconds(repeats: int = 5) -> dict[str, float]:
    """`import fresco_trt` in a fresh interpreter, the bare interpreter's start taken off."""

    def once(code: str) -> float:
        before = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return perf_counter() - before

    return median_and_range([once("import fresco_trt") - once("pass") for _ in range(repeats)])


def equal_time_steps(one_step: float, ours: float) -> int:
    """Plain steps that take as long as `ours` seconds, at `one_step` seconds each; at least one."""
    return max(1, round(ours / one_step))


def _methods(scope: ExitStack, folder: Path, scene: Scene) -> tuple[dict[str, Method], float]:
    """Every method by name, and the seconds that building the balanced bundle took."""
    from fresco_trt.lower.build import BuildRequest, run
    from fresco_trt.pipelines.image import FrescoPipeline

    ours: dict[str, Method] = {}
    seconds = 0.0
    for preset in PRESETS:
        built = run(BuildRequest(model=MODEL, stages=3, preset=preset, out=folder / preset))
        seconds = built.seconds if preset == "balanced" else seconds
        pipe = scope.enter_context(FrescoPipeline.from_bundle(folder / preset))
        ours[f"fresco {preset}"] = bundle_method(pipe)
    plain = run(BuildRequest(model=MODEL, stages=1, steps=50, out=folder / "one-stage"))
    one_stage = scope.enter_context(FrescoPipeline.from_bundle(plain.bundle.folder))
    pipeline = load_pipeline()
    controls = {REFERENCE: Plain(steps=50), "diffusers 28 steps": Plain(steps=28)}
    methods = {name: plain_method(pipeline, point) for name, point in controls.items()}
    methods["one static engine, 50 steps"] = bundle_method(one_stage)
    one_step = methods["diffusers 28 steps"](scene, 0)[1] / 28
    for preset in ("balanced", "fast"):
        ours[f"fresco {preset}"](scene, 0)
        steps = equal_time_steps(one_step, ours[f"fresco {preset}"](scene, 0)[1])
        for mu in (None, *TUNED_SHIFTS):
            point = Plain(steps=steps, mu=mu)
            methods[f"diffusers {point.name}"] = plain_method(pipeline, point)
    return methods | ours, seconds


def main(
    scenes: Annotated[int, typer.Option(help="Scenes that every method draws.")] = 12,
    out: Path = Path("bench/results/main-job.json"),
) -> None:
    """Measure the main job and store the figures."""
    from fresco_trt.bench.scenes.judge import load_judge

    chosen = judged_scenes(scenes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as scope:
        methods, build_seconds = _methods(scope, Path(folder), chosen[0])
        rows = rows_of(take_turns(methods, chosen, load_judge()))
        document = {
            **circumstances(),
            "model": MODEL,
            "scenes": scenes,
            "rows": rows,
            "build_seconds": round(build_seconds, 3),
            "cold_start": cold_start(Path(folder) / "balanced"),
            "import_seconds": import_seconds(),
        }
    store(document, out)
    print(f"stored {out}")


if __name__ == "__main__":
    typer.run(main)
