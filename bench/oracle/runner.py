"""The oracle's instrument: the exact flow over encoded scenes, drawn by the same sampler and plans.

Its seconds are not a transformer's, so speed is counted in FLOPs alone; a picture counts as right
if its nearest scene is that of the 50-step picture of the same seed.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bench.oracle.flow import OraclePatchifier, SceneSet, nearest, oracle_runners
from fresco_trt.bench.engines import plan_method
from fresco_trt.bench.evaluator import Evaluator
from fresco_trt.bench.instrument import Case, LeftOut, said
from fresco_trt.bench.plain import MODEL, Plain, judged_scenes
from fresco_trt.bench.scenes.pictures import pixels_of
from fresco_trt.bench.scenes.scene import scene_of
from fresco_trt.errors import FrescoError
from fresco_trt.models.flux.components import FluxEncoder
from fresco_trt.models.registry import family_of
from fresco_trt.plan.config import NONE
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.run.denoise import Denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    from fresco_trt.bench.instrument import Draw, Drawn, Pixels, Scores
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.model_runner import Setup
    from fresco_trt.bench.scenes.scene import Scene

SEEDS = 8
"""Cases that share a caption, and so its set of scenes."""


class OracleRunner:
    """Draws from the exact flow; an :class:`~fresco_trt.bench.instrument.Instrument`.

    ``members`` is how many scenes a caption has. The demo's renders and codec are what it encodes,
    so ``setup`` must be the demo's.
    """

    timed = False

    def __init__(self, setup: Setup, members: int) -> None:
        if setup.facts.name != MODEL:
            raise ValueError(f"an oracle of {setup.facts.name}; expected {MODEL}: it has renders")
        self._encoder = FluxEncoder(setup.pipeline)
        self._setup, self._members = setup, members
        decoder = family_of(setup.facts).components.decoder(setup.pipeline)
        self._evaluator = Evaluator(decoder, judged=True)
        self._captions = judged_scenes(-(-setup.scenes // SEEDS), setup.scenes_seed)

    @property
    def cases(self) -> Sequence[Case]:
        """The captions in turn, each time with another seed."""
        captions = [scene.caption for scene in self._captions]
        return [
            Case(number=number, caption=captions[number % len(captions)], seed=number)
            for number in range(self._setup.scenes)
        ]

    @property
    def warm_up(self) -> Case:
        """The first caption with a seed that no case has."""
        return Case(number=-1, caption=self._captions[0].caption, seed=10**6)

    @cached_property
    def _sets(self) -> list[SceneSet]:
        return [self._encoded(scene, index) for index, scene in enumerate(self._captions)]

    def _encoded(self, scene: Scene, index: int) -> SceneSet:
        """The latents of as many layouts of what a scene's caption says."""
        self._setup.progress("encoding scenes", index / len(self._captions))
        rng = random.Random(index)
        names = [placement.name for placement in scene.placements]
        layouts = [
            scene_of(names, scene.background.colour, scene.background.pattern, rng)
            for _ in range(self._members)
        ]
        width, height = self._setup.size[:2]
        parts = [
            self._encoder(pixels_of(layouts[first : first + 8], width, height))
            for first in range(0, len(layouts), 8)
        ]
        return SceneSet(torch.cat(parts))

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        """What draws, by the point's name: every point that is a plan, and the plain sampler."""
        found: dict[str, Draw] = {}
        left_out: list[LeftOut] = []
        for point in points:
            settings = _plan_settings(point)
            if isinstance(settings, str):
                left_out.append(LeftOut(what=point.name, reason=settings))
                continue
            try:
                found[point.name] = self._method(settings, scope)
            except FrescoError as error:
                left_out.append(LeftOut(what=point.name, reason=said(error)))
        return found, left_out

    def _method(self, settings: Preset, scope: ExitStack) -> Draw:
        facts, size = self._setup.facts, self._setup.size
        plan = plan_from_preset(facts, settings, size=size)
        runners = {
            name: scope.enter_context(runner)
            for name, runner in oracle_runners(plan, self._sets).items()
        }
        return plan_method(
            Denoiser(facts=facts, plan=plan, runners=runners, patchifier=OraclePatchifier())
        )

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        """Which caption's scenes are meant."""
        return {"caption": torch.tensor([self._set_of(case)])}

    def _set_of(self, case: Case) -> int:
        return max(case.number, 0) % len(self._sets)

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Scores], dict[str, Pixels]]:
        """Scores and pictures; "right" is whether the nearest scene is that of the reference."""
        scenes = self._sets[self._set_of(case)].latents.flatten(1)
        found = {
            name: int(nearest(each.latents.flatten(1), scenes)) for name, each in drawn.items()
        }
        return self._evaluator.scores(
            drawn, reference, lambda name, _: found[name] == found[reference]
        )

    def real_features(self) -> Tensor | None:
        """Features [N,D] of all scenes there are, passed through the codec as drawings are."""
        looked = [self._evaluator.look(each.latents.float()) for each in self._sets]
        return torch.cat([self._evaluator.features(pictures) for pictures in looked])

    def facts(self) -> dict[str, Any]:
        """For the document: what is known and what a score is."""
        return {
            "instrument": "oracle",
            "score": "share of pictures whose nearest scene is that of the plain pipeline's",
            "captions": len(self._captions),
            "scenes_of_a_caption": self._members,
        }


_NO_FEATURES = "the oracle has no transformer blocks whose features could be cached"


def _plan_settings(point: Point) -> Preset | str:
    """The plan's preset that a point comes to, or why there is none."""
    settings = point.settings
    if isinstance(settings, Preset):
        return settings if settings.cache.name == NONE else _NO_FEATURES
    if not isinstance(settings, Plain):
        return _NO_FEATURES
    if point.method == "plain":
        return Preset(steps=(settings.steps,))
    return "diffusers' pipeline runs a transformer; the engine variant takes the same steps"
