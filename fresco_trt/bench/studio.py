"""The first instrument: a model with its trained weights, drawn with every method there is.

Prompt encoders and decoder are shared by all methods and stay outside their seconds. On the
bundled demo a classifier says whether a picture shows what its caption says; for other models
there is none, and only the closeness to the reference is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.base import Progress, check_precision, silent
from fresco_trt.bench.engines import EnginePool, kinds_of, plan_method
from fresco_trt.bench.eye import Eye
from fresco_trt.bench.instrument import Case, Skipped, said
from fresco_trt.bench.peers import DiffusersMethods
from fresco_trt.bench.plain import SCENES_SEED, is_judged, judged_scenes
from fresco_trt.errors import FrescoError
from fresco_trt.models.pretrained import whole_folder
from fresco_trt.models.registry import model_facts
from fresco_trt.models.weights import BUNDLED
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.backends.base import Backend
    from fresco_trt.bench.instrument import Draw, Drawn, Marks, Pixels
    from fresco_trt.bench.methods import Point
    from fresco_trt.bundle.svd_basis import Basis
    from fresco_trt.demo.scenes import Scene
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
class Setting:
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

    def of(self, model: str | None) -> Setting:
        """The same for a packaged sibling of the model, with engines in a folder of their own; for
        None itself.
        """
        if model is None:
            return self
        folder = whole_folder(BUNDLED / model)
        engines = self.engines / model
        return replace(self, facts=model_facts(model), pipeline=folder, engines=engines)


class Studio:
    """Draws a model's pictures; an :class:`~fresco_trt.bench.instrument.Instrument`.

    Its siblings' too: prompt encoders, decoder and guidance are theirs as well.
    """

    timed = True

    def __init__(self, setting: Setting) -> None:
        from fresco_trt.models.flux.components import FluxPrompt

        self._setting = setting
        self._prompt = FluxPrompt(setting.pipeline, setting.facts.text_tokens)
        self._eye = Eye(setting.pipeline, judged=is_judged(setting.facts.name))
        self._scenes = judged_scenes(setting.scenes, setting.scenes_seed)
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
    ) -> tuple[dict[str, Draw], list[Skipped]]:
        """What draws, by the point's name. Raises what building engines raises."""
        plans, skipped = self._plans(points)
        models = dict.fromkeys(point.model for point in points)
        drawers = {model: _Drawers(self._setting.of(model), scope) for model in models}
        engines: dict[tuple[str | None, str | None], list[StagePlan]] = {}
        for point in points:
            if point.name in plans:
                engines.setdefault((point.model, point.quant), []).append(plans[point.name])
        for (model, quant), each in engines.items():
            drawers[model].require(each, quant)
        self._twins = {point.name: point.twin for point in points if point.twin is not None}
        found: dict[str, Draw] = {}
        for point in points:
            if any(point.name == each.what for each in skipped):
                continue
            try:
                found[point.name] = drawers[point.model].method(point, plans.get(point.name))
            except Exception as error:  # a peer's import raises whatever it likes
                skipped.append(Skipped(what=point.name, reason=said(error)))
        return found, skipped

    def _plans(self, points: Sequence[Point]) -> tuple[dict[str, StagePlan], list[Skipped]]:
        """The plans of the points that run on engines; skipped are those that the size refuses, or
        whose precision the backend lacks."""
        plans: dict[str, StagePlan] = {}
        skipped: list[Skipped] = []
        for point in points:
            if not isinstance(point.recipe, Preset):
                continue
            try:
                check_precision(self._setting.backend.describe(), point.precision)
                facts = self._setting.of(point.model).facts
                plans[point.name] = plan_from_preset(
                    facts, point.recipe, size=self._setting.size, name=point.preset
                )
            except FrescoError as error:
                skipped.append(Skipped(what=point.name, reason=said(error)))
        return plans, skipped

    def encode(self, case: Case) -> Mapping[str, Tensor]:
        """Text and pooled vector of a caption, and the model's own guidance."""
        import torch

        inputs = self._prompt(case.caption)
        scale = self._setting.facts.guidance_default
        if scale is not None:
            inputs["guidance"] = torch.tensor([scale], dtype=torch.float32)
        device = self._setting.backend.describe().device
        return {name: value.to(device) for name, value in inputs.items()}

    def judge(
        self, case: Case, drawn: Mapping[str, Drawn], reference: str
    ) -> tuple[dict[str, Marks], dict[str, Pixels]]:
        """Marks and pictures; "right" is the classifier's word on the caption."""
        scene = self._scenes[case.number]
        twins = {name: twin for name, twin in self._twins.items() if {name, twin} <= drawn.keys()}
        return self._eye.marks(
            drawn, reference, lambda _, picture: self._right(picture, scene), twins
        )

    def _right(self, picture: Tensor, scene: Scene) -> bool | None:
        return self._eye.verdict(picture, scene) if self._eye.judged else None

    def real_features(self) -> Tensor | None:
        """Features [N,D] of renders of scenes that no method was asked for."""
        if not self._eye.judged:
            return None
        return self._real_features

    @cached_property
    def _real_features(self) -> Tensor:
        import torch

        from fresco_trt.demo.batches import pictures_of

        scenes, (width, height) = judged_scenes(self._setting.renders, seed=77), self._setting.size
        parts = []
        for first in range(0, len(scenes), 50):
            self._setting.progress("true renders", first / len(scenes))
            pictures = pictures_of(scenes[first : first + 50], width, height)
            parts.append(self._eye.features(pictures))
        return torch.cat(parts)

    def facts(self) -> dict[str, Any]:
        """For the document: what a score is."""
        score = "share of pictures that show what the caption says, by the demo's classifier"
        return {"score": score if self._eye.judged else None}


