"""Training of the demo transformer: a base model, then on with the guidance scale as an input.

    python -m training.train vae    --work DIR --steps 1300
    python -m training.train base   --work DIR --minutes 60
    python -m training.train guided --work DIR --minutes 90
    python -m training.train export --work DIR fresco_trt/models/flux/weights/flux-tiny
    python -m training.train turbo  --work DIR --start fresco_trt/models/flux/weights/flux-tiny
    python -m training.train judge  --work DIR fresco_trt/bench/scenes/judge.safetensors

The shipped weights are trained on with `guided --start fresco_trt/models/flux/weights/flux-tiny`,
at last with `--large`; `icons` takes the demo's pictures out of the npm package they come from.

The shipped student is 36 seconds of `turbo` on an H100 (`--minutes 0.6 --device cuda --scale 24
--workers 5`), stored as a transformer alone by `export --checkpoint turbo` to
fresco_trt/models/flux/weights/flux-tiny-turbo; `turbo --student` with that folder trains it on.

Every command can be killed and run again: it continues from its last checkpoint in DIR. A time
budget, not a step count, ends a run, so that the same command uses whatever the machine can do.
"""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from fresco_trt.bench.scenes.pictures import scene_stream
from fresco_trt.bench.scenes.scene import OBJECTS
from training.assemble import read_pipeline, read_student, store_pipeline, store_student
from training.batches import Renders
from training.curriculum import BASE, GUIDED, LARGE, TURBO, Batch, Curriculum, TrainingPhase
from training.distil import distilled_loss
from training.judge import train_judge
from training.model import DemoModel
from training.objective import fast_precision, flow_loss, guided_loss
from training.optim import MovingAverage, Muon, warm_cosine
from training.vae import train_vae

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import AutoencoderKL

app = typer.Typer(add_completion=False, help=__doc__)

MUON_FACTOR = 6.0
"""Muon's learning rate over AdamW's: their changes of a weight are then of one size."""


class Run:
    """A resumable training run: model, moving average, optimiser and elapsed time in one file."""

    def __init__(
        self,
        name: str,
        model: Any,
        phase: TrainingPhase,
        work: Path,
        minutes: float,
        teacher: DemoModel | None = None,
    ) -> None:
        self.model: Any = model  # one of the modules that a run can train
        self.phase, self.budget = phase, minutes * 60
        self.teacher = teacher
        self.path = work / f"{name}.pt"
        self.average = MovingAverage(model, 0.999)
        self.optimisers = _optimisers(model)
        self.step, self.elapsed = 0, 0.0
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights = state["average"]
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write a checkpoint beside the old one, then replace it."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    @property
    def progress(self) -> float:
        """Share of the time budget that is used."""
        return min(1.0, self.elapsed / self.budget)

    def loss(self, batch: Batch, rng: random.Random) -> torch.Tensor:
        """The objective of this step."""
        if self.teacher is not None:
            return distilled_loss(self.model, self.teacher, batch, rng)
        if rng.random() < self.phase.guided_share(self.progress):
            return guided_loss(self.model, batch, rng)
        return flow_loss(self.model, batch)

    def update(self, loss: torch.Tensor, seconds: float) -> None:
        """One optimiser step at the schedule's present rate."""
        loss.backward()  # type: ignore[no-untyped-call]
        rate = self.phase.rate * warm_cosine(int(self.progress * 10_000), 10_000, 1)
        rate *= min(1.0, (self.step + 1) / 100)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, factor in zip(self.optimisers, (MUON_FACTOR, 1.0), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
            with fast_precision(self.model.device.type):
                optimiser.step()
            optimiser.zero_grad()
        self.average.decay = min(0.999, (1 + self.step) / (10 + self.step))
        self.average.update(self.model)
        self.step += 1
        self.elapsed += seconds


def _optimisers(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and layers, AdamW for everything else."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        inside = any(part in name for part in ("blocks.", "layers.", "block."))
        (matrices if inside and weight.ndim in (2, 5) else others).append(weight)
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return Muon(matrices, lr=1.0), adam


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a machine trains with: where, batches how many times the shapes' own, how many processes
    render scenes, and whether blocks are compiled, which the first steps of the budget wait for.
    """

    device: str = "cpu"
    scale: int = 1
    workers: int = 0
    compiled: bool = False


def train(run: Run, vae: AutoencoderKL, seed: int, means: Means) -> None:
    """Train until the time budget is used; the next batch is drawn while a step runs."""
    rng = random.Random(f"{seed} {run.step}")
    torch.manual_seed(rng.randrange(2**31))
    scenes = scene_stream(rng.randrange(2**31))
    if means.compiled:
        compile_blocks(run.model)
    with Renders(scenes, means.workers) as renders, ThreadPoolExecutor(1) as thread:
        drawn = Curriculum(
            phase=run.phase,
            renders=renders,
            vae=vae,
            rng=random.Random(rng.randrange(2**31)),
            scale=means.scale,
        )
        steps(run, rng, lambda: thread.submit(drawn.draw, run.progress))


def steps(run: Run, rng: random.Random, draw: Callable[[], Future[Any]]) -> None:
    """Step until the time budget is used, with a checkpoint every two minutes."""
    mean: torch.Tensor | None = None
    coming, saved, begun = draw(), time.monotonic(), time.monotonic()
    while run.progress < 1:
        batch = coming.result()
        coming = draw()
        with fast_precision(run.model.device.type):
            loss = run.loss(batch, rng)
        now = time.monotonic()
        run.update(loss, now - begun)
        begun = now
        mean = loss.detach() if mean is None else mean.lerp(loss.detach(), 0.02)
        if run.step % 50 == 0:  # a GPU is waited for here only
            print(f"step {run.step} {run.progress:.3f} loss {mean.item():.4f}", flush=True)
        if now - saved > 120 or run.progress >= 1:
            run.save()
            saved = now


def at_once(batch: Any) -> Future[Any]:
    """A batch drawn on this thread: another one would take a second core."""
    drawn: Future[Any] = Future()
    drawn.set_result(batch)
    return drawn


def compile_blocks(model: DemoModel) -> None:
    """Let each block be compiled when it is next called, for any batch and length."""
    blocks = [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]
    for block in blocks:
        block.compile(dynamic=True)


def averaged(path: Path, model: DemoModel) -> DemoModel:
    """A model holding the moving-average weights of a checkpoint."""
    model.load_state_dict(torch.load(path, weights_only=True)["average"])
    return model.eval().requires_grad_(False)


def guided_from(base: DemoModel) -> DemoModel:
    """A guidance-conditioned copy of a base model; it starts out ignoring the guidance input."""
    guided = DemoModel(guidance=True)
    guided.load_state_dict(base.state_dict(), strict=False)
    last = guided.transformer.time_text_embed.guidance_embedder.linear_2
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return guided


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained codec of a work or pipeline folder, in float32, frozen."""
    from diffusers import AutoencoderKL

    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    return vae.float().eval().requires_grad_(False)


Work = Annotated[Path, typer.Option(help="Folder of checkpoints.")]
Minutes = Annotated[float, typer.Option(help="Time budget, all resumed parts together.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Scale = Annotated[
    int,
    typer.Option(min=1, help="Batches this many times larger, for a GPU."),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes that render scenes; 0 renders between the steps.")
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the blocks: the first steps, of the budget, wait for it."
    ),
]


@app.command()
def vae(work: Work, steps: int = 1300) -> None:
    """Train the picture codec."""
    train_vae(work / "vae", steps=steps)


@app.command()
def base(
    work: Work,
    minutes: Minutes = 60,
    device: Device = "cpu",
    scale: Scale = 1,
    workers: Workers = 0,
    compiled: Compiled = False,
    seed: int = 0,
) -> None:
    """Train the base model from scratch, mostly at the smallest size."""
    means = Means(device=device, scale=scale, workers=workers, compiled=compiled)
    model = DemoModel(guidance=False).to(device)
    train(Run("base", model, BASE, work, minutes), load_vae(work).to(device), seed, means)


@app.command()
def guided(
    work: Work,
    minutes: Minutes = 90,
    device: Device = "cpu",
    scale: Scale = 1,
    workers: Workers = 0,
    compiled: Compiled = False,
    seed: int = 1,
    start: Annotated[
        Path | None, typer.Option(help="Pipeline folder to train on, instead of base.pt.")
    ] = None,
    large: Annotated[bool, typer.Option("--large", help="Mostly at the full size.")] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="Learning rate; large batches bear more than the phase's."),
    ] = None,
) -> None:
    """Train the base model, or an exported one, at every size with the guidance as an input."""
    means = Means(device=device, scale=scale, workers=workers, compiled=compiled)
    if start is not None:
        model = read_pipeline(start).to(device)
        load_vae(start).save_pretrained(work / "vae")  # latents are this codec's, so it comes along
    else:
        model = guided_from(averaged(work / "base.pt", DemoModel(guidance=False))).to(device)
    name, phase = ("large", LARGE) if large else ("guided", GUIDED)
    phase = replace(phase, rate=rate or phase.rate)
    train(Run(name, model, phase, work, minutes), load_vae(work).to(device), seed, means)


