"""Training of the editing demo: the demo transformer shown a picture and told what to change in it.

    python -m training.kontext --minutes 70 --out DIR

It begins as flux-tiny, to which a reference is unknown, and learns by flow matching: the tokens of
the source, encoded by the frozen codec, stand behind the noisy ones of the target. Words that only
instructions have get embeddings of their own.

The command can be killed and run again: it goes on from its checkpoint in DIR. At every checkpoint
``DIR/held-out.jsonl`` gets a line with the loss on edits that are never trained on, at sides of 64
and 128 pixels.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch.nn import functional

from fresco_trt.bench.scenes.edits import KINDS, WORDS, Edit, random_edit
from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.models.weights import bundled_folder
from training.assemble import read_pipeline, store_editor
from training.curriculum import Batch, TrainingPhase, noised
from training.model import DemoModel
from training.objective import flow_loss
from training.rounding import recorded
from training.train import Run, at_once, load_vae, steps
from training.vae import latents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL

    from training.rounding import Inputs

EDITING = TrainingPhase(
    start=(0.12, 0.85, 0.03), end=(0.15, 0.5, 0.35), hold=0.3, guided=(0, 0), rate=8e-4
)
"""Shares of the sides 32, 64 and 128: a step at 256 would cost as much as six at 128."""

SIDES = (32, 64, 128)
BATCHES = {32: 48, 64: 24, 128: 6}

FRESH, POOL = 0.2, 8000
"""As in the curriculum of flux-tiny: share of a batch that is drawn anew, and how many are kept."""

SHARES = {
    "colour": 1,
    "pattern": 1,
    "background": 2,
    "replace": 4,
    "add": 4,
    "remove": 3,
    "paint": 2,
}
"""How often each kind is drawn: backgrounds are learnt first, objects take longer."""

SHIFTS = (1.0, 4.0)
"""Shifts of the noise, in turns by chance: what an edit is about is decided where noise is high."""

ROUNDS = 20
"""Batches of each side, of an edit of every kind, whose layers' inputs the stored weights are
rounded by."""

HELD_OUT = 24
"""Edits of each side whose loss is stored."""


def kontext_from(folder: Path) -> DemoModel:
    """The model of a pipeline folder, with room for the words of instructions."""
    known, model = read_pipeline(folder), DemoModel(guidance=True, words=WORDS)
    model.transformer.load_state_dict(known.transformer.state_dict())
    for part in ("text_encoder", "text_encoder_2"):
        encoder, old = getattr(model, part), getattr(known, part).state_dict()
        own = encoder.state_dict()
        for name, value in old.items():
            own[name][: len(value)] = value  # only the tables of words have more rows than before
        encoder.load_state_dict(own)
    return model


@dataclass(slots=True, kw_only=True)
class Edits:
    """Draws training batches of random edits; keeps encoded ones to show them again."""

    vae: AutoencoderKL
    rng: random.Random
    phase: TrainingPhase = field(default_factory=lambda: EDITING)
    kept: dict[int, deque[tuple[str, torch.Tensor]]] = field(default_factory=dict)

    def draw(self, progress: float) -> Batch:
        """One batch: a side, and edits either encoded at that side or averaged down from twice it,
        as the references of coarse stages are.
        """
        side = self.rng.choices(SIDES, self.phase.shares(progress))[0]
        coarse = side == SIDES[0] or (side != SIDES[-1] and self.rng.random() < 0.5)
        drawn = self._latents(2 * side if coarse else side, BATCHES[side])
        length, shift = self.rng.choice((16, 20, 32, 32, 40)), self.rng.choice(SHIFTS)
        return batch_of(drawn, coarse=coarse, length=length, shift=shift)

    def _latents(self, side: int, count: int) -> list[tuple[str, torch.Tensor]]:
        pool = self.kept.setdefault(side, deque(maxlen=POOL))
        fresh = count if len(pool) < 8 * count else math.ceil(FRESH * count)
        old = self.rng.sample(pool, count - fresh)
        kinds = self.rng.choices(list(SHARES), list(SHARES.values()), k=fresh)
        new = encoded([random_edit(self.rng, kind) for kind in kinds], self.vae, side)
        pool.extend(new)
        return new + old


@torch.no_grad()
def encoded(edits: Sequence[Edit], vae: AutoencoderKL, side: int) -> list[tuple[str, torch.Tensor]]:
    """Instructions, and latents [2,4,side/4,side/4] of source and target."""
    scenes = [each for edit in edits for each in (edit.source, edit.target)]
    latents = latents_of(vae, pictures_of(scenes, side).to(vae.device))
    pairs = latents.view(len(edits), 2, *latents.shape[1:])
    return [(edit.instruction, pair) for edit, pair in zip(edits, pairs, strict=True)]


def batch_of(
    drawn: Sequence[tuple[str, torch.Tensor]], *, coarse: bool, length: int, shift: float = 1.0
) -> Batch:
    """A batch of encoded edits, of half their size if ``coarse``."""
    pairs = torch.stack([latents for _, latents in drawn])
    if coarse:
        pairs = functional.avg_pool3d(pairs, (1, 2, 2))
    source, target = pairs.unbind(1)
    captions = [said for said, _ in drawn]
    return replace(noised(target, captions, length, shift), reference=source)


class EditRun(Run):
    """A run that also stores its loss on edits that it is not trained on."""

    def __init__(self, model: DemoModel, vae: AutoencoderKL, work: Path, minutes: float) -> None:
        super().__init__("kontext", model, EDITING, work, minutes)
        self._copy = copy.deepcopy(model).requires_grad_(False)
        rng = random.Random("held out")
        edits = [random_edit(rng) for _ in range(HELD_OUT)]
        self._held_out = [encoded(edits, vae, side) for side in SIDES[1:]]

    @property
    def averaged(self) -> DemoModel:
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
    def _loss_of(self, drawn: Sequence[tuple[str, torch.Tensor]]) -> float:
        """Of the averaged weights, under the same noise every time."""
        model = self.averaged
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return flow_loss(model, batch_of(drawn, coarse=False, length=32)).item()


def train(work: Path, minutes: float, device: str = "cpu", seed: int = 3) -> EditRun:
    """Train, from the checkpoint in ``work`` if there is one, until ``minutes`` are used in all."""
    start = bundled_folder("flux-tiny")
    vae = load_vae(start).to(device)
    work.mkdir(parents=True, exist_ok=True)
    run = EditRun(kontext_from(start).to(device), vae, work, minutes)
    rng = random.Random(f"{seed} {run.step}")
    torch.manual_seed(rng.randrange(2**31))
    edits = Edits(vae=vae, rng=rng)
    steps(run, rng, lambda: at_once(edits.draw(run.progress)))
    return run


@torch.no_grad()
def inputs_of(model: DemoModel, vae: AutoencoderKL) -> dict[str, Inputs]:
    """What the layers of the transformer see in edits that nothing is scored on, at all levels of
    noise.
    """
    rng = random.Random("rounding")
    with torch.random.fork_rng(), recorded(model.transformer) as found:
        torch.manual_seed(0)
        for side in SIDES[1:] * ROUNDS:
            edits = [random_edit(rng, kind) for kind in KINDS]
            drawn = encoded(edits, vae, side)
            flow_loss(model, batch_of(drawn, coarse=False, length=32, shift=rng.choice(SHIFTS)))
    return found


def main(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed parts together.")] = 70,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    store: Annotated[
        Path | None, typer.Option(help="Folder for the averaged weights, as the package has them.")
    ] = None,
) -> None:
    """Train the editing demo; with time used up, only store what a checkpoint holds."""
    run = train(out, minutes, device)
    if store is not None:
        averaged = run.averaged.cpu()
        store_editor(averaged, store, inputs_of(averaged, load_vae(bundled_folder("flux-tiny"))))


if __name__ == "__main__":
    typer.run(main)
