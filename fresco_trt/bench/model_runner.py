"""The bench's instrument: a model with its trained weights, drawn with every method there is.

Prompt encoders and decoder are shared by all methods and stay outside their seconds. On the
bundled demo a classifier says whether a picture shows what its caption says; for other models
there is none, and only the closeness to the reference is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import Progress, check_precision, silent
from fresco_trt.bench.engines import EnginePool, plan_method, signatures_of
from fresco_trt.bench.evaluator import Evaluator
from fresco_trt.bench.instrument import Case, LeftOut, said
from fresco_trt.bench.peers import DiffusersMethods
from fresco_trt.bench.plain import SCENES_SEED, is_judged, judged_scenes
from fresco_trt.errors import FrescoError
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.run.denoise import Denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.backends.base import Backend
    from fresco_trt.bench.instrument import Draw, Drawn, Pixels, Scores
    from fresco_trt.bench.methods import Point
    from fresco_trt.bench.scenes.scene import Scene
    from fresco_trt.bundle.svd_basis import Basis
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.lower.quantize.qdq import Quantizer
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan


CALIBRATION_SEED = 31
"""Where the captions come from that a basis and amax are measured on; scenes have others."""

BASIS_PROMPTS = 4
BASIS_PRESET = Preset(steps=(12,))
"""What SVD-Cache's directions are measured on: a few prompts, the whole path from noise."""

AMAX_PROMPTS, AMAX_PRESET = 16, "balanced"
"""What amax are measured on, as in a build; its stages walk all grids that presets have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is measured and with what: a model, its pipeline folder (diffusers' layout), a picture
    size, the engine library, where engines are built, how many scenes (and from which seed) and how
    many true renders.
    """

    facts: ModelFacts
    size: Size
    pipeline: Path
    backend: Backend
    engines: Path
    scenes: int
    scenes_seed: int = SCENES_SEED
    renders: int = 1000
    progress: Progress = silent

    def of(self, model: str | None) -> Setup:
        """The same for a packaged sibling of the model, with engines in a folder of their own; for
        None itself.
        """
        if model is None:
            return self
        folder = whole_folder(bundled_folder(model))
        engines = self.engines / model
        return replace(self, facts=model_facts(model), pipeline=folder, engines=engines)


class ModelRunner:
    """Draws a model's pictures; an :class:`~fresco_trt.bench.instrument.Instrument`.

    Its siblings' too: prompt encoders, decoder and guidance are theirs as well.
    """

    timed = True

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        components = family_of(setup.facts).components
        self._prompt = components.prompt_encoder(setup.pipeline, setup.facts.text_tokens)
        decoder = components.decoder(setup.pipeline)
        self._evaluator = Evaluator(decoder, judged=is_judged(setup.facts.name))
        self._scenes = judged_scenes(setup.scenes, setup.scenes_seed)
        self._twins: dict[str, str] = {}

    @property
    def cases(self) -> Sequence[Case]:
        """One case a scene, its number being its seed."""
        return [
            Case(number=number, caption=scene.caption, seed=number)
            for number, scene in enumerate(self._scenes)
        ]

    @property
    def warm_up(self) -> Case:
        """A scene and a seed that no case has."""
        return Case(number=-1, caption=judged_scenes(1, seed=1)[0].caption, seed=10**6)

    def methods(
        self, points: Sequence[Point], scope: ExitStack
    ) -> tuple[dict[str, Draw], list[LeftOut]]:
        """What draws, by the point's name. Raises what building engines raises."""
        plans, left_out = self._plans(points)
        models = dict.fromkeys(point.model for point in points)
        tokens = max(self._prompt.tokens(case.caption) for case in (*self.cases, self.warm_up))
        drawers = {model: _Drawers(self._setup.of(model), scope, tokens) for model in models}
        engines: dict[tuple[str | None, str | None], list[StagePlan]] = {}
        for point in points:
            if point.name in plans:
                engines.setdefault((point.model, point.quant), []).append(plans[point.name])
        for (model, quant), each in engines.items():
            drawers[model].require(each, quant)
        self._twins = {point.name: point.twin for point in points if point.twin is not None}
        found: dict[str, Draw] = {}
        for point in points:
            if any(point.name == each.what for each in left_out):
                continue
            try:
                found[point.name] = drawers[point.model].method(point, plans.get(point.name))
            except Exception as error:  # a peer's import raises whatever it likes
                left_out.append(LeftOut(what=point.name, reason=said(error)))
        return found, left_out

    def _plans(self, points: Sequence[Point]) -> tuple[dict[str, StagePlan], list[LeftOut]]:
        """The plans of the points that run on engines; left out are those that the size refuses, or
        whose precision the backend lacks."""
        plans: dict[str, StagePlan] = {}
        left_out: list[LeftOut] = []
        for point in points:
            if not isinstance(point.settings, Preset):
                continue
            try:
                check_precision(self._setup.backend.describe(), point.precision)
                facts = self._setup.of(point.model).facts
                plans[point.name] = plan_from_preset(
                    facts, point.settings, size=self._setup.size, name=point.preset
                )
            except FrescoError as error:
                left_out.append(LeftOut(what=point.name, reason=said(error)))
        return plans, left_out

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        """Text and pooled vector of a caption, and the model's own guidance."""
        import torch

        inputs = self._prompt(case.caption)
        scale = self._setup.facts.guidance_default
        if scale is not None:
            inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
        device = self._setup.backend.describe().device
        return {name: value.to(device) for name, value in inputs.items()}

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Scores], dict[str, Pixels]]:
        """Scores and pictures; "right" is the classifier's word on the caption."""
        scene = self._scenes[case.number]
        twins = {name: twin for name, twin in self._twins.items() if {name, twin} <= drawn.keys()}
        return self._evaluator.scores(
            drawn, reference, lambda _, picture: self._right(picture, scene), twins
        )

    def _right(self, picture: Tensor, scene: Scene) -> bool | None:
        return self._evaluator.verdict(picture, scene) if self._evaluator.judged else None

    def real_features(self) -> Tensor | None:
        """Features [N,D] of renders of scenes that no method was asked for."""
        if not self._evaluator.judged:
            return None
        return self._real_features

    @cached_property
    def _real_features(self) -> Tensor:
        import torch

        from fresco_trt.bench.scenes.pictures import pictures_of

        scenes, (width, height) = judged_scenes(self._setup.renders, seed=77), self._setup.size[:2]
        parts = []
        for first in range(0, len(scenes), 50):
            self._setup.progress("true renders", first / len(scenes))
            pictures = pictures_of(scenes[first : first + 50], width, height)
            parts.append(self._evaluator.features(pictures))
        return torch.cat(parts)

    def facts(self) -> dict[str, Any]:
        """For the document: which instrument this is, and what a score is."""
        score = "share of pictures that show what the caption says, by the demo's classifier"
        return {"instrument": "model", "score": score if self._evaluator.judged else None}