@app.command()
def turbo(
    work: Work,
    start: Annotated[Path, typer.Option(help="Pipeline folder of the teacher.")],
    minutes: Minutes = 60,
    device: Device = "cpu",
    scale: Scale = 1,
    workers: Workers = 0,
    compiled: Compiled = False,
    seed: int = 2,
    student: Annotated[
        Path | None,
        typer.Option(help="Folder of an exported student to train on, instead of the teacher."),
    ] = None,
) -> None:
    """Distil an exported model into one of four steps, with the same encoders and codec."""
    means = Means(device=device, scale=scale, workers=workers, compiled=compiled)
    teacher = read_pipeline(start).to(device).eval().requires_grad_(False)
    model = read_student(student or start, start).to(device)
    for encoder in (model.text_encoder, model.text_encoder_2):
        encoder.requires_grad_(False)
    vae = load_vae(start).to(device)
    train(Run("turbo", model, TURBO, work, minutes, teacher=teacher), vae, seed, means)


@app.command()
def export(work: Work, out: Path, checkpoint: str = "guided") -> None:
    """Store a checkpoint's averaged weights as a diffusers FluxPipeline folder.

    The checkpoint turbo, a student of the packaged model, as its transformer alone.
    """
    model = averaged(work / f"{checkpoint}.pt", DemoModel(guidance=checkpoint != "base"))
    if checkpoint == "turbo":
        store_student(model, out)
    else:
        store_pipeline(model, load_vae(work), out)


@app.command()
def judge(work: Work, out: Path, minutes: Minutes = 10, seed: int = 0) -> None:
    """Train the classifier behind the prompt score; it is not resumed."""
    train_judge(out, load_vae(work), minutes=minutes, seed=seed)


@app.command()
def icons(noto: Path, out: Path = Path("fresco_trt/bench/scenes/icons.json")) -> None:
    """Keep the demo's icons of the `icons.json` of `@iconify-json/noto`."""
    found = json.loads(noto.read_text(encoding="utf-8"))["icons"]
    kept = {icon: found[icon]["body"] for icon in sorted(OBJECTS.values())}
    document = {"source": "@iconify-json/noto, Apache-2.0", "icons": kept}
    out.write_text(json.dumps(document, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
