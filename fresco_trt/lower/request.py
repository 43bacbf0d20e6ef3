"""What is to be built: from the caller's options to a request with nothing left open.

First step of a build. Everything that can be refused without reading weights or writing a file is
refused here, so that `--dry-run` and a build of many sizes stop at the same errors, at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.backends.base import check_precision
from fresco_trt.backends.choosing import choose, this_gpu
from fresco_trt.errors import IncompatibleOptions, OutputNotWritable, UnsupportedPrecision
from fresco_trt.files.canonical_json import MANIFEST_NAME
from fresco_trt.lower.layout import check_attention, check_batch, check_layout, check_streaming
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig, PresetConfig, QuantConfig, TargetConfig
from fresco_trt.plan.depth import format_blocks
from fresco_trt.plan.making import DEFAULT_STAGES, make_plan
from fresco_trt.plan.recipes import find_recipe
from fresco_trt.plan.sizes import format_size, parse_sizes
from fresco_trt.plan.stored import check_plan, check_undecided, model_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import Backend, BackendFacts
    from fresco_trt.models.family import ModelFamily
    from fresco_trt.plan.depth import Blocks
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import Action, StagePlan

ENGINES = Path("engines")
"""Where bundles go that are given no folder."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's name of the type in which a precision stores weights."""

FP8_FROM = 89
"""Compute capability, times ten, of the first GPUs with FP8 matrix products."""


AS_TARGETED = TargetConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Build choices as the caller stated them; None means the default. One knob, one place.

    Either ``model`` is a name, and ``stages`` (3), ``preset``, ``size``, ``steps`` (of one stage
    only) and ``cache`` say which of its plans is built, or ``plan`` is that plan. Config objects
    may be given by their spelling. ``blocks``, with random weights only, is how many double-stream
    and single-stream blocks of the model's own width are built in place of all;
    ``weights`` a diffusers folder, a .safetensors file, "random", or None for the bundled or hub
    weights; ``backend`` and ``precision`` are by default what this machine runs best
    (:mod:`fresco_trt.backends.choosing`); ``graphs`` where the exported ONNX graphs are kept.
    """

    model: str | None = None
    plan: StagePlan | None = None
    stages: int | None = None
    size: Size | None = None
    preset: PresetConfig | str | None = None
    steps: int | None = None
    cache: CacheConfig | str = NO_CACHE
    weights: str | None = None
    blocks: Blocks | None = None
    backend: str | None = None
    precision: QuantConfig | str | None = None
    target: TargetConfig | str = AS_TARGETED
    out: Path | None = None
    graphs: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request with nothing left open: what will be built, with what, for which GPUs, and where.

    ``facts`` are those of the model or, where ``blocks`` were asked for, of so many of its blocks;
    ``preset`` and ``cache`` are as they were asked for, and what came of them is in ``plan``;
    ``recipe`` what quantises, if anything does, and ``kept`` the patterns of layers that it leaves
    alone; ``target`` names GPUs in the backend's own order; ``graphs`` is where the ONNX graphs are
    kept, if they are; ``defaults`` says which of library and precision nobody asked for, and why
    they are those.
    """

    facts: ModelFacts
    blocks: Blocks | None
    plan: StagePlan
    preset: PresetConfig
    cache: CacheConfig
    backend: Backend
    quant: QuantConfig
    recipe: Recipe | None
    kept: tuple[str, ...]
    target: TargetConfig
    weights: str | None
    out: Path
    graphs: Path | None
    defaults: str | None

    @property
    def family(self) -> ModelFamily:
        """The model's."""
        return family_of(self.facts)

    @property
    def rest(self) -> str:
        """The precision of what is not quantised."""
        return rest_of(self.quant.precision, self.backend.describe())

    @property
    def dtype(self) -> str:
        """torch's name of the type that weights have where they are not quantised."""
        return DTYPES[self.rest]

    def signature(self, stage: int, action: Action) -> GraphSignature:
        """Signature of an engine of the stage counted from 0."""
        return self.family.graphs.signature(
            self.facts,
            self.plan,
            stage,
            action,
            text_tokens=self.facts.text_tokens,
            batch=self.target.batch,
        )


def stored_dtype(precision: str, about: BackendFacts) -> str:
    """torch's name of the type in which weights are stored that are not quantised."""
    return DTYPES[rest_of(precision, about)]


def rest_of(precision: str, about: BackendFacts) -> str:
    """The precision of weights that are not quantised."""
    return precision if precision in DTYPES else about.rest


