"""Training of the video demo, HunyuanVideo's architecture made small: a codec, then a transformer.

    python -m training.video --out DIR --minutes 400 --codec-minutes 120

The codec (:mod:`training.video_vae`) is stored in ``DIR/vae`` when its share of the time is used,
and never trained again. The transformer then learns its latents by flow matching, with its text
encoders: single frames, clips at 64 pixels and clips at 128 pixels, and the guidance scale as an
input in a growing share of the steps.

The command can be killed and run again: it goes on from its checkpoints in DIR. At every checkpoint
``DIR/held-out.jsonl`` gets a line with the loss on clips of pairs that are never trained on, at
sides of 64 and 128 pixels.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from fresco_trt.bench.scenes.clips import clip_stream
from training.assemble import store_video
from training.curriculum import CAPTION_DROPOUT, Batch, TrainingPhase, noised_to, shifted_levels
from training.objective import flow_loss
from training.train import Run, at_once, steps
from training.vae import halved
from training.video_model import VideoModel
from training.video_vae import LEARNING, CodecRun, encoded, load_vae, new_vae, store_scaled, videos

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from diffusers import AutoencoderKLHunyuanVideo

    from fresco_trt.bench.scenes.clips import Clip

    Encoded = tuple[str, torch.Tensor]
    """A caption and the latents of its clip."""

MOVING = TrainingPhase(
    start=(0.35, 0.6, 0.05), end=(0.05, 0.25, 0.7), hold=0.2, guided=(0.1, 0.5), rate=1e-3
)
"""Shares of single frames at 128 pixels, of clips at 64 and of clips at 128."""

BATCHES = (48, 48, 12)

SIDE = 128

LENGTH = 12
"""Tokens of a padded caption. Padding is masked, so any other length gives the same."""

SHIFTS = (1.0, 4.0)
"""Shifts of the noise, in turns by chance: where things go is decided where noise is high."""

FRESH, ADDED, POOL = 96, (0.3, 2), 6000
"""Clips that are encoded before the first step; how often how many more are; and how many are kept
to be shown again. On a CPU a clip costs as much to encode as six to train on.
"""

HELD_OUT = 24
"""Clips whose loss is stored."""


@dataclass(slots=True, kw_only=True)
class Clips:
    """Draws training batches of random clips; keeps encoded ones to show them again."""

    vae: AutoencoderKLHunyuanVideo
    clips: Iterator[Clip]
    rng: random.Random
    phase: TrainingPhase = field(default_factory=lambda: MOVING)
    kept: dict[int, deque[Encoded]] = field(default_factory=dict)

    def draw(self, progress: float) -> Batch:
        """One batch of a kind. Clips at 64 pixels are encoded there, or averaged down from 128, as
        the latents of coarse stages are.
        """
        (kind,) = self.rng.choices(range(3), self.phase.shares(progress))
        direct = kind == 1 and self.rng.random() < 0.5
        drawn = self._latents(SIDE // 2 if direct else SIDE, BATCHES[kind])
        latents = torch.stack([each for _, each in drawn])
        if kind == 0:
            latents = latents[:, :, :1]
        elif kind == 1 and not direct:
            latents = halved(latents)
        captions = ["" if self.rng.random() < CAPTION_DROPOUT else said for said, _ in drawn]
        return batch_of(latents, captions, self.rng.choice(SHIFTS))

    def _latents(self, side: int, count: int) -> list[Encoded]:
        pool = self.kept.setdefault(side, deque(maxlen=POOL))
        often, more = ADDED
        fresh = FRESH if not pool else (more if self.rng.random() < often else 0)
        if fresh:
            clips = list(itertools.islice(self.clips, fresh))
            pool.extend(encoded_clips(clips, self.vae, side))
        return self.rng.choices(pool, k=count)


def encoded_clips(
    clips: Sequence[Clip], vae: AutoencoderKLHunyuanVideo, side: int
) -> list[Encoded]:
    """Captions of clips, and their latents [16,4,side/8,side/8]."""
    latents = encoded(vae, clips, side)
    return [(clip.caption, each) for clip, each in zip(clips, latents, strict=True)]


def batch_of(latents: torch.Tensor, captions: list[str], shift: float) -> Batch:
    """A batch of latents [B,16,F,H,W], noised to levels under a shift."""
    return noised_to(shifted_levels(len(latents), shift), latents, captions, LENGTH)


class VideoRun(Run):
    """A run that also stores its loss on clips that it is not trained on."""

    def __init__(
        self, model: VideoModel, vae: AutoencoderKLHunyuanVideo, work: Path, minutes: float
    ) -> None:
        super().__init__("video", model, MOVING, work, minutes)
        self._copy = copy.deepcopy(model).requires_grad_(False)
        clips = list(itertools.islice(clip_stream(0, held_out=True), HELD_OUT))
        self._held_out = [encoded_clips(clips, vae, side) for side in (SIDE // 2, SIDE)]

    @property
    def averaged(self) -> VideoModel:
        """The model with the averaged weights."""
        self._copy.load_state_dict(self.average.weights)
        return self._copy

    def save(self) -> None:
        """As of every run, and a line of ``held-out.jsonl``."""
        super().save()
        losses = [round(self._loss_of(drawn), 4) for drawn in self._held_out]
        line = {"step": self.step, "minutes": round(self.elapsed / 60, 1), "loss": losses}
        with self.path.with_name("held-out.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @torch.no_grad()
    def _loss_of(self, drawn: Sequence[Encoded]) -> float:
        """Of the averaged weights, under the same noise every time."""
        latents = torch.stack([each for _, each in drawn])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return flow_loss(self.averaged, batch_of(latents, [s for s, _ in drawn], 2.0)).item()


def train_codec(work: Path, minutes: float, device: str = "cpu", seed: int = 4) -> None:
    """Train the codec until ``minutes`` are used in all, and store it, unless it is stored."""
    if (work / "vae").exists():
        return
    run = CodecRun(new_vae(seed).to(device), work, minutes)
    rng, clips = _seeded(seed, run.step)
    steps(run, rng, lambda: at_once(videos(clips, rng, LEARNING.shares(run.progress), device)))
    store_scaled(run.averaged, work / "vae")


def train(work: Path, minutes: float, device: str = "cpu", seed: int = 5) -> VideoRun:
    """Train the transformer, from the checkpoint in ``work`` if there is one, until ``minutes`` are
    used in all.
    """
    vae = load_vae(work).to(device)
    run = VideoRun(VideoModel().to(device), vae, work, minutes)
    rng, clips = _seeded(seed, run.step)
    drawn = Clips(vae=vae, clips=clips, rng=rng)
    steps(run, rng, lambda: at_once(drawn.draw(run.progress)))
    return run


def _seeded(seed: int, step: int) -> tuple[random.Random, Iterator[Clip]]:
    """Chance and clips of a run from a step on: other ones than before."""
    rng = random.Random(f"{seed} {step}")
    torch.manual_seed(rng.randrange(2**31))
    return rng, clip_stream(rng.randrange(2**31))


def main(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints.")],
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed parts together.")] = 400,
    codec_minutes: Annotated[float, typer.Option(help="The codec's part of them.")] = 120,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    store: Annotated[
        Path | None, typer.Option(help="Folder for the averaged weights, as diffusers loads them.")
    ] = None,
) -> None:
    """Train the video demo; with time used up, only store what a checkpoint holds."""
    if minutes <= codec_minutes:
        raise typer.BadParameter(
            f"{minutes:g} minutes in all; expected more than the codec's {codec_minutes:g}, which "
            "--codec-minutes sets",
            param_hint="--minutes",
        )
    out.mkdir(parents=True, exist_ok=True)
    train_codec(out, codec_minutes, device)
    run = train(out, minutes - codec_minutes, device)
    if store is not None:
        store_video(run.averaged.cpu(), load_vae(out), store)


if __name__ == "__main__":
    typer.run(main)
