"""Draws and judges. The only file of the study of fitness that runs a model."""

from __future__ import annotations

from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.fitness.entries import REFERENCE, STEPS, Entry
from fresco_trt.bench.evaluator import encode
from fresco_trt.bench.model_runner import ModelRunner
from fresco_trt.bench.plain import judged_scenes
from fresco_trt.bench.scenes.judge import load_judge
from fresco_trt.bench.scenes.pictures import pictures_of, scaled
from fresco_trt.errors import EngineFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import ExitStack

    from torch import Tensor

    from fresco_trt.bench.instrument import Pixels, Scores
    from fresco_trt.bench.model_runner import Setup
    from fresco_trt.tune.perceptual import Network

WARM_UP = Entry(steps=STEPS[-1])

RENDERS_SEED, CHUNK = 77, 50
"""True renders for the distance: which scenes, and how many are held at a time."""


class Evaluator:
    """Draws the scenes of a setup by entries and judges them, the reference among them.

    With a ``network`` every picture has its features too. Raises EngineFailed for an entry that the
    model cannot draw, and what building engines raises.
    """

    def __init__(
        self,
        setup: Setup,
        entries: Iterable[Entry],
        scope: ExitStack,
        network: Network | None = None,
    ) -> None:
        self._runner, self._network = ModelRunner(setup), network
        points = {each.point.name: each.point for each in (REFERENCE, *entries)}
        self._draws, left_out = self._runner.methods(list(points.values()), scope)
        for each in left_out:
            raise EngineFailed(
                f"{each.what}: {each.reason}",
                expected="a model that takes any number of plain steps",
                fix="pass --weights with a pipeline folder of the demo's architecture",
            )

    def step_seconds(self) -> tuple[float, float]:
        """What a step takes: wall seconds, and those of all cores together."""
        case, draw = self._runner.warm_up, self._draws[WARM_UP.point.name]
        inputs = self._runner.encode(case)
        draw(inputs, case.seed)
        wall, cores = perf_counter(), process_time()
        draw(inputs, case.seed)
        wall, cores = perf_counter() - wall, process_time() - cores
        return wall / WARM_UP.steps, cores / WARM_UP.steps

    def line(self, number: int, entries: Iterable[Entry]) -> dict[str, Any]:
        """A scene's line for the log: what was drawn, and by the point's name "right", "ssim" and
        the features of its picture.
        """
        case = self._runner.cases[number]
        names = dict.fromkeys(each.point.name for each in (REFERENCE, *entries))
        inputs = self._runner.encode(case)
        drawn = {name: self._draws[name](inputs, case.seed) for name in names}
        judged, pictures = self._runner.judge(case, drawn, REFERENCE.point.name)
        scores = {
            name: {key: each[key] for key in ("right", "ssim", "features")}
            for name, each in judged.items()
        }
        if self._network is not None:
            _add_features(scores, pictures, self._network)
        return {"caption": case.caption, "seed": case.seed, "scores": scores}


def _add_features(
    scores: Mapping[str, Scores], pictures: Mapping[str, Pixels], network: Network
) -> None:
    found = network.pooled(scaled(np.stack(list(pictures.values()))))
    for name, features in zip(pictures, found, strict=True):
        scores[name]["imagenet"] = encode(features)


def renders(setup: Setup, network: Network | None) -> dict[str, Tensor]:
    """Features [N,D] of true renders that nothing else shows, by their key in scores."""
    judge, (width, height) = load_judge(), setup.size[:2]
    scenes = judged_scenes(setup.renders, RENDERS_SEED)
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for first in range(0, len(scenes), CHUNK):
            setup.progress("true renders", first / len(scenes))
            pictures = pictures_of(scenes[first : first + CHUNK], width, height)
            parts.setdefault("features", []).append(judge.pooled(pictures))
            if network is not None:
                parts.setdefault("imagenet", []).append(network.pooled(pictures))
    return {key: torch.cat(each) for key, each in parts.items()}
