"""How fast this machine draws scenes and trains on them: what a run of some minutes can get."""

from __future__ import annotations

import copy
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from training.curriculum import COARSE, FINE, MIDDLE, Shape
from training.demo.data import CODEC_BATCHES, noised, training_recipe
from training.demo.learner import Learner, precision
from training.demo.low_rank import add_factors
from training.demo.model import SceneModel
from training.demo.run import is_inner_matrix
from training.distil import distilled_loss
from training.objective import flow_loss, guided_loss
from training.scenes.batches import SceneBatches
from training.scenes.speed import render_rates
from training.vae import codec_loss, new_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from diffusers import AutoencoderKL

    from training.curriculum import Batch
    from training.demo.run import Options
    from training.scenes.render import Drawings

    Loss = Callable[[], torch.Tensor]

STEPS = 3
"""Steps that are timed, after one that is not."""

RATE = 1e-4

LENGTH = 64
"""Tokens of a padded caption."""


def measured(options: Options, drawings: Drawings) -> Iterator[dict[str, Any]]:
    """A row for each size that is drawn and for each kind of step, training alone: its batches lie
    ready. On a CPU, and of rendering without processes, seconds are those of a core that is used.
    """
    for side, rate in render_rates(drawings, options.workers):
        yield {
            "what": "render",
            "side": side,
            "workers": options.workers,
            "samples_per_second": round(rate, 1),
        }
    for what, shape, learner, loss in _steps(options, drawings):
        count = options.scale * shape.batch
        speed = _per_second(learner, loss)
        yield {
            "what": what,
            "side": shape.width,
            "batch": count,
            "steps_per_second": round(speed, 3),
            "samples_per_second": round(speed * count, 1),
        }


def table_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was measured, in Markdown."""
    head = "| what | side | batch | steps a second | samples a second |\n|---|--:|--:|--:|--:|"
    lines = (
        f"| {row['what']} | {row['side']} | {row.get('batch', '')} "
        f"| {_digits(row.get('steps_per_second'))} | {_digits(row['samples_per_second'])} |"
        for row in rows
    )
    return "\n".join((head, *lines))


def _digits(value: float | None) -> str:
    """Two that count, or what is before the point."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _steps(options: Options, drawings: Drawings) -> Iterator[tuple[str, Shape, Learner, Loss]]:
    vae = new_vae().to(options.device)
    codec = Learner(vae, lambda _, weight: weight.ndim == 4)
    with SceneBatches(training_recipe(options.seed), drawings) as batches:
        for side, count in CODEC_BATCHES.items():
            shape = Shape(width=side, height=side, batch=count, weight=1)
            _, pictures = batches.take(count * options.scale, side, side, options.device)
            yield "codec", shape, codec, partial(_codec_loss, vae, pictures)

    model = SceneModel(options.dimensions).to(options.device)
    learner, rng = Learner(model, is_inner_matrix), random.Random(0)
    for shape in (COARSE[0], MIDDLE[0], FINE[0]):
        yield "flow", shape, learner, partial(flow_loss, model, _batch(shape, options))
    batch = _batch(FINE[0], options)
    yield "guidance", FINE[0], learner, partial(guided_loss, model, batch, rng)
    student = copy.deepcopy(model)
    add_factors(student.transformer)
    loss = partial(distilled_loss, student, model, batch, rng)
    yield "turbo", FINE[0], Learner(student), loss


def _codec_loss(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    return codec_loss(vae, pictures)[0]


def _batch(shape: Shape, options: Options) -> Batch:
    """One of latents that show nothing, with captions of the usual length."""
    count, latent = options.scale * shape.batch, (4, shape.height // 4, shape.width // 4)
    scenes = training_recipe(options.seed).batch((count, shape.width, shape.height), 0)
    drawn = [(each.caption, torch.zeros(latent, device=options.device)) for each in scenes]
    return noised(drawn, [caption for caption, _ in drawn], LENGTH, 0)


def _per_second(learner: Learner, loss: Loss) -> float:
    for step in range(1 + STEPS):
        if step == 1:
            begun = _now(learner.device)
        with precision(learner.device):
            value = loss()
        learner.update(value, RATE)
    return STEPS / (_now(learner.device) - begun)


def _now(device: torch.device) -> float:
    """Seconds: of a GPU, once it has done what it was asked for; of the cores that were used."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.monotonic()