def resolve(request: BuildRequest) -> Resolved:
    """Check everything that can be checked without touching weights or a file.

    Raises PlanError leaves, IncompatibleOptions for options that would be ignored or contradict
    one another, and UnsupportedPrecision.
    """
    preset = PresetConfig() if request.preset is None else PresetConfig.of(request.preset)
    cache, target = CacheConfig.of(request.cache), TargetConfig.of(request.target)
    facts = _facts(request)
    plan = _plan(request, facts, preset, cache)
    chosen = _chosen(request, target)
    library, quant = chosen.backend, chosen.quant
    about = library.describe()
    check_precision(about, quant.precision)
    recipe = find_recipe(quant.precision, quant.recipe)
    _check_options(request, about, len(plan.stages))
    _check_measured(facts, quant)
    _check_quant(quant, recipe)
    target = replace(target, gpus=_gpus(target.gpus, about))
    _check_gpus(recipe, target.gpus or about.targets)
    _check_form(recipe, about)
    check_layout(target.layout, plan, about)
    check_batch(target.batch, plan)
    check_attention(facts, plan, about, rest_of(quant.precision, about))
    if target.stream_weights:
        check_streaming(target.layout, plan, about)
    return Resolved(
        facts=facts,
        blocks=request.blocks,
        plan=plan,
        preset=preset,
        cache=cache,
        backend=library,
        quant=quant,
        recipe=recipe,
        kept=() if recipe is None else (*facts.high_precision, *quant.keep),
        target=target,
        weights=request.weights,
        out=request.out or ENGINES / _name(request, plan),
        graphs=request.graphs,
        defaults=chosen.defaults,
    )


def requests_of(request: BuildRequest, sizes: Sequence[str]) -> list[BuildRequest]:
    """One request for each size text ("512x384"), largest first.

    With several, ``out`` and ``graphs`` are parents in which each size has a folder of its own.
    Raises what :func:`resolve` raises, for every size before any is built, and OutputNotWritable
    for a parent that is itself a bundle.
    """
    parsed = parse_sizes(sizes) or (request.size,)
    each = [replace(request, size=size) for size in parsed]
    if len(each) > 1:
        each = [_in_parent(one) for one in each]
    for one in each:
        resolve(one)
    return each


# --- options ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    backend: Backend
    quant: QuantConfig
    defaults: str | None


def _chosen(request: BuildRequest, target: TargetConfig) -> _Chosen:
    """Library and precision, those of this machine where nobody asked."""
    asked = None if request.precision is None else QuantConfig.of(request.precision)

    def fits(about: BackendFacts) -> bool:
        """Whether a library would refuse nothing that was asked of it by name."""
        recipe = None if asked is None else find_recipe(asked.precision, asked.recipe)
        graphs = request.graphs is not None or (recipe is not None and recipe.attention)
        modules = recipe is not None and recipe.tokens
        onnx = about.graph_format == "onnx"
        return (
            (asked is None or asked.precision in about.precisions)
            and not (graphs and not onnx)
            and not (modules and onnx)
            and target.layout in about.layouts
            and (about.streams or not target.stream_weights)
            and set(target.gpus) <= set(about.targets)
        )

    found = choose(request.backend, None if asked is None else asked.precision, this_gpu(), fits)
    quant = asked or QuantConfig(precision=found.precision)
    return _Chosen(backend=found.backend, quant=quant, defaults=found.defaults)


def _plan(
    request: BuildRequest, facts: ModelFacts, preset: PresetConfig, cache: CacheConfig
) -> StagePlan:
    """The plan that was given, if the model can draw it and nothing else was asked of it; else the
    one that is asked for.
    """
    if request.plan is None:
        return make_plan(
            facts,
            stages=DEFAULT_STAGES if request.stages is None else request.stages,
            preset=preset,
            size=request.size,
            steps=request.steps,
            cache=cache,
        )
    check_plan(request.plan, facts)
    given = {
        "stages": request.stages,
        "preset": request.preset,
        "size": request.size,
        "steps": request.steps,
        "cache": None if cache == NO_CACHE else cache,
    }
    check_undecided(request.plan, given)
    return request.plan


def _facts(request: BuildRequest) -> ModelFacts:
    """The model's, or with ``blocks`` those of a model of the same width that is nobody's."""
    facts = model_facts(model_of(request.model, request.plan))
    if request.blocks is None:
        return facts
    if request.weights != "random":
        given = "without --weights" if request.weights is None else "with weights of a model"
        raise IncompatibleOptions(
            f"--blocks {format_blocks(request.blocks)} {given}",
            expected="--weights random: a model with fewer blocks draws noise, whatever they hold",
            fix="leave --blocks out, or pass --weights random",
        )
    return family_of(facts).weights.with_blocks(facts, request.blocks)


def _name(request: BuildRequest, plan: StagePlan) -> str:
    """A folder of its own for fewer blocks: they must not take the place of the model's engines.
    The name of a variant may be long, and no path of Windows has a colon.
    """
    depth = "" if request.blocks is None else f"-{'+'.join(map(str, request.blocks))}blocks"
    like, colon, changes = plan.model.partition(":")
    model = f"{like}-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if colon else like
    return f"{model}{depth}-{format_size(plan.size)}-{len(plan.stages)}stage"


