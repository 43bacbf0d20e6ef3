"""What is to be built: from the caller's options to a request with nothing left open.

First step of a build. Everything that can be refused without reading weights or writing a file is
refused here, so that `--dry-run` and a build of many sizes stop at the same errors, at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend
from fresco_trt.backends.base import check_precision
from fresco_trt.canonical import MANIFEST_NAME
from fresco_trt.doctor import in_words, missing_to_build, missing_to_run
from fresco_trt.errors import IncompatibleOptions, OutputNotWritable, UnsupportedPrecision
from fresco_trt.models.flux import stage_signature
from fresco_trt.models.zoo import model_facts
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.cost import plan_summary
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.recipes import find_recipe
from fresco_trt.plan.sizes import format_size, parse_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fresco_trt.backends.base import Backend, BackendFacts
    from fresco_trt.plan.caching import CacheChoice
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
    are, beside the model's own; ``ranges`` a file of measured ones (None: measured by the build);
    ``force`` publishes a bundle that fails the quality gate.
    """

    recipe: str | None = None
    keep: tuple[str, ...] = ()
    ranges: Path | None = None
    force: bool = False


AS_RECIPE = QuantChoice()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Build choices as the caller stated them; None means the default. One knob, one place."""

    model: str
    stages: int = 3
    size: Size | None = None
    preset: str | None = None
    steps: int | None = None
    delta: float | None = None
    weights: str | None = None
    backend: str = "onnxruntime"
    precision: str = "fp32"
    quant: QuantChoice = AS_RECIPE
    cache: CacheChoice = NO_CACHE
    basis: Path | None = None
    targets: tuple[str, ...] = ()
    out: Path | None = None
    graphs: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request with nothing left open: what will be built, with what, for which GPUs, and where.

    ``delta`` is the tolerance that placed the plan's switches, if one did; ``basis`` the file of
    principal directions that was given, if one was; ``recipe`` what quantises, if anything does,
    and ``kept`` the patterns of layers that it leaves alone; ``graphs`` is where the ONNX graphs
    are kept, if they are.
    """

    facts: ModelFacts
    plan: StagePlan
    delta: float | None
    basis: Path | None
    backend: Backend
    precision: str
    recipe: Recipe | None
    kept: tuple[str, ...]
    ranges: Path | None
    force: bool
    targets: tuple[str, ...]
    weights: str | None
    out: Path
    graphs: Path | None

    @property
    def dtype(self) -> str:
        """torch's name of the type that weights have where they are not quantised."""
        return stored_dtype(self.precision, self.backend.describe())

    def signature(self, stage: int, action: Action) -> GraphSignature:
        """Signature of an engine of the stage counted from 0."""
        return stage_signature(self.facts, self.plan, stage, self.facts.text_tokens, action)


def stored_dtype(precision: str, about: BackendFacts) -> str:
    """torch's name of the type in which weights are stored that are not quantised."""
    return DTYPES[precision if precision in DTYPES else about.rest]


def resolve(request: BuildRequest) -> Resolved:
    """Check everything that can be checked without touching weights or a file.

    Raises PlanError leaves, IncompatibleOptions for options that would be ignored or contradict
    one another, and UnsupportedPrecision.
    """
    facts = model_facts(request.model)
    plan = make_plan(
        facts,
        stages=request.stages,
        preset=request.preset,
        size=request.size,
        steps=request.steps,
        delta=request.delta,
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
    name = f"{facts.name}-{format_size(plan.size)}-{len(plan.stages)}stage"
    return Resolved(
        facts=facts,
        plan=plan,
        delta=request.delta,
        basis=request.basis,
        backend=library,
        precision=request.precision,
        recipe=recipe,
        kept=() if recipe is None else (*facts.high_precision, *request.quant.keep),
        ranges=request.quant.ranges,
        force=request.quant.force,
        targets=targets,
        weights=request.weights,
        out=request.out or ENGINES / name,
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


def describe(request: BuildRequest) -> dict[str, Any]:
    """What a build would do, without weights: the plan's summary and its engines."""
    resolved = resolve(request)
    return {
        "out": str(resolved.out),
        "backend": resolved.backend.name,
        "precision": resolved.precision,
        "targets": list(resolved.targets),
        **_feasibility(resolved.backend),
        "reuse": _reuse(resolved.out),
        "plan": plan_summary(resolved.facts, resolved.plan, request.steps),
        "engines": _engines(resolved),
    }


def _engines(resolved: Resolved) -> list[dict[str, Any]]:
    from fresco_trt.run.sampler import engine_name

    grids = [stage.grid for stage in resolved.plan.stages]
    return [
        {
            "name": engine_name(index, action),
            "tokens": resolved.plan.tokens[index],
            "latents": f"{grids[index].width}x{grids[index].height}",
            "signature": resolved.signature(index, action).to_json(),
        }
        for index, action in resolved.plan.graphs
    ]


def _feasibility(library: Backend) -> dict[str, Any]:
    """Whether this machine can build, and what it lacks to build or, failing that, to run."""
    to_build, to_run = missing_to_build(library), missing_to_run(library)
    if to_build:
        state = f"cannot be built here; missing: {in_words(to_build)}"
    elif to_run:
        state = f"ready to build; missing to run it here: {in_words(to_run)}"
    else:
        state = "ready to build"
    return {"builds": not to_build, "runs": not to_run, "state": state}


def _reuse(out: Path) -> str:
    if not (out / MANIFEST_NAME).is_file():
        return "nothing there to reuse"
    return "a bundle is there; whether its key is the same is known once the weights are read"


# --- options ----------------------------------------------------------------------------------


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
            expected="--cache svd: no other cache has principal directions",
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
    given = {"--keep": choice.keep, "--ranges": choice.ranges, "--force": choice.force}
    named = " and ".join(name for name, value in given.items() if value)
    if recipe is None and named:
        raise IncompatibleOptions(
            f"{named} with --precision {request.precision}",
            expected="a precision that quantises: nothing is measured or judged without one",
            fix=f"leave {named} out, or pass --precision int8 or fp8",
        )
    if choice.ranges is not None and choice.keep:
        raise IncompatibleOptions(
            f"--keep {' '.join(choice.keep)} with --ranges {choice.ranges}",
            expected="one of the two: measured ranges say which layers were kept",
            fix="give --keep to 'fresco-trt calibrate --measure ranges', or leave --ranges out",
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
