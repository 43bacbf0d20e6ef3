"""What an enabled pipeline draws with: its own transformer, or the engines of a bundle.

Between the pipeline and the sampler. Both give the plan of a call and the runners for it; the
transformer's are made for the request and gone with it, a bundle's are held until it is disabled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fresco_trt.errors import CalibrationError, DigestMismatch, IncompatibleOptions, UnsupportedSize
from fresco_trt.pipelines.diffusers.digested import DigestedWeights
from fresco_trt.pipelines.diffusers.fit import (
    CACHE_HOOKS,
    check_engines,
    check_whole,
    facts_of,
)
from fresco_trt.plan.cache_schedule import find_cache
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import NONE
from fresco_trt.plan.making import DEFAULT_STAGES, make_plan
from fresco_trt.plan.sizes import Size, format_size, frames_of, size_multiple, with_frames
from fresco_trt.run.transition import draws

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from fresco_trt.backends.base import Runner
    from fresco_trt.bundle import Bundle
    from fresco_trt.bundle.trust import Trust
    from fresco_trt.pipelines.diffusers.call import Call
    from fresco_trt.plan.config import CacheConfig, PresetConfig
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

MANY_STEPS = 50
"""Enough for a cache of any sensible interval to skip some: what is refused then always is."""

Runners = Mapping[str, "Runner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What was asked of ``enable``, as ``fresco_trt.plan`` means it; None for the default."""

    model: str | None
    stages: int | None
    preset: PresetConfig
    cache: CacheConfig | None

    @property
    def stage_count(self) -> int:
        """Three, as in a build, unless asked otherwise."""
        return DEFAULT_STAGES if self.stages is None else self.stages

    @property
    def takes_steps(self) -> bool:
        """Whether a call says how many steps there are, or the plan does."""
        return self.stage_count == 1 and self.preset.name is None

    @property
    def hooks(self) -> frozenset[str]:
        """Hooks that a transformer may have: of diffusers' caches, where nothing else decides what
        is skipped and no grid changes under what they keep.
        """
        cached = self.cache is not None and self.cache.name != NONE
        return frozenset() if cached or self.stage_count > 1 else CACHE_HOOKS

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what was asked for; the preset's are those of its fields."""
        changed = ["preset" if name == "name" else name for name in self.preset.changed]
        own = [name for name in ("model", "stages", "cache") if getattr(self, name) is not None]
        return (*own, *changed)

    def plan(self, facts: ModelFacts, size: Size, steps: int | None) -> StagePlan:
        """The plan for one size; raises as ``fresco_trt.plan`` does."""
        return make_plan(
            facts,
            stages=self.stage_count,
            preset=self.preset,
            size=size,
            steps=steps,
            cache=self.cache or NO_CACHE,
        )


class Source(Protocol):
    """Plan, runners and SVD basis of the calls of one pipeline; ``model`` is whose, None
    for the first one of its dimensions, ``hooks`` which the transformer may have.
    """

    @property
    def model(self) -> str | None: ...
    @property
    def hooks(self) -> frozenset[str]: ...

    def plan(self, pipe: Any, facts: ModelFacts, call: Call) -> StagePlan:
        """The plan of a call. Raises PlanError leaves for what contradicts it."""
        ...

    def text_tokens(self, facts: ModelFacts, call: Call) -> int | None:
        """The text length of a call, None where it has as many tokens as it needs. Raises
        IncompatibleOptions for one without engines.
        """
        ...

    def batch(self, plan: StagePlan, pictures: int) -> int:
        """How many of a call's pictures are drawn in one run; the runs go on side by side."""
        ...

    def runners(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, text_tokens: int, batch: int
    ) -> AbstractContextManager[tuple[Runners, Tensor | None, str]]:
        """Within the scope: runners by engine name, of ``batch`` pictures each, the directions
        [H,k] of a cache that needs them, and the device that they are on. Raises if the weights are
        others than they were.
        """
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


