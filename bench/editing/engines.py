"""What draws an edit by a preset: static engines shared by all points, and what is around them.

What every point needs alike is made once for each edit and is not timed: the prompt encoded, the
source drawn and encoded. Everything else of a request is: noise, steps, transitions, and finding
out what the edit touches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fresco_trt.bench.engines import EnginePool, signatures_of
from fresco_trt.bench.model_runner import AMAX_PRESET, AMAX_PROMPTS, CALIBRATION_SEED
from fresco_trt.bench.scenes.edit_judge import judged_edits
from fresco_trt.bench.scenes.render import render
from fresco_trt.models.registry import family_of
from fresco_trt.pipelines.drawing import Picture, Run
from fresco_trt.pipelines.edit import source_latents
from fresco_trt.pipelines.selective import EditWarning
from fresco_trt.plan.cost import stage_flops
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from torch.nn import Module

    from bench.editing.points import EditPoint
    from fresco_trt.backends.base import Backend, Progress
    from fresco_trt.bench.scenes.edits import Edit
    from fresco_trt.lower.quantize.qdq import Quantizer
    from fresco_trt.pipelines.drawing import Drawn, OnStage
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan

Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An edit as engines take it."""

    edit: Edit
    source: Image.Image
    conditioning: Conditioning


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What became of an edit: pixels uint8 [H,W,3], wall seconds of denoising, those inside
    engines, FLOPs (None where nobody counts), the last stage that was drawn, from 1, and the mask
    that was found, bool [H,W].
    """

    pixels: Pixels
    seconds: float
    engine_seconds: float | None
    flops: float | None
    stage: int | None = None
    mask: npt.NDArray[np.bool_] | None = None


Draw: TypeAlias = Callable[[Prepared, int], Made]


class Engines:
    """Engines of a model over its pipeline folder, and the encoders and decoder around them.

    ``plans`` of the points are made when it is: raises what making them raises.
    """

    def __init__(
        self,
        facts: ModelFacts,
        folder: Path,
        library: Backend,
        size: Size,
        points: Sequence[EditPoint],
    ) -> None:
        components = family_of(facts).components
        self.facts, self.folder, self.library, self.size = facts, folder, library, size
        self.plans = {
            point.name: plan_from_preset(facts, point.preset, size=size)
            for point in points
            if point.preset is not None
        }
        self._recipes = {point.name: point.quant for point in points}
        self._prompt = components.prompt_encoder(folder, facts.text_tokens)
        self._encode = components.encoder(folder)
        self.decode = components.decoder(folder)
        self._denoisers: dict[str, Denoiser] = {}

    def draws(self, built: Path, scope: ExitStack, progress: Progress) -> dict[str, Draw]:
        """What draws, by the point's name, on engines that are built in a folder, those of each
        recipe in one of their own.
        """
        facts = self.facts
        for recipe in dict.fromkeys(self._recipes.values()):
            plans = {
                name: plan for name, plan in self.plans.items() if self._recipes[name] == recipe
            }
            pool = EnginePool(facts, self.library, built / (recipe or "unquantised"), scope)
            signatures = signatures_of(facts, plans.values())
            if not pool.has(signatures):
                quantizer = None if recipe is None else self._quantizer(recipe, progress)
                pool.build(signatures, self.transformer(), progress, quantizer)
            for name, plan in plans.items():
                self._denoisers[name] = Denoiser.of(
                    facts,
                    plan,
                    pool.runners(plan),
                    text_tokens=facts.text_tokens,
                    device=pool.device,
                    features=None if plan.edit is None else self.decode.features,
                )
        return {name: self.previewed(name, None) for name in self.plans}

    def _quantizer(self, recipe: str, progress: Progress) -> Quantizer:
        """Of amax that are measured as a build does, on edits that nothing is measured on, by a
        preset that walks every grid: once for all plans on them.
        """
        from fresco_trt.lower.calibrate.amax import measure_amax
        from fresco_trt.lower.calibrate.basis import Reference
        from fresco_trt.lower.quantize.qdq import Quantizer
        from fresco_trt.models.weights import weights_digest

        facts, edits = self.facts, judged_edits(AMAX_PROMPTS, CALIBRATION_SEED)
        preset = find_preset(facts, AMAX_PRESET, max(facts.stage_counts))
        transformer = self.transformer()
        reference = Reference(
            facts=facts,
            transformer=transformer,
            weights_sha256=weights_digest(transformer),
            pipeline=self.folder,
            prompts=tuple(edit.instruction for edit in edits),
            pictures=tuple(Image.fromarray(render(edit.source, *self.size[:2])) for edit in edits),
        )
        plan = plan_from_preset(facts, preset, size=self.size)
        found = measure_amax(reference, plan, RECIPES[recipe], facts.high_precision, progress)
        return Quantizer(recipe=RECIPES[recipe], amax=found)

    def transformer(self) -> Module:
        """The model's, a new one each time."""
        return family_of(self.facts).weights.load(self.folder, self.facts)

    def prepared(self, edit: Edit) -> Prepared:
        """The prompt and the source of an edit, encoded; the guidance is the model's own."""
        source = Image.fromarray(render(edit.source, *self.size[:2]))
        inputs = self._prompt(edit.instruction, source)
        if self.facts.guidance_default is not None:
            inputs["guidance"] = torch.tensor([self.facts.guidance_default])
        latents = source_latents(self._encode, source)
        given = Conditioning(inputs=inputs, references=(latents,))
        return Prepared(edit=edit, source=source, conditioning=given)

    def coded(self, edit: Edit) -> Pixels:
        """The true target through the codec, which no edit of these engines can be better than."""
        pixels = render(edit.target, *self.size[:2])[None].copy()
        decoded: Pixels = self.decode(self._encode(pixels))[0]
        return decoded

    def previewed(self, name: str, on_stage: OnStage | None) -> Draw:
        """What draws by a point; ``on_stage`` gets its drafts, apart from what is timed."""
        denoiser = self._denoisers[name]

        def draw(prepared: Prepared, seed: int) -> Made:
            picture = Picture(
                conditioning=prepared.conditioning,
                seed=seed,
                on_stage=on_stage,
                source=prepared.source,
            )
            run = Run(denoiser=denoiser, decoder=self.decode, pictures=[picture], batch=1)
            with warnings.catch_warnings():
                # Of edits that touch nothing or everything: the rows count these.
                warnings.simplefilter("ignore", EditWarning)
                return _made(self.facts, denoiser.plan, run.drawn(None))

        return draw


def _made(facts: ModelFacts, plan: StagePlan, drawn: Drawn) -> Made:
    (image,) = drawn.images
    if image is None:
        raise ValueError("a picture that was cancelled; expected none: nobody cancels")
    return Made(
        pixels=np.asarray(image),
        seconds=drawn.denoise,
        engine_seconds=drawn.engines,
        flops=_flops(facts, plan, drawn),
        stage=drawn.steps[-1].stage,
        mask=np.asarray(drawn.masks[0]) > 0 if drawn.masks else None,
    )


def _flops(facts: ModelFacts, plan: StagePlan, drawn: Drawn) -> float:
    """Those of the stages that were drawn, which an edit decides; of one that was left for a larger
    one the share of its steps.
    """
    steps = [0] * len(plan.stages)
    for step in drawn.steps:
        steps[step.stage - 1] += 1
    prices = zip(stage_flops(facts, plan), plan.stages, steps, strict=True)
    return sum(flops * count / len(stage.actions) for flops, stage, count in prices)