class _Drawers:
    """What each kind of settings draws with, made when the first point of the kind asks.

    No prompt that is drawn has more than ``tokens`` of its own.
    """

    def __init__(self, setup: Setup, scope: ExitStack, tokens: int) -> None:
        self._setup, self._scope, self._tokens = setup, scope, tokens
        self._device = setup.backend.describe().device
        self._pools: dict[str | None, EnginePool] = {}
        self._basis: Tensor | None = None

    def _pool(self, quant: str | None) -> EnginePool:
        """The engines quantised by a recipe, or those that are not."""
        if quant not in self._pools:
            setup = self._setup
            folder = setup.engines if quant is None else setup.engines / quant
            self._pools[quant] = EnginePool(setup.facts, setup.backend, folder, self._scope)
        return self._pools[quant]

    @cached_property
    def _diffusers(self) -> DiffusersMethods:
        setup = self._setup
        # On the engines' own device: anything else would compare machines, not methods.
        return DiffusersMethods(setup.pipeline, setup.facts, setup.size, self._device)

    def require(self, plans: Sequence[StagePlan], quant: str | None) -> None:
        """Build the engines of these plans, quantised by a recipe or not, unless they are there."""
        setup = self._setup
        signatures = signatures_of(setup.facts, plans)
        if signatures and not self._pool(quant).has(signatures):
            transformer = family_of(setup.facts).weights.load(setup.pipeline, setup.facts)
            quantizer = None if quant is None else _measured_quantizer(setup, quant)
            self._pool(quant).build(signatures, transformer, setup.progress, quantizer)
        if any(plan.cache is not None and plan.cache.traits.needs_basis for plan in plans):
            self._basis = self._measured_basis()

    def _measured_basis(self) -> Tensor:
        """The SVD basis of the model's features, measured once a folder of engines."""
        from fresco_trt.bundle.svd_basis import BASIS_FILE, read_basis

        path = self._setup.engines / BASIS_FILE
        if not path.is_file():
            _measure_basis(self._setup).store(path)
        return read_basis(path).directions.to(self._device)

    def method(self, point: Point, plan: StagePlan | None) -> Draw:
        """What draws by a point's settings; by the plan, where it is one for engines."""
        if isinstance(point.settings, Preset):
            if plan is None:
                raise ValueError("a preset is drawn by its plan; expected one")
            runners = self._pool(point.quant).runners(plan)
            facts = self._setup.facts
            denoiser = Denoiser.of(
                facts,
                plan,
                runners,
                text_tokens=facts.text_tokens,
                device=self._device,
                basis=self._basis,
            )
            return plan_method(denoiser, self._tokens)
        return self._diffusers.method(point.settings)


def _measure_basis(setup: Setup) -> Basis:
    """As a build measures it, on the plain sampler's trajectories."""
    from fresco_trt.lower.calibrate.basis import measure_basis

    plan = plan_from_preset(setup.facts, BASIS_PRESET, size=setup.size)
    reference = _reference(setup, BASIS_PROMPTS)
    return measure_basis(reference, plan, progress=setup.progress)


def _measured_quantizer(setup: Setup, quant: str) -> Quantizer:
    """As a build measures it, on a preset that walks every grid, once for all plans on them."""
    from fresco_trt.lower.calibrate.amax import measure_amax
    from fresco_trt.lower.quantize.qdq import Quantizer

    facts, recipe = setup.facts, RECIPES[quant]
    preset = find_preset(facts, AMAX_PRESET, max(facts.stage_counts))
    plan = plan_from_preset(facts, preset, size=setup.size)
    reference = _reference(setup, AMAX_PROMPTS)
    amax = measure_amax(reference, plan, recipe, facts.high_precision, setup.progress)
    return Quantizer(recipe=recipe, amax=amax)


def _reference(setup: Setup, prompts: int) -> Reference:
    """What is calibrated on: the model, and captions that no scene has."""
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.models.weights import weights_digest

    transformer = family_of(setup.facts).weights.load(setup.pipeline, setup.facts)
    captions = [scene.caption for scene in judged_scenes(prompts, seed=CALIBRATION_SEED)]
    return Reference(
        facts=setup.facts,
        transformer=transformer,
        weights_sha256=weights_digest(transformer),
        pipeline=setup.pipeline,
        prompts=tuple(captions),
    )
