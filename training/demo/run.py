"""The demo's training itself: one stage after the other, as long as there is time."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.errors import ContentInvalid, NonFiniteValues
from training.demo.checkpoint import VAE_NAME, Kept, add_line, read, store
from training.demo.coding import named, short, under
from training.demo.data import (
    Latents,
    batch_of,
    codec_pictures,
    step_rng,
    training_recipe,
)
from training.demo.held_out import HeldOut
from training.demo.learner import Learner, precision
from training.demo.low_rank import add_factors
from training.demo.model import Dimensions, SceneModel
from training.demo.stages import (
    CODEC,
    FLOW,
    STAGES,
    TURBO,
    Ledger,
    Stage,
    rate_factor,
    side_of,
)
from training.demo.storing import store_codec
from training.distil import distilled_loss
from training.objective import flow_loss, guided_loss
from training.scenes.batches import SceneBatches
from training.train import compile_blocks, load_vae
from training.vae import codec_loss, new_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from training.scenes.render import Drawings

SAVE_SECONDS, TELL_SECONDS = 60, 10

CODEC_RATE, FLOW_RATE, TURBO_RATE = 2e-3, 8e-4, 1e-3
"""Of AdamW; Muon's follows. That of the transformer grows a little with its batches."""

COMPILED_AFTER, COMPILED_FOR = 60, 180
"""Seconds of the transformer's training before its blocks are compiled on a GPU: what fails in the
first minute should not have waited for a compiler. And seconds that have to be left then: eight
graphs are made, which takes about one minute.
"""