def _in_parent(request: BuildRequest) -> BuildRequest:
    parent = request.out or ENGINES
    if (parent / MANIFEST_NAME).exists():
        raise OutputNotWritable(
            f"several sizes with --out {parent}, which is a bundle itself",
            expected="a folder to hold one bundle for each size",
            fix="pass another --out, or build one size at a time",
        )
    name = resolve(replace(request, out=None)).out.name
    graphs = None if request.graphs is None else request.graphs / name
    return replace(request, out=parent / name, graphs=graphs)


def _check_options(request: BuildRequest, about: BackendFacts, stages: int) -> None:
    """No option is ignored: one that would change nothing is refused."""
    if request.steps is not None and stages != 1:
        raise IncompatibleOptions(
            f"--steps {request.steps} with {stages} stages",
            expected="--steps with --stages 1 only: with more, the preset decides every step",
            fix="leave --steps out; 'fresco-trt plan' takes it as the baseline to compare with",
        )
    if request.graphs is not None and about.graph_format != "onnx":
        raise IncompatibleOptions(
            f"--graphs {request.graphs} with the backend {about.name}",
            expected="a backend that is built from ONNX graphs",
            fix="leave --graphs out, or pass --backend onnxruntime",
        )


def _check_measured(facts: ModelFacts, quant: QuantConfig) -> None:
    if quant.precision in DTYPES or facts.calibrated:
        return
    why = "nothing of this model can be quantised yet"
    if facts.true_cfg_default is not None:
        why = "true guidance runs this model twice a step, and calibrations draw one of the two"
    raise UnsupportedPrecision(
        f"--precision {quant.precision} of {facts.name}",
        expected=f"{', '.join(DTYPES)}: {why}",
        fix="pass --precision bf16",
    )


def _check_quant(quant: QuantConfig, recipe: Recipe | None) -> None:
    given = {"keep": quant.keep, "amax": quant.amax, "force": quant.force}
    named = " and ".join(name for name, value in given.items() if value)
    if recipe is None and named:
        raise IncompatibleOptions(
            f"{named} in --precision {quant}",
            expected="a precision that quantises: nothing is measured or judged without one",
            fix=f"leave {named} out, or pass --precision int8 or fp8",
        )
    if quant.amax is not None and quant.keep:
        raise IncompatibleOptions(
            f"keep with amax in --precision {quant}",
            expected="one of the two: measured amax say which layers were kept",
            fix="give keep to 'fresco-trt calibrate --measure amax', or leave amax out",
        )


def _check_gpus(recipe: Recipe | None, gpus: tuple[str, ...]) -> None:
    """FP8 matrix products came with Ada; a library that names no targets asks its own device."""
    if recipe is None or recipe.precision != "fp8":
        return
    old = [gpu for gpu in gpus if int(gpu.removeprefix("sm")) < FP8_FROM]
    if old:
        able = [gpu for gpu in gpus if gpu not in old]
        raise UnsupportedPrecision(
            f"--precision fp8 for {', '.join(old)}",
            expected=f"GPUs from sm{FP8_FROM} on: older ones have no FP8 matrix products",
            fix=f"pass --target {'+'.join(able) or f'sm{FP8_FROM}'}, or --precision int8",
        )


def _check_form(recipe: Recipe | None, about: BackendFacts) -> None:
    """Codes of attention stand in graphs alone, and scales of tokens in torch's modules alone."""
    if recipe is None:
        return
    given = f"the recipe {recipe.name} with the backend {about.name}"
    if recipe.attention and about.graph_format != "onnx":
        raise IncompatibleOptions(
            given,
            expected="a backend that is built from ONNX graphs: torch's attention takes no codes",
            fix="leave recipe out to quantise the linear layers, or pass --backend tensorrt-rtx",
        )
    if recipe.tokens and about.graph_format == "onnx":
        raise IncompatibleOptions(
            given,
            expected="a backend whose engines torch makes: graphs scale all tokens alike",
            fix="leave recipe out for one scale a tensor, or pass --backend inductor",
        )


def _gpus(asked: tuple[str, ...], about: BackendFacts) -> tuple[str, ...]:
    """The targets in the backend's own order, each once: the order given is not an identity."""
    wrong = [gpu for gpu in asked if gpu not in about.targets]
    if not wrong:
        return tuple(gpu for gpu in about.targets if gpu in asked)
    known = ", ".join(about.targets)
    raise IncompatibleOptions(
        f"--target {'+'.join(asked)} with the backend {about.name}",
        expected=f"one or more of {known}" if known else "no target: it names none here",
        fix="leave --target out" + ("" if known else ", or pass --backend tensorrt-rtx"),
    )