class _Drawers:
    """What each kind of recipe draws with, made when the first recipe of the kind asks."""

    def __init__(self, setting: Setting, scope: ExitStack) -> None:
        self._setting, self._scope = setting, scope
        self._device = setting.backend.describe().device
        self._pools: dict[str | None, EnginePool] = {}
        self._basis: Tensor | None = None

    def _pool(self, quant: str | None) -> EnginePool:
        """The engines quantised by a recipe, or those that are not."""
        if quant not in self._pools:
            setting = self._setting
            folder = setting.engines if quant is None else setting.engines / quant
            self._pools[quant] = EnginePool(setting.facts, setting.backend, folder, self._scope)
        return self._pools[quant]

    @cached_property
    def _diffusers(self) -> DiffusersMethods:
        setting = self._setting
        # On the engines' own device: anything else would compare machines, not methods.
        return DiffusersMethods(setting.pipeline, setting.facts, setting.size, self._device)

    @cached_property
    def _layout(self) -> Any:
        from fresco_trt.models.flux.tokens import FluxPatchifier
        from fresco_trt.pipelines.image import HeldLayout

        facts = self._setting.facts
        layout = FluxPatchifier(facts, facts.text_tokens)
        return HeldLayout(layout, self._device)

    def require(self, plans: Sequence[StagePlan], quant: str | None) -> None:
        """Build the engines of these plans, quantised by a recipe or not, unless they are there."""
        from fresco_trt.models.flux.loading import load_transformer

        kinds = {kind for plan in plans for kind in kinds_of(plan).values()}
        if kinds and not self._pool(quant).has(kinds):
            setting = self._setting
            transformer = load_transformer(setting.pipeline, setting.facts)
            quantizer = None if quant is None else _measured_quantizer(setting, quant)
            self._pool(quant).build(kinds, transformer, setting.progress, quantizer)
        if any(plan.cache is not None and plan.cache.name == "svd" for plan in plans):
            self._basis = self._measured_basis()

    def _measured_basis(self) -> Tensor:
        """The SVD basis of the model's features, measured once a folder of engines."""
        from fresco_trt.bundle.svd_basis import BASIS_FILE, read_basis

        path = self._setting.engines / BASIS_FILE
        if not path.is_file():
            _measure_basis(self._setting).store(path)
        return read_basis(path).directions.to(self._device)

    def method(self, point: Point, plan: StagePlan | None) -> Draw:
        """What draws by a point's recipe; by the plan, where it is one for engines."""
        if isinstance(point.recipe, Preset):
            if plan is None:
                raise ValueError("a preset is drawn by its plan; expected one")
            runners = self._pool(point.quant).runners(plan)
            facts = self._setting.facts
            return plan_method(plan, facts, runners, self._layout, self._device, self._basis)
        return self._diffusers.method(point.recipe)


def _measure_basis(setting: Setting) -> Basis:
    """As a build measures it, on the plain sampler's trajectories."""
    from fresco_trt.lower.calibrate.basis import measure_basis

    plan = plan_from_preset(setting.facts, BASIS_PRESET, size=setting.size)
    reference = _reference(setting, BASIS_PROMPTS)
    return measure_basis(reference, plan, progress=setting.progress)


def _measured_quantizer(setting: Setting, quant: str) -> Quantizer:
    """As a build measures it, on a preset that walks every grid, once for all plans on them."""
    from fresco_trt.lower.calibrate.amax import measure_amax
    from fresco_trt.lower.quantize.qdq import Quantizer

    facts, recipe = setting.facts, RECIPES[quant]
    preset = find_preset(facts, AMAX_PRESET, max(facts.stage_counts))
    plan = plan_from_preset(facts, preset, size=setting.size)
    reference = _reference(setting, AMAX_PROMPTS)
    amax = measure_amax(reference, plan, recipe, facts.high_precision, setting.progress)
    return Quantizer(recipe=recipe, amax=amax)


def _reference(setting: Setting, prompts: int) -> Reference:
    """What is calibrated on: the model, and captions that no scene has."""
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.models.flux.loading import load_transformer
    from fresco_trt.models.weights import weights_digest

    transformer = load_transformer(setting.pipeline, setting.facts)
    captions = [scene.caption for scene in judged_scenes(prompts, seed=CALIBRATION_SEED)]
    return Reference(
        facts=setting.facts,
        transformer=transformer,
        weights_sha256=weights_digest(transformer),
        pipeline=setting.pipeline,
        prompts=tuple(captions),
    )