_CODEC, _TURBO = STAGES[0], STAGES[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is asked for, and what it is carried out with.

    ``minutes`` counts all resumed parts together; ``scale`` makes batches so many times larger.
    """

    minutes: float
    device: str = "cpu"
    scale: int = 1
    workers: int = 0
    seed: int = 0
    dimensions: Dimensions = field(default_factory=Dimensions)


class DemoRun:
    """A run that goes on from its folder's checkpoint, if there is one.

    With more minutes than before, every stage but the codec's goes on for its share of them, and
    the student begins anew where its teacher was trained on. Raises as
    :func:`~training.demo.checkpoint.read`.
    """

    def __init__(
        self,
        options: Options,
        drawings: Drawings,
        folder: Path,
        report: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self.folder = options, folder
        self.ledger = Ledger(minutes=options.minutes)
        self._device = torch.device(options.device)
        self._drawings, self._report, self._clock = drawings, report, clock
        self._kept = read(folder, options.seed)
        if self._kept is not None:
            for name, counts in self._kept.counted.items():
                getattr(self.ledger, name).update(counts)
            self._check_codec(self._kept)
        self._held_out = HeldOut(drawings, self._device)
        self._compiled = False

    def train(self) -> None:
        """Use up the minutes; :attr:`teacher`, :attr:`student` and :attr:`vae` are what is stored
        of them.
        """
        if not (self.folder / VAE_NAME).exists():
            self._codec()
        self.vae = load_vae(self.folder).to(self._device)
        model = SceneModel(self.options.dimensions, self.options.seed).to(self._device)
        with self._batches("scenes") as batches:
            latents = Latents(
                batches=batches, vae=self.vae, seed=self.options.seed, scale=self.options.scale
            )
            self._flow(model, latents)
            self._distil(model, latents)

    def _check_codec(self, kept: Kept) -> None:
        path = self.folder / VAE_NAME
        if kept.stage != CODEC and not path.exists():
            raise ContentInvalid(
                f"a checkpoint of {kept.stage}, and no {path}",
                expected="the codec whose latents the transformer learns",
                fix=f"put it back, or remove {self.folder} to begin anew",
            )

    # --- the stages ---------------------------------------------------------------------------

    def _codec(self) -> None:
        torch.manual_seed(self.options.seed)
        vae = new_vae().to(self._device)
        learner = Learner(vae, lambda _, weight: weight.ndim == 4)
        if self._kept is not None:
            learner.restore(self._kept.arrays)
        averaged = copy.deepcopy(vae).requires_grad_(False)

        def loss(pictures: torch.Tensor, rng: random.Random) -> torch.Tensor:
            torch.manual_seed(rng.randrange(2**31))
            return codec_loss(vae, pictures)[0]

        def held_out() -> dict[str, float]:
            learner.load_average(averaged)
            return self._held_out.codec(averaged)

        with self._batches(CODEC) as batches:
            self._loop(
                _CODEC,
                learner,
                draw=lambda step: (
                    None,
                    codec_pictures(batches, step, self._codec_scale, self._device),
                ),
                loss=loss,
                rate=lambda: CODEC_RATE * rate_factor(self.ledger.progress(_CODEC), learner.step),
                held_out=held_out,
            )
        learner.load_average(averaged)
        store_codec(averaged, self._held_out.pictures(), self.folder / VAE_NAME)

    @property
    def _codec_scale(self) -> int:
        """A codec needs no such batches as a transformer does, and its pictures are all new."""
        return max(1, self.options.scale // 4)

    def _flow(self, model: SceneModel, latents: Latents) -> None:
        kept = self._kept
        if kept is not None and kept.stage == TURBO:
            _load(model, under("teacher", kept.arrays))
        learner = Learner(model, is_inner_matrix)
        if kept is not None and kept.stage not in (CODEC, TURBO):
            learner.restore(kept.arrays)
        averaged = copy.deepcopy(model).requires_grad_(False)

        for stage in FLOW:
            if not self.ledger.is_due(stage):
                continue
            self._kept = None
            self.ledger.forget(_TURBO)

            def loss(batch: Any, rng: random.Random, stage: Stage = stage) -> torch.Tensor:
                self._compile(model)
                objective = rng.random() < stage.guided
                return guided_loss(model, batch, rng) if objective else flow_loss(model, batch)

            def held_out(stage: Stage = stage) -> dict[str, float]:
                learner.load_average(averaged)
                return self._held_out.flow(averaged, self.vae, side_of(stage))

            self._loop(
                stage,
                learner,
                draw=self._drawing(stage, latents),
                loss=loss,
                rate=lambda: (
                    FLOW_RATE
                    * self.options.scale**0.2
                    * rate_factor(self.ledger.progress(*FLOW), learner.step)
                ),
                held_out=held_out,
            )
        learner.load_average(averaged)
        _load(model, dict(averaged.named_parameters()))

    def _distil(self, model: SceneModel, latents: Latents) -> None:
        """From the teacher as it will ship, in bfloat16."""
        teaching = short(dict(model.named_parameters()))
        _load(model, teaching)
        torch.manual_seed(self.options.seed)
        student = copy.deepcopy(model).requires_grad_(False)
        add_factors(student.transformer)
        learner = Learner(student)
        if self._kept is not None and self._kept.stage == TURBO:
            learner.restore(under("student", self._kept.arrays))
        averaged = copy.deepcopy(student).requires_grad_(False)

        def held_out() -> dict[str, float]:
            learner.load_average(averaged)
            return self._held_out.turbo(averaged, model, self.vae)

        if self.ledger.is_due(_TURBO):
            self._loop(
                _TURBO,
                learner,
                draw=self._drawing(_TURBO, latents),
                loss=lambda batch, rng: distilled_loss(student, model, batch, rng),
                rate=lambda: TURBO_RATE * rate_factor(self.ledger.progress(_TURBO), learner.step),
                held_out=held_out,
                beside=named("teacher", teaching),
            )
        learner.load_average(averaged)
        self.teacher, self.student = model.eval().requires_grad_(False), averaged.eval()

    def _compile(self, model: SceneModel) -> None:
        used = sum(self.ledger.seconds[stage.name] for stage in FLOW)
        left = sum(map(self.ledger.budget, FLOW)) - used
        is_worth_it = used >= COMPILED_AFTER and left >= COMPILED_FOR
        if self._device.type == "cpu" or self._compiled or not is_worth_it:
            return
        from torch import _dynamo as dynamo

        self._compiled = True
        self._report("the blocks are compiled now")
        # Minutes on a GPU are short: what cannot be compiled is said, and runs as it did before.
        dynamo.config.suppress_errors = True
        compile_blocks(model)

    # --- what they have in common -------------------------------------------------------------

    def _batches(self, stage: str) -> SceneBatches:
        recipe = training_recipe(self.options.seed, stage)
        return SceneBatches(recipe, self._drawings, self.options.workers)

    def _drawing(self, stage: Stage, latents: Latents) -> Callable[[int], tuple[str, Any]]:
        shown = Counter(self.ledger.shown)

        def draw(step: int) -> tuple[str, Any]:
            rng = step_rng(self.options.seed, stage, step)
            shape = stage.shape(rng)
            size = f"{shape.width}x{shape.height}"
            shown[size] += 1
            drawn = latents.take(shape, shown[size] - 1)
            return size, batch_of(drawn, rng, fine=max(shape.width, shape.height) > 192)

        return draw

    def _loop(
        self,
        stage: Stage,
        learner: Learner,
        *,
        draw: Callable[[int], tuple[str | None, Any]],
        loss: Callable[[Any, random.Random], torch.Tensor],
        rate: Callable[[], float],
        held_out: Callable[[], dict[str, float]],
        beside: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Step until the stage's time is used; a checkpoint every minute, and at the end."""
        first = step = self.ledger.steps[stage.name]
        begun = entered = told = saved = self._clock()
        mean: torch.Tensor | None = None
        drawn = _drawn(draw, step, ahead=self._device.type != "cpu")
        with contextlib.closing(drawn):
            while self.ledger.is_due(stage):
                size, batch = next(drawn)
                with precision(self._device):
                    value = loss(batch, step_rng(self.options.seed, stage, -1 - step))
                learner.update(value, rate())
                mean = value.detach() if mean is None else mean.lerp(value.detach(), 0.05)
                now, step = self._clock(), step + 1
                self.ledger.count(stage, now - begun)
                begun = now
                if size is not None:
                    self.ledger.shown[size] += 1
                is_over = not self.ledger.is_due(stage)
                if is_over or step == first + 1 or now - told >= TELL_SECONDS:
                    self._tell(stage, mean, (step - first) / max(now - entered, 1e-9))
                    told = now
                if is_over or now - saved >= SAVE_SECONDS:
                    self._save(stage, learner, mean, held_out, beside)
                    saved = now

    def _tell(self, stage: Stage, mean: torch.Tensor, speed: float) -> None:
        left, minutes = self.ledger.left(), self.options.minutes
        self._report(
            f"{stage.name}: step {self.ledger.steps[stage.name]}, loss {mean.item():.4g}, "
            f"{speed:.2f} steps a second, {_clock_time(left)} of {_clock_time(60 * minutes)} left"
        )

    def _save(
        self,
        stage: Stage,
        learner: Learner,
        mean: torch.Tensor,
        held_out: Callable[[], dict[str, float]],
        beside: dict[str, torch.Tensor] | None,
    ) -> None:
        found = mean.item()
        if not math.isfinite(found):
            raise NonFiniteValues(
                f"at step {self.ledger.steps[stage.name]} of {stage.name} the loss is {found}",
                expected="a number; the last checkpoint is from before",
                fix=f"go on from it with other batches (--scale), or remove {self.folder}",
            )
        arrays = learner.settle()
        if beside is not None:
            arrays = beside | named("student", arrays)
        ledger = self.ledger
        counted: dict[str, dict[str, float]] = {
            "seconds": dict(ledger.seconds),
            "steps": dict(ledger.steps),
            "shown": dict(ledger.shown),
        }
        store(
            self.folder,
            Kept(stage=stage.name, seed=self.options.seed, counted=counted, arrays=arrays),
        )
        line = {
            "stage": stage.name,
            "step": ledger.steps[stage.name],
            "minutes": round(ledger.used() / 60, 2),
            "loss": float(f"{found:.4g}"),
            "held_out": held_out(),
        }
        add_line(self.folder, line)


def is_inner_matrix(name: str, weight: torch.Tensor) -> bool:
    """Of the transformer's blocks and the encoders' layers."""
    inside = any(part in name for part in ("blocks.", "layers.", "block."))
    return inside and weight.ndim == 2


def _load(model: SceneModel, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name])


def _drawn(draw: Callable[[int], Any], first: int, *, ahead: bool) -> Generator[Any, None, None]:
    """What is drawn for each step. On a GPU, one batch is drawn while the one before is trained on;
    on a CPU that would take a second core.
    """
    if not ahead:
        yield from map(draw, count(first))
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, first)
        for step in count(first + 1):
            batch = coming.result()
            coming = thread.submit(draw, step)
            yield batch


def _clock_time(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
