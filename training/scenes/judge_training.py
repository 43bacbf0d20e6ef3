"""Training of the judge of facts on renders, and how often it is right on held-out ones."""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fresco_trt.errors import IncompatibleOptions, QualityTooLow
from fresco_trt.files.atomic_file import replacing, store_json
from training.scenes.batches import Recipe, SceneBatches
from training.scenes.judge import PAINTS, WHOLE, FactJudge, Seen, contrary, verdicts
from training.scenes.objects import OBJECTS
from training.scenes.scene import APART, relations_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from training.scenes.captions import Captioned
    from training.scenes.render import Drawings

GOOD = 0.98
"""Share of facts on held-out renders, half of them untrue, that a judge has to be right about."""

RATE, DECAY = 2e-3, 0.02
SAVE_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """What a judge is trained for and with: the first ``objects`` there are, at ``side`` pixels.

    ``minutes`` counts all resumed parts together.
    """

    objects: int = len(OBJECTS)
    side: int = 128
    batch: int = 64
    minutes: float = 10
    workers: int = 0
    device: str = "cpu"
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The objects that the judge knows."""
        return tuple(OBJECTS)[: self.objects]

    @property
    def fixed(self) -> dict[str, object]:
        """What a checkpoint is of, which resuming must agree with."""
        return {name: getattr(self, name) for name in ("objects", "side", "batch", "seed")}


class JudgeRun:
    """A judge in training that goes on from its last checkpoint.

    Raises IncompatibleOptions where the checkpoint is of other options.
    """

    def __init__(self, options: JudgeOptions, work: Path) -> None:
        torch.manual_seed(options.seed)
        self.options, self.path = options, work / "judge.pt"
        self.judge = FactJudge(options.names, options.side).to(options.device)
        self.optimiser = torch.optim.AdamW(self.judge.parameters(), RATE, weight_decay=DECAY)
        self.step, self.elapsed = 0, 0.0
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.path, map_location=self.options.device, weights_only=True)
        if state["fixed"] != self.options.fixed:
            differing = [k for k, v in self.options.fixed.items() if state["fixed"].get(k) != v]
            told = ", ".join(f"{k} {state['fixed'].get(k)}" for k in differing)
            raise IncompatibleOptions(
                f"{self.path} was begun with {told}",
                expected=", ".join(f"{k} {self.options.fixed[k]}" for k in differing),
                fix="pass what it was begun with, or another --work",
            )
        self.judge.load_state_dict(state["judge"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write a checkpoint that replaces the last one."""
        state = {
            "fixed": self.options.fixed,
            "judge": self.judge.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        with replacing(self.path) as partial:
            torch.save(state, partial)

    @property
    def progress(self) -> float:
        """Share of the time budget that is used."""
        return min(1.0, self.elapsed / (60 * self.options.minutes))

    def train(self, drawings: Drawings, report: Callable[[str], None]) -> None:
        """Step until the time budget is used."""
        recipe = Recipe(seed=self.options.seed * 1_000_003 + self.step, names=self.options.names)
        generator = torch.Generator().manual_seed(recipe.seed)
        options = self.options
        with SceneBatches(recipe, drawings, options.workers) as batches:
            begun = saved = time.monotonic()
            while self.progress < 1:
                drawn, pictures = batches.take(
                    options.batch, options.side, options.side, options.device
                )
                loss = self._update(disturbed(pictures, generator), drawn)
                self.step += 1
                now = time.monotonic()
                self.elapsed, begun = self.elapsed + now - begun, now
                if self.step % 50 == 0:
                    report(f"judge {self.step} {self.progress:.3f} loss {loss.item():.4f}")
                if now - saved > SAVE_SECONDS or self.progress >= 1:
                    self.save()
                    saved = now

    def _update(self, pictures: torch.Tensor, drawn: Sequence[Captioned]) -> torch.Tensor:
        self.judge.train()
        # Warm for a hundred steps, then a half cosine over the budget.
        rate = RATE * min(1.0, (self.step + 1) / 100) * (1 + math.cos(math.pi * self.progress)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = fact_loss(self.judge(pictures), drawn, self.options.names)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), 5.0)
        self.optimiser.step()
        return loss.detach()


