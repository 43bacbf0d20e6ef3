"""The second instrument: the exact flow over encoded scenes, drawn by the same sampler and plans.

Its seconds are not a transformer's, so speed is counted in FLOPs alone; a picture counts as right
if its nearest scene is that of the 50-step picture of the same seed. What the flow is:
:mod:`fresco_trt.bench.oracle`.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fresco_trt.bench.engines import plan_method
from fresco_trt.bench.eye import Eye
from fresco_trt.bench.instrument import Case, Skipped, said
from fresco_trt.bench.oracle import OracleLayout, SceneSet, nearest, oracle_runners
from fresco_trt.bench.plain import MODEL, Plain, judged_scenes
from fresco_trt.errors import FrescoError
from fresco_trt.plan.caching import NONE
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    from fresco_trt.bench.instrument import Draw, Drawn, Marks, Pixels
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.studio import Setting
    from fresco_trt.demo.scenes import Scene

SEEDS = 8
"""Cases that share a caption, and so its set of scenes."""


class OracleStudio:
    """Draws from the exact flow; an :class:`~fresco_trt.bench.instrument.Instrument`.

    ``members`` is how many scenes a caption has. The demo's renders and codec are what it encodes,
    so ``setting`` must be the demo's.
    """

    timed = False

    def __init__(self, setting: Setting, members: int) -> None:
        if setting.facts.name != MODEL:
            raise ValueError(f"an oracle of {setting.facts.name}; expected {MODEL}: it has renders")
        self._setting, self._members = setting, members
        self._eye = Eye(setting.pipeline, judged=True)
        self._captions = judged_scenes(-(-setting.scenes // SEEDS), setting.scenes_seed)

    @property
    def cases(self) -> Sequence[Case]:
        """The captions in turn, each time with another seed."""
        captions = [scene.caption for scene in self._captions]
        return [
            Case(number=number, caption=captions[number % len(captions)], seed=number)
            for number in range(self._setting.scenes)
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
        from fresco_trt.demo.batches import pictures_of
        from fresco_trt.demo.scenes import scene_of
        from fresco_trt.demo.vae import latents_of

        self._setting.progress("encoding scenes", index / len(self._captions))
        rng = random.Random(index)
        names = [placement.name for placement in scene.placements]
        layouts = [
            scene_of(names, scene.background.colour, scene.background.pattern, rng)
            for _ in range(self._members)
        ]
        width, height = self._setting.size
        parts = [
            latents_of(self._vae, pictures_of(layouts[first : first + 8], width, height))
            for first in range(0, len(layouts), 8)
        ]
        return SceneSet(torch.cat(parts))

    @cached_property
    def _vae(self) -> Any:
        import diffusers

        untyped: Any = diffusers
        return untyped.AutoencoderKL.from_pretrained(
            self._setting.pipeline / "vae", low_cpu_mem_usage=False
        ).eval()

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[Skipped]]:
        """What draws, by the point's name: every point that is a plan, and the plain sampler."""
        found: dict[str, Draw] = {}
        skipped: list[Skipped] = []
        for point in points:
            recipe = _plan_recipe(point)
            if isinstance(recipe, str):
                skipped.append(Skipped(what=point.name, reason=recipe))
                continue
            try:
                found[point.name] = self._method(recipe, scope)
            except FrescoError as error:
                skipped.append(Skipped(what=point.name, reason=said(error)))
        return found, skipped

    def _method(self, recipe: Preset, scope: ExitStack) -> Draw:
        facts, size = self._setting.facts, self._setting.size
        plan = plan_from_preset(facts, recipe, size=size)
        runners = {
            name: scope.enter_context(runner)
            for name, runner in oracle_runners(plan, self._sets).items()
        }
        return plan_method(plan, facts, runners, OracleLayout(), "cpu")

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        """Which caption's scenes are meant."""
        return {"caption": torch.tensor([self._set_of(case)])}

    def _set_of(self, case: Case) -> int:
        return max(case.number, 0) % len(self._sets)

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Marks], dict[str, Pixels]]:
        """Marks and pictures; "right" is whether the nearest scene is that of the reference."""
        scenes = self._sets[self._set_of(case)].latents.flatten(1)
        found = {
            name: int(nearest(each.latents.flatten(1), scenes)) for name, each in drawn.items()
        }
        return self._eye.marks(drawn, reference, lambda name, _: found[name] == found[reference])

    def real_features(self) -> Tensor | None:
        """Features [N,D] of all scenes there are, passed through the codec as drawings are."""
        looked = [self._eye.look(each.latents.float()) for each in self._sets]
        return torch.cat([self._eye.features(pictures) for pictures in looked])

    def facts(self) -> dict[str, Any]:
        """For the document: what is known and what a score is."""
        return {
            "score": "share of pictures whose nearest scene is that of the plain pipeline's",
            "captions": len(self._captions),
            "scenes_of_a_caption": self._members,
        }


_NO_FEATURES = "the oracle has no transformer blocks whose features could be cached"


def _plan_recipe(point: Point) -> Preset | str:
    """The plan's preset that a point comes to, or why there is none."""
    recipe = point.recipe
    if isinstance(recipe, Preset):
        return recipe if recipe.cache.name == NONE else _NO_FEATURES
    if not isinstance(recipe, Plain):
        return _NO_FEATURES
    if point.method == "plain":
        return Preset(steps=(recipe.steps,))
    return "diffusers' pipeline runs a transformer; the engine variant takes the same steps"