# --- the pipeline's own transformer ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnTransformer:
    """Eager stage graphs around the pipeline's transformer, where it is: no file, no copy."""

    choices: Choices
    directions: Directions | None

    @property
    def model(self) -> str | None:
        """As :class:`Source`: the one that was asked for."""
        return self.choices.model

    @property
    def hooks(self) -> frozenset[str]:
        """As :class:`Source`: those of :class:`Choices`."""
        return self.choices.hooks

    @classmethod
    def of(cls, pipe: Any, facts: ModelFacts, choices: Choices) -> OwnTransformer:
        """With everything checked that does not depend on a call. Raises PlanError leaves and
        CalibrationError.
        """
        actions = choices.cache.actions if choices.cache is not None else ()
        steps = len(actions[0]) if actions else MANY_STEPS
        choices.plan(facts, _any_size(facts, choices), steps if choices.takes_steps else None)
        return cls(choices=choices, directions=Directions.of(pipe, facts, choices))

    def plan(self, pipe: Any, facts: ModelFacts, call: Call) -> StagePlan:
        """As :class:`Source`. One stage without a preset has the steps of the call, diffusers'
        default among them; otherwise the preset has its own.
        """
        plan = self.choices.plan(facts, call.size, call.steps if self.choices.takes_steps else None)
        if "num_inference_steps" in call.given:
            check_steps(call, plan)
        return plan

    def text_tokens(self, facts: ModelFacts, call: Call) -> int | None:
        """As :class:`Source`: any length."""
        return None if facts.text_masked else call.text_tokens

    def batch(self, plan: StagePlan, pictures: int) -> int:
        """As :class:`Source`: all, as diffusers draws them, unless each has noise or tokens of its
        own, which must not depend on the others.
        """
        apart = any(plan.refined) or any(map(draws, plan.transitions))
        return 1 if apart else pictures

    @contextmanager
    def runners(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, text_tokens: int, batch: int
    ) -> Iterator[tuple[Runners, Tensor | None, str]]:
        """As :class:`Source`."""
        from fresco_trt.backends.eager import module_runner
        from fresco_trt.models.registry import family_of
        from fresco_trt.run.sampler import engine_name

        device = str(pipe.transformer.device)
        basis = None if self.directions is None else self.directions.on(pipe, device)
        graphs, runners = family_of(facts).graphs, dict[str, "Runner"]()
        with ExitStack() as scope:
            for index, action in plan.graphs:
                signature = graphs.signature(
                    facts, plan, index, action, text_tokens=text_tokens, batch=batch
                )
                graph = graphs.module(pipe.transformer, signature)
                runner = module_runner(graph, signature, device=device)
                runners[engine_name(index, action)] = scope.enter_context(runner)
            yield runners, basis, device

    def close(self) -> None:
        """As :class:`Source`: nothing is held."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Principal directions [H,k], and the weights that they were measured on."""

    directions: Tensor
    measured: str
    weights: DigestedWeights

    @classmethod
    def of(cls, pipe: Any, facts: ModelFacts, choices: Choices) -> Directions | None:
        """Those of the file that was given; None for a cache that needs none.

        Raises IncompatibleOptions for a cache that lacks its file, CalibrationError for a file that
        is none, or of other weights.
        """
        from fresco_trt.bundle.svd_basis import check_basis, read_basis

        cache = choices.cache or NO_CACHE
        if cache.name == NONE or not find_cache(cache.name).needs_basis:
            return None
        if cache.basis is None:
            raise IncompatibleOptions(
                f"cache={str(cache)!r} without a basis",
                expected="the SVD basis of the pipeline's weights",
                fix="measure it with 'fresco-trt calibrate --measure basis', and add basis=FILE",
            )
        basis = read_basis(cache.basis)
        weights = DigestedWeights.of(pipe.transformer)
        digest = weights.sha256
        check_basis(basis, model=facts.name, weights_sha256=digest, hidden=facts.hidden)
        return cls(directions=basis.directions, measured=digest, weights=weights)

    def on(self, pipe: Any, device: str) -> Tensor:
        """The directions on ``device``. Raises CalibrationError once the weights are others."""
        if self.weights.now(pipe.transformer) != self.measured:
            raise CalibrationError(
                "an SVD basis of the weights that the transformer had",
                expected="those of the weights it has now",
                fix="measure them again, and enable the pipeline with the new file",
            )
        return self.directions.to(device)


