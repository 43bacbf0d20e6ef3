"""The next demo's judge: it looks for each fact that a caption states, one by one.

A network finds objects (where they are, how large, in what paint, and whether something hides a
part of them) and reads texture, colour, light and style off the whole picture. A relation is right
when the two objects are found where it says. A picture's score is the share of its facts that are
right. The network's features serve a Frechet distance to renders, by `fresco_trt.bench.quality`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.bench.scenes.scene import COLOURS
from training.scenes.captions import Fact, is_true
from training.scenes.objects import OBJECTS, STYLES
from training.scenes.scene import LIGHTS, PAINTED, RELATIONS, TEXTURES, Scene

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

WHOLE: dict[str, tuple[str, ...]] = {
    "texture": TEXTURES,
    "colour": tuple(COLOURS),
    "light": LIGHTS,
    "style": STYLES,
}
"""Kinds of facts about the whole picture, and their values."""

PAINTS = (None, *COLOURS)
"""An object's paint, None for its own colours."""

RARER = math.log(PAINTED / (1 - PAINTED) / (len(COLOURS) - 1))
"""How much rarer, in logits, an object of one paint is in scenes than one in its own colours."""

DOUBT = math.log(2)
"""By how much more likely an object's own colours may be than a paint that still counts as right.

A red heart that was painted red looks like any other: a network can only say how often it was.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the network sees in pictures, as logits; cells are of 8x8 pixels.

    ``heat`` [B,N,h,w]: the centre of this object is in this cell. For the object there: ``box``
    [B,3,h,w], its centre in the cell and its side; ``paint`` [B,9,h,w]; ``hidden`` [B,1,h,w].
    ``whole``: one [B,V] for each kind of WHOLE.
    """

    heat: torch.Tensor
    box: torch.Tensor
    paint: torch.Tensor
    hidden: torch.Tensor
    whole: dict[str, torch.Tensor]


