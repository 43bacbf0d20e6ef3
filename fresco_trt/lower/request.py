"""What is to be built: from the caller's options to a request with nothing left open.

First step of a build. Everything that can be refused without reading weights or writing a file is
refused here, so that `--dry-run` and a build of many sizes stop at the same errors, at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.backends import backend
from fresco_trt.backends.base import check_precision
from fresco_trt.errors import IncompatibleOptions, OutputNotWritable, UnsupportedPrecision
from fresco_trt.files.canonical_json import MANIFEST_NAME
from fresco_trt.lower.layout import STATIC, check_layout, check_streaming
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.depth import format_blocks
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.recipes import find_recipe
from fresco_trt.plan.sizes import format_size, parse_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import Backend, BackendFacts
    from fresco_trt.models.family import ModelFamily
    from fresco_trt.plan.caching import CacheChoice
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


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantChoice:
    """How a quantised precision is carried out, as the caller stated it.

    ``recipe`` None is the precision's default; ``keep`` are patterns of layers that stay as they
    are, beside the model's own; ``amax`` a file of measured ones (None: measured by the build);
    ``force`` publishes a bundle that fails the quality gate.
    """

    recipe: str | None = None
    keep: tuple[str, ...] = ()
    amax: Path | None = None
    force: bool = False


AS_RECIPE = QuantChoice()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Build choices as the caller stated them; None means the default. One knob, one place.

    ``blocks``, with random weights only, is how many double-stream and single-stream blocks of the
    model's own width are built in place of all.
    """

    model: str
    stages: int = 3
    size: Size | None = None
    preset: str | None = None
    steps: int | None = None
    delta: float | None = None
    shift: float | None = None
    weights: str | None = None
    blocks: Blocks | None = None
    backend: str = "onnxruntime"
    precision: str = "fp32"
    quant: QuantChoice = AS_RECIPE
    cache: CacheChoice = NO_CACHE
    basis: Path | None = None
    targets: tuple[str, ...] = ()
    layout: str = STATIC
    stream_weights: bool = False
    out: Path | None = None
    graphs: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request with nothing left open: what will be built, with what, for which GPUs, and where.

    ``facts`` are those of the model or, where ``blocks`` were asked for, of so many of its blocks;
    ``delta`` is the tolerance that placed the plan's switches, and ``shift`` the factor that
    replaced its own, if one did; ``basis`` the file of
    SVD basis that was given, if one was; ``recipe`` what quantises, if anything does,
    and ``kept`` the patterns of layers that it leaves alone; ``layout`` one of
    :data:`fresco_trt.lower.layout.LAYOUTS`; ``stream_weights`` whether engines are to run with part
    of their weights on the host; ``graphs`` is where the ONNX graphs are kept, if they
    are.
    """

    facts: ModelFacts
    blocks: Blocks | None
    plan: StagePlan
    delta: float | None
    shift: float | None
    basis: Path | None
    backend: Backend
    precision: str
    recipe: Recipe | None
    kept: tuple[str, ...]
    amax: Path | None
    force: bool
    targets: tuple[str, ...]
    layout: str
    stream_weights: bool
    weights: str | None
    out: Path
    graphs: Path | None

    @property
    def family(self) -> ModelFamily:
        """The model's."""
        return family_of(self.facts)

    @property
    def rest(self) -> str:
        """The precision of what is not quantised."""
        return rest_of(self.precision, self.backend.describe())

    @property
    def dtype(self) -> str:
        """torch's name of the type that weights have where they are not quantised."""
        return DTYPES[self.rest]

    def signature(self, stage: int, action: Action) -> GraphSignature:
        """Signature of an engine of the stage counted from 0."""
        return self.family.graphs.signature(
            self.facts, self.plan, stage, action, text_tokens=self.facts.text_tokens
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
    facts = _facts(request)
    plan = make_plan(
        facts,
        stages=request.stages,
        preset=request.preset,
        size=request.size,
        steps=request.steps,
        delta=request.delta,
        shift=request.shift,
        cache=request.cache,
    )
    library = backend(request.backend)
    about = library.describe()
    check_precision(about, request.precision)
    recipe = find_recipe(request.precision, request.quant.recipe)
    _check_options(request, about)
    _check_quant(request, recipe)
    targets = _targets(request.targets, about)
    _check_targets(recipe, targets or about.targets)
    _check_attention(recipe, about)
    check_layout(request.layout, plan, about)
    if request.stream_weights:
        check_streaming(request.layout, plan, about)
    return Resolved(
        facts=facts,
        blocks=request.blocks,
        plan=plan,
        delta=request.delta,
        shift=request.shift,
        basis=request.basis,
        backend=library,
        precision=request.precision,
        recipe=recipe,
        kept=() if recipe is None else (*facts.high_precision, *request.quant.keep),
        amax=request.quant.amax,
        force=request.quant.force,
        targets=targets,
        layout=request.layout,
        stream_weights=request.stream_weights,
        weights=request.weights,
        out=request.out or ENGINES / _name(request, plan),
        graphs=request.graphs,
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


def _facts(request: BuildRequest) -> ModelFacts:
    """The model's, or with ``blocks`` those of a model of the same width that is nobody's."""
    facts = model_facts(request.model)
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
    """A folder of its own for fewer blocks: they must not take the place of the model's engines."""
    depth = "" if request.blocks is None else f"-{'+'.join(map(str, request.blocks))}blocks"
    return f"{plan.model}{depth}-{format_size(plan.size)}-{len(plan.stages)}stage"


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


def _check_options(request: BuildRequest, about: BackendFacts) -> None:
    """No option is ignored: one that would change nothing is refused."""
    if request.basis is not None and request.cache.name != "svd":
        raise IncompatibleOptions(
            f"--basis {request.basis} with --cache {request.cache.name}",
            expected="--cache svd: no other cache reads one",
            fix="leave --basis out, or pass --cache svd",
        )
    if request.steps is not None and request.stages != 1:
        raise IncompatibleOptions(
            f"--steps {request.steps} with {request.stages} stages",
            expected="--steps with --stages 1 only: with more, the preset decides every step",
            fix="leave --steps out; 'fresco-trt plan' takes it as the baseline to compare with",
        )
    if request.graphs is not None and about.graph_format != "onnx":
        raise IncompatibleOptions(
            f"--graphs {request.graphs} with the backend {about.name}",
            expected="a backend that is built from ONNX graphs",
            fix="leave --graphs out, or pass --backend onnxruntime",
        )


def _check_quant(request: BuildRequest, recipe: Recipe | None) -> None:
    choice = request.quant
    given = {"--keep": choice.keep, "--amax": choice.amax, "--force": choice.force}
    named = " and ".join(name for name, value in given.items() if value)
    if recipe is None and named:
        raise IncompatibleOptions(
            f"{named} with --precision {request.precision}",
            expected="a precision that quantises: nothing is measured or judged without one",
            fix=f"leave {named} out, or pass --precision int8 or fp8",
        )
    if choice.amax is not None and choice.keep:
        raise IncompatibleOptions(
            f"--keep {' '.join(choice.keep)} with --amax {choice.amax}",
            expected="one of the two: measured amax say which layers were kept",
            fix="give --keep to 'fresco-trt calibrate --measure amax', or leave --amax out",
        )


def _check_targets(recipe: Recipe | None, targets: tuple[str, ...]) -> None:
    """FP8 matrix products came with Ada; a library that names no targets asks its own device."""
    if recipe is None or recipe.precision != "fp8":
        return
    old = [target for target in targets if int(target.removeprefix("sm")) < FP8_FROM]
    if old:
        able = [target for target in targets if target not in old]
        raise UnsupportedPrecision(
            f"--precision fp8 for {', '.join(old)}",
            expected=f"GPUs from sm{FP8_FROM} on: older ones have no FP8 matrix products",
            fix=f"pass --target {','.join(able) or f'sm{FP8_FROM}'}, or --precision int8",
        )


def _check_attention(recipe: Recipe | None, about: BackendFacts) -> None:
    """Codes of attention stand in the graph: a library that is not built from one has none."""
    if recipe is not None and recipe.attention and about.graph_format != "onnx":
        raise IncompatibleOptions(
            f"--recipe {recipe.name} with the backend {about.name}",
            expected="a backend that is built from ONNX graphs: torch's attention takes no codes",
            fix="leave --recipe out to quantise the linear layers, or pass --backend tensorrt-rtx",
        )


def _targets(asked: tuple[str, ...], about: BackendFacts) -> tuple[str, ...]:
    """The targets in the backend's own order, each once: the order given is not an identity."""
    wrong = [target for target in asked if target not in about.targets]
    if not wrong:
        return tuple(target for target in about.targets if target in asked)
    known = ", ".join(about.targets)
    raise IncompatibleOptions(
        f"--target {','.join(asked)} with the backend {about.name}",
        expected=f"one or more of {known}" if known else "no target: it names none here",
        fix="leave --target out" + ("" if known else ", or pass --backend tensorrt-rtx"),
    )