# --- the engines of a bundle --------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class BundleEngines:
    """The loaded engines of a bundle that was built from the pipeline's own weights.

    Not a value: it holds the engines, and remembers which weights the pipeline last had.
    """

    bundle: Bundle
    loaded: Runners
    basis: Tensor | None
    device: str
    weights: DigestedWeights
    scope: ExitStack = field(default_factory=ExitStack)

    @property
    def model(self) -> str:
        """As :class:`Source`: the one that was built."""
        return self.bundle.manifest.model.name

    @property
    def hooks(self) -> frozenset[str]:
        """As :class:`Source`: none, which engines would not run."""
        return frozenset()

    @classmethod
    def of(cls, pipe: Any, path: str | os.PathLike[str], trust: Trust) -> BundleEngines:
        """Opened, checked and loaded. Raises BundleError leaves, DigestMismatch for other weights
        among them, and BackendUnavailable.
        """
        from fresco_trt.backends import backend
        from fresco_trt.pipelines.loading import basis_of, load_runners, opened

        bundle = opened(path, trust)
        facts = facts_of(pipe, bundle.manifest.model.name)
        check_engines(facts, bundle)
        check_whole(pipe, facts)
        weights = DigestedWeights.of(pipe.transformer)
        _check_weights(weights.sha256, bundle)
        library = backend(bundle.manifest.backend.name)
        device = library.describe().device
        with ExitStack() as scope:
            with bundle.unchanged():
                loaded = load_runners(bundle, library, scope, trust)
                basis = basis_of(bundle, device)
            return cls(
                bundle=bundle,
                loaded=loaded,
                basis=basis,
                device=device,
                weights=weights,
                scope=scope.pop_all(),
            )

    def plan(self, pipe: Any, facts: ModelFacts, call: Call) -> StagePlan:
        """As :class:`Source`: the one that the engines were built for, which the call has to ask
        for. Several stages have steps of their own: there a call may leave their number out.
        """
        plan = self.bundle.plan
        if call.size != plan.size:
            known = {**call.values, "width": call.width, "height": call.height}
            names = [name for name in ("width", "height", "num_frames") if name in known]
            given = ", ".join(call.spelt(name, known[name]) for name in names)
            raise UnsupportedSize(
                f"{given} with engines for {format_size(plan.size)}",
                expected=call.driver.sized(*plan.size),
                fix="pass these, or enable the pipeline with engines for that size",
            )
        if "num_inference_steps" in call.given or len(plan.stages) == 1:
            check_steps(call, plan)
        return plan

    def text_tokens(self, facts: ModelFacts, call: Call) -> int:
        """As :class:`Source`: the one that the engines were built for, with room left where the
        padding is masked.
        """
        built, name = self.bundle.manifest.text_tokens, "max_sequence_length"
        if call.text_tokens != built and not facts.text_masked:
            embedded = f"prompt_embeds of {call.text_tokens} tokens"
            given = call.spelt(name, call.length) if call.prompt_embeds is None else embedded
            raise IncompatibleOptions(
                f"{given} with engines for {built}",
                expected=f"{name}={built}, or prompt_embeds of that length",
                fix=f"pass {name}={built}, or enable the pipeline with engines for that length",
            )
        return built

    def batch(self, plan: StagePlan, pictures: int) -> int:
        """As :class:`Source`: one, which the engines were built for."""
        return 1

    @contextmanager
    def runners(
        self, pipe: Any, facts: ModelFacts, plan: StagePlan, text_tokens: int, batch: int
    ) -> Iterator[tuple[Runners, Tensor | None, str]]:
        """As :class:`Source`."""
        check_whole(pipe, facts)
        _check_weights(self.weights.now(pipe.transformer), self.bundle)
        yield self.loaded, self.basis, self.device

    def close(self) -> None:
        """As :class:`Source`: the engines."""
        self.scope.close()


# --- what both ask ------------------------------------------------------------------------------


def _any_size(facts: ModelFacts, choices: Choices) -> Size:
    """About the model's own size, that every plan suits: the size itself comes with a call. Stages
    that the model has not are the plan's to refuse.
    """
    if choices.stage_count not in facts.stage_counts:
        return facts.default_size
    cell = size_multiple(facts, choices.stage_count, exact=True)
    width, height = (max(side // cell, 1) * cell for side in facts.default_size[:2])
    return with_frames((width, height), frames_of(facts.default_size))


def check_steps(call: Call, plan: StagePlan) -> None:
    """Raise IncompatibleOptions for a number of steps that is not the plan's."""
    if call.steps != plan.nfe:
        one = len(plan.stages) == 1
        raise IncompatibleOptions(
            f"{call.spelt('num_inference_steps', call.steps)} with a plan of {plan.nfe} steps",
            expected=f"num_inference_steps={plan.nfe}{'' if one else ', or none'}",
            fix=f"pass num_inference_steps={plan.nfe}, or enable the pipeline with another plan",
        )


def _check_weights(digest: str, bundle: Bundle) -> None:
    built = bundle.manifest.model
    if built.weights_sha256 != digest:
        raise DigestMismatch(
            f"engines of {built.name} with weights {built.weights_sha256[:12]}...",
            expected=f"those of the pipeline's weights, {digest[:12]}...",
            fix="build engines from the pipeline's own weights and precision",
        )
