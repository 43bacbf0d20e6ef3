"""The demo's classifier: it says what a picture shows, and gives the features of distances.

A picture is right when every object its caption names is seen, and the background's colour and
pattern are the named ones. The score of a set is the share of right pictures. The classifier's
pooled features give a Frechet distance to real renders (Heusel et al. 2017, with these features in
place of Inception's), so that a picture may differ from a reference and still count as good.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.bench.scenes.pictures import pictures_of
from fresco_trt.bench.scenes.scene import COLOURS, OBJECTS, PATTERNS, Scene, random_scene

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE = 64
"""Pictures are area-averaged to this side before they are judged."""

WIDTHS, STRIDES = (32, 64, 96, 112), (2, 2, 2, 1)


class Judge(nn.Module):
    """Convolutional classifier: which objects, which background colour, which pattern."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *WIDTHS)
        stages = [
            layer
            for i in range(len(WIDTHS))
            for layer in (
                *_convolution(widths[i], widths[i + 1], stride=STRIDES[i]),
                *_convolution(widths[i + 1], widths[i + 1], stride=1),
            )
        ]
        self.trunk = nn.Sequential(*stages)
        self.features = 2 * WIDTHS[-1]
        self.head = nn.Linear(self.features, len(OBJECTS) + len(COLOURS) + len(PATTERNS))

    def pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [B,224] of pictures [B,3,H,W] in [-1,1]: spatial mean and maximum."""
        small = functional.adaptive_avg_pool2d(pictures, SIDE)
        maps = self.trunk(small)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits: objects [B,24] (independent), colours [B,8], patterns [B,4]."""
        logits = self.head(self.pooled(pictures))
        parts = (len(OBJECTS), len(COLOURS), len(PATTERNS))
        split: tuple[torch.Tensor, ...] = logits.split(parts, dim=1)
        return split


def _convolution(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge made of one picture, against its caption."""

    objects: bool
    colour: bool
    pattern: bool

    @property
    def right(self) -> bool:
        """Every claim of the caption holds."""
        return self.objects and self.colour and self.pattern


@torch.no_grad()
def verdicts(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> list[Verdict]:
    """Judge pictures [B,3,H,W] in [-1,1] against the captions of `scenes`; layout is free."""
    seen, colours, patterns = judge(pictures)
    names, tones = list(OBJECTS), list(COLOURS)
    return [
        Verdict(
            objects=all(seen[i, names.index(p.name)] > 0 for p in scene.placements),
            colour=colours[i].argmax().item() == tones.index(scene.background.colour),
            pattern=patterns[i].argmax().item() == PATTERNS.index(scene.background.pattern),
        )
        for i, scene in enumerate(scenes)
    ]


@torch.no_grad()
def confidences(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> list[float]:
    """How sure the judge is of all claims of each caption: the product of their probabilities."""
    seen, colours, patterns = judge(pictures)
    objects, tones, kinds = seen.sigmoid(), colours.softmax(dim=1), patterns.softmax(dim=1)
    names, hues = list(OBJECTS), list(COLOURS)
    return [
        float(
            math.prod(objects[i, names.index(p.name)].item() for p in scene.placements)
            * tones[i, hues.index(scene.background.colour)].item()
            * kinds[i, PATTERNS.index(scene.background.pattern)].item()
        )
        for i, scene in enumerate(scenes)
    ]


def load_judge() -> Judge:
    """The bundled classifier, in evaluation mode."""
    from safetensors.torch import load_file

    path = resources.files("fresco_trt.bench.scenes").joinpath("judge.safetensors")
    judge = Judge()
    weights = {
        k: v.float() if v.is_floating_point() else v for k, v in load_file(str(path)).items()
    }
    judge.load_state_dict(weights)
    return judge.eval()


def held_out_accuracy(judge: Judge, count: int, seed: int = 987) -> float:
    """Share of fresh 256 px renders that are judged right in every claim."""
    rng = random.Random(seed)
    right = 0
    for _ in range(0, count, 50):
        scenes = [random_scene(rng, held_out=rng.random() < 0.5) for _ in range(50)]
        right += sum(v.right for v in verdicts(judge, pictures_of(scenes, 256), scenes))
    return right / count