class FactJudge(nn.Module):
    """Convolutional network over pictures of one side, for some objects.

    ``side`` is a multiple of 16; other pictures are area-averaged to it.
    """

    def __init__(self, names: Sequence[str] = tuple(OBJECTS), side: int = 128) -> None:
        super().__init__()
        self.names, self.side = tuple(names), side
        self.fine = nn.Sequential(
            *_convolution(3, 32, stride=2), _Block(32, 64, 2), _Block(64, 96, 2), _Block(96, 96, 1)
        )
        self.coarse = nn.Sequential(_Block(96, 128, 2), _Block(128, 128, 1), _Block(128, 128, 1))
        self.merge = nn.Conv2d(128, 96, 1)
        self.mixed = _Block(96, 96, 1)
        self.cells = nn.Conv2d(96, len(self.names) + 3 + len(PAINTS) + 1, 1)
        self.whole = nn.Linear(4 * 128 + 128 + 96, sum(map(len, WHOLE.values())))
        # Nearly every cell is empty of nearly every object.
        nn.init.constant_(self.cells.bias[: len(self.names)], -4.0)  # type: ignore[index]

    def _maps(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.fine(functional.adaptive_avg_pool2d(pictures, self.side))
        return fine, self.coarse(fine)

    def pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [B,256] of pictures [B,3,H,W] in [-1,1], for Frechet distances."""
        _, coarse = self._maps(pictures)
        return torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=1)

    def forward(self, pictures: torch.Tensor) -> Seen:
        """What is seen in pictures [B,3,H,W] in [-1,1]."""
        fine, coarse = self._maps(pictures)
        mixed = self.mixed(fine + functional.interpolate(self.merge(coarse), scale_factor=2))
        parts = (len(self.names), 3, len(PAINTS), 1)
        heat, box, paint, hidden = self.cells(mixed).split(parts, dim=1)
        # A light is told by where it is bright, so the quarters stay apart.
        quarters = functional.adaptive_avg_pool2d(coarse, 2).flatten(1)
        pooled = torch.cat([quarters, coarse.amax(dim=(2, 3)), fine.mean(dim=(2, 3))], dim=1)
        values = self.whole(pooled).split([len(v) for v in WHOLE.values()], dim=1)
        whole = dict(zip(WHOLE, values, strict=True))
        return Seen(heat=heat, box=box, paint=paint, hidden=hidden, whole=whole)


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(inputs, outputs, stride=stride))
        self.second = nn.Sequential(*_convolution(outputs, outputs, stride=1)[:2])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(values)) + self.shortcut(values))


def _convolution(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object that the network found: its square, its paint, and how surely it is hidden."""

    x: float
    y: float
    side: float
    paint: str | None
    hidden: float


@torch.no_grad()
def verdicts(
    judge: FactJudge, pictures: torch.Tensor, stated: Sequence[Iterable[Fact]]
) -> list[list[bool]]:
    """Which of the facts stated of each picture [B,3,H,W] in [-1,1] are right.

    Raises ValueError for a fact of an object that the judge does not know.
    """
    seen = _fetched(judge(pictures))
    return [
        [_is_seen(fact, seen, i, judge.names) for fact in facts] for i, facts in enumerate(stated)
    ]


def _fetched(seen: Seen) -> Seen:
    # Facts read single values, and a GPU would be waited for at each.
    whole = {kind: values.cpu() for kind, values in seen.whole.items()}
    parts = (seen.heat, seen.box, seen.paint, seen.hidden)
    heat, box, paint, hidden = (part.cpu() for part in parts)
    return Seen(heat=heat, box=box, paint=paint, hidden=hidden, whole=whole)


def score(verdict: Sequence[bool]) -> float | None:
    """Share of a picture's facts that are right; None for a caption that states none."""
    return sum(verdict) / len(verdict) if verdict else None


def _is_seen(fact: Fact, seen: Seen, index: int, names: tuple[str, ...]) -> bool:
    if fact.kind in WHOLE:
        value = WHOLE[fact.kind].index(fact.says[0])
        return seen.whole[fact.kind][index].argmax().item() == value
    found = {name: _found(seen, index, names.index(name)) for name in _named(fact)}
    first = found[fact.says[0]]
    if first is None:
        return False
    if fact.kind == "paint":
        return first.paint == fact.says[1]
    if fact.kind == "relation":
        second = found[fact.says[2]]
        return second is not None and _stand(first, fact.says[1], second)
    return True


def _named(fact: Fact) -> tuple[str, ...]:
    """Objects that a fact is about."""
    return (fact.says[0], fact.says[2]) if fact.kind == "relation" else fact.says[:1]


def _found(seen: Seen, index: int, object_index: int) -> Found | None:
    """An object in its most likely cell, where that is more likely than not to hold it."""
    heat = seen.heat[index, object_index]
    rows, columns = heat.shape
    row, column = divmod(int(heat.argmax()), columns)
    if heat[row, column] <= 0:
        return None
    paint = seen.paint[index, :, row, column].clone()
    paint[0] += RARER - DOUBT
    dx, dy, side = seen.box[index, :, row, column].sigmoid().tolist()
    return Found(
        x=(column + dx) / columns,
        y=(row + dy) / rows,
        side=side,
        paint=PAINTS[int(paint.argmax())],
        hidden=seen.hidden[index, 0, row, column].item(),
    )


def _stand(first: Found, relation: str, second: Found) -> bool:
    """Whether two objects stand as a relation says, by half the distance that captions ask for."""
    if relation in ("right of", "below", "behind"):
        return _stand(second, RELATIONS[relation], first)
    across, down = second.x - first.x, second.y - first.y
    reach, least = (first.side + second.side) / 2, min(first.side, second.side)
    if relation == "in front of":
        return math.hypot(across, down) < 0.9 * reach and first.hidden < second.hidden
    return (across if relation == "left of" else down) >= (reach - least / 4) / 2


def contrary(fact: Fact, scene: Scene, names: Sequence[str], rng: random.Random) -> Fact:
    """A fact of the same kind about the same things that is not true of a scene.

    In place of an object it names one of ``names`` that is not there.
    """
    if fact.kind == "relation":
        first, relation, second = fact.says
        return Fact("relation", (first, RELATIONS[relation], second))
    values = {"object": tuple(names), "paint": tuple(COLOURS), **WHOLE}[fact.kind]
    others = (Fact(fact.kind, (*fact.says[:-1], value)) for value in values)
    return rng.choice([other for other in others if not is_true(other, scene)])