def disturbed(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures [B,3,H,W] as a model may draw them: some a little noisy, some a little blurred."""
    count = len(pictures)
    share = torch.rand(count, 1, 1, 1, generator=generator).to(pictures)
    noise = torch.randn(pictures.shape, generator=generator).to(pictures)
    blurred = functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    blur = (2 * torch.rand(count, 1, 1, 1, generator=generator).to(pictures) - 1).clamp(0, 1)
    return pictures.lerp(blurred, blur) + 0.08 * share * noise


def fact_loss(seen: Seen, drawn: Sequence[Captioned], names: Sequence[str]) -> torch.Tensor:
    """What the judge has to learn of scenes, all parts added up.

    Centres by the focal loss of CenterNet (Zhou et al. 2019), without its Gaussian: the cells
    around a centre count neither way.
    """
    device, (rows, columns) = seen.heat.device, seen.heat.shape[2:]
    at: list[tuple[int, int, int, int]] = []
    boxes, paints, hidden = [], [], []
    for i, each in enumerate(drawn):
        relations = relations_of(each.scene)
        behind = {back for _, relation, back in relations if relation == "in front of"}
        for item in each.scene.items:
            row, column = int(item.y * rows), int(item.x * columns)
            at.append((i, names.index(item.name), row, column))
            boxes.append((item.x * columns - column, item.y * rows - row, item.side))
            paints.append(PAINTS.index(item.paint))
            hidden.append(float(item.name in behind))
    centres = torch.tensor(at, device=device).T
    picture, _, row_of, column_of = centres
    box, paint, covered = (
        part[picture, :, row_of, column_of] for part in (seen.box, seen.paint, seen.hidden)
    )
    loss = _focal(seen.heat, centres)
    loss = loss + 4 * functional.smooth_l1_loss(
        box.sigmoid(), torch.tensor(boxes, device=device), beta=0.1
    )
    loss = loss + functional.cross_entropy(paint, torch.tensor(paints, device=device))
    loss = loss + functional.binary_cross_entropy_with_logits(
        covered[:, 0], torch.tensor(hidden, device=device)
    )
    for kind, logits in seen.whole.items():
        values = [_whole_value(kind, each) for each in drawn]
        loss = loss + functional.cross_entropy(logits, torch.tensor(values, device=device))
    return loss


def _focal(heat: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Loss of ``heat`` [B,N,h,w]; ``centres`` [4,M] are picture, object, row and column."""
    picture, index, row, column = centres
    wanted, counts = torch.zeros_like(heat), torch.ones_like(heat)
    rows, columns = heat.shape[2:]
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            near = (row + down).clamp(0, rows - 1), (column + across).clamp(0, columns - 1)
            counts[(picture, index, *near)] = 0
    # The few centres weigh four times as much, or a judge that sees nothing does well for long.
    wanted[picture, index, row, column], counts[picture, index, row, column] = 1, 4
    entropy = functional.binary_cross_entropy_with_logits(heat, wanted, reduction="none")
    away = (heat.sigmoid() - wanted).abs()
    return (counts * away.square() * entropy).sum() / len(row)


def _whole_value(kind: str, each: Captioned) -> int:
    scene = each.scene
    values = {
        "texture": scene.backdrop.texture,
        "colour": scene.backdrop.colour,
        "light": scene.light,
        "style": scene.style,
    }
    return WHOLE[kind].index(values[kind])


def held_out_accuracy(
    judge: FactJudge, drawings: Drawings, count: int, device: str = "cpu", seed: int = 987
) -> dict[str, float]:
    """Share of facts judged right on ``count`` fresh renders, by kind and (``all``) of all kinds.

    For each fact of a full caption there is a contrary one, which has to be judged wrong. Half of
    the scenes have a pair that was kept apart.
    """
    judge.eval()
    rng, right = random.Random(seed), defaultdict[str, list[bool]](list)
    kinds = [kind for other in APART for kind in (None, other)]
    for index, apart in enumerate(kinds):
        recipe = Recipe(seed=seed + index, names=judge.names, apart=apart, detail=1.0)
        with SceneBatches(recipe, drawings) as batches:
            drawn, pictures = batches.take(-(-count // len(kinds)), judge.side, judge.side, device)
        untrue = [
            [contrary(fact, each.scene, judge.names, rng) for fact in each.facts] for each in drawn
        ]
        stated = [each.facts for each in drawn]
        for facts, yes, no in zip(
            stated,
            verdicts(judge, pictures, stated),
            verdicts(judge, pictures, untrue),
            strict=True,
        ):
            for fact, held, misled in zip(facts, yes, no, strict=True):
                right[fact.kind] += [held, not misled]
    every = [verdict for kind in right.values() for verdict in kind]
    return {kind: sum(v) / len(v) for kind, v in sorted({**right, "all": every}.items())}


def train_judge(
    options: JudgeOptions,
    drawings: Drawings,
    work: Path,
    report: Callable[[str], None] = print,
    renders: int = 1200,
) -> dict[str, float]:
    """Train a judge until its time is used, and keep it in ``work`` if it is good.

    Writes ``judge.json``, how often it is right on ``renders`` held-out pictures, and, from GOOD
    on, ``judge.safetensors`` in float16. Raises QualityTooLow below; more minutes go on from there.
    """
    from safetensors.torch import save_file

    run = JudgeRun(options, work)
    run.train(drawings, report)
    accuracy = held_out_accuracy(run.judge, drawings, renders, options.device)
    report(json.dumps(accuracy))
    minutes = round(run.elapsed / 60, 2)
    record = {**options.fixed, "steps": run.step, "minutes": minutes, "renders": renders}
    store_json({**record, "right": accuracy}, work / "judge.json")
    if accuracy["all"] < GOOD:
        raise QualityTooLow(
            f"{accuracy['all']:.1%} of facts on held-out renders are judged right",
            expected=f"{GOOD:.0%}, so no weights are kept",
            fix="train on with more --minutes",
        )
    weights = {
        k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
        for k, v in run.judge.state_dict().items()
    }
    with replacing(work / "judge.safetensors") as partial:
        save_file(weights, partial, {"objects": str(options.objects), "side": str(options.side)})
    return accuracy


def load_judge(path: Path) -> FactJudge:
    """A judge whose weights were kept, in evaluation mode."""
    from safetensors import safe_open

    with safe_open(path, "pt") as kept:
        facts = kept.metadata()
        judge = FactJudge(tuple(OBJECTS)[: int(facts["objects"])], int(facts["side"]))
        # Counters of the normalisation are whole numbers, and take them as they are.
        judge.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
    return judge.eval()
