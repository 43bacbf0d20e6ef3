"""What is measured side by side: the plain pipeline, compiled or not, and our plans on engines.

Every method draws a whole picture's latents from a seed, between text encoder and decoder, and says
how long that took on the wall and how much of it the device spent inside the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from bench.gpu.device import Stopwatch, clock_of
from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.bench.engines import Kind, kinds_of, plan_method
from fresco_trt.bench.instrument import said
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import flops_of_step, plan_cost
from fresco_trt.plan.making import make_plan
from fresco_trt.run.captured import CapturedStages, graph_of
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning

if TYPE_CHECKING:
    from torch import Tensor

    from bench.gpu.engines import Subject
    from fresco_trt.backends.base import Runner
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan

_LOG = logging.getLogger(__name__)

PRESETS = ("quality", "balanced", "fast", "turbo")
HICACHE = CacheConfig(name="hicache")
EAGER, COMPILED = "diffusers", "diffusers, torch.compile"
CACHE_DIT, CACHE_DIT_COMPILED = f"{EAGER}, cache-dit", f"{COMPILED}, cache-dit"
PIPELINES = (EAGER, COMPILED, CACHE_DIT, CACHE_DIT_COMPILED)
"""Ways to run the plain pipeline."""

CACHED = CACHE_DIT, CACHE_DIT_COMPILED
"""Those in which some steps are answered by a cache."""

FEW = 10, 5
"""Steps of the control: what the plain pipeline, compiled, draws in the time of some presets."""

LONG = 28
"""Steps at the full grid from which on a method is too long to be measured in every round."""

TRANSFORMER = "transformer"
"""What the network of the plain pipeline is called among the parts that are timed."""


# --- points -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method at one setting: of our ``plan``, or where that is None the plain ``pipeline`` with
    ``steps`` steps. ``group`` is what it is dropped with.
    """

    name: str
    group: str
    steps: int
    plan: StagePlan | None = None
    pipeline: str | None = None

    @property
    def is_long(self) -> bool:
        """Whether it is measured in the first rounds only, for it takes the time of many others."""
        whole = self.plan is None or len(self.plan.stages) == 1
        return whole and self.steps >= LONG


def points_of(facts: ModelFacts, size: Size, *, against: str = "all") -> tuple[Point, ...]:
    """Every point, the most important first; those of one group together.

    What has to be left out for lack of time is left out from the end, group by group. Ours stand
    beside the plain pipeline in ``all`` its ways, or beside the "compiled" one alone.
    """
    long = facts.default_steps

    def plain(group: str, *pipelines: str, steps: tuple[int, ...] = (long,)) -> list[Point]:
        return [
            Point(name=name_of_plain(each, count), group=group, steps=count, pipeline=each)
            for each in pipelines
            for count in steps
        ]

    def staged(group: str, cache: CacheConfig) -> list[Point]:
        plans = [
            make_plan(facts, stages=3, preset=preset, size=size, cache=cache) for preset in PRESETS
        ]
        return [_planned(f"fresco {plan.preset}, {group}", group, plan) for plan in plans]

    ours = (*staged("3 stages", NO_CACHE), *staged("3 stages, hicache", HICACHE))
    few = plain("plain, few steps", COMPILED, steps=FEW)
    if against != "all":
        return (*plain("plain, long", COMPILED), *ours, *few)
    single = make_plan(facts, stages=1, steps=LONG, size=size)
    return (
        *plain("plain, long", EAGER, COMPILED),
        *ours,
        *plain("cache-dit", CACHE_DIT, CACHE_DIT_COMPILED),
        *few,
        _planned(f"one static engine, {LONG} steps", "one static engine", single),
    )


def name_of_plain(pipeline: str, steps: int) -> str:
    """The name of a plain point; ``pipeline`` is one of :data:`PIPELINES`."""
    return f"{pipeline}, {steps} steps"


def _planned(name: str, group: str, plan: StagePlan) -> Point:
    return Point(name=name, group=group, steps=plan.nfe, plan=plan)


def flops_of(point: Point, facts: ModelFacts, tokens: int) -> float | None:
    """FLOPs of a point's picture; ``tokens`` are those of the full grid. None where a cache that is
    not ours saves some.
    """
    if point.plan is not None:
        return plan_cost(facts, point.plan).flops
    if point.pipeline in CACHED:
        return None
    return point.steps * flops_of_step(facts, tokens)


# --- drawing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One picture: wall seconds until its latents [1,C,h,w] were on the CPU, and the seconds that
    the device spent in each call of each engine, or of the transformer, by name. ``by_stages``:
    with one launch a stage.
    """

    seconds: float
    inside: Mapping[str, Sequence[float]]
    latents: Tensor
    by_stages: bool = False

    @property
    def engine_seconds(self) -> float:
        """Seconds inside all calls together."""
        return sum(sum(each) for each in self.inside.values())


Method: TypeAlias = Callable[[int], Timed]
"""Draws one picture from a seed."""


class TimedRunner(BorrowedRunner):
    """A runner whose calls a stopwatch takes down, under the engine's name. Its marks may be
    captured with the call between them.
    """

    def __init__(self, name: str, runner: Runner, watch: Stopwatch) -> None:
        super().__init__(runner)
        self.graph = graph_of(runner)
        self._name, self._watch = name, watch

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`~fresco_trt.backends.base.Runner`."""
        start = self._watch.mark()
        outputs = self._runner(inputs)
        self._watch.add(self._name, start)
        return outputs


def conditioning(subject: Subject) -> dict[str, Tensor]:
    """A random prompt as engines take it: ``text`` [1,T,D], ``pooled`` [1,P], and ``guidance`` [1]
    where the model has it; float32, on the device.
    """
    import torch

    facts, generator = subject.facts, torch.Generator().manual_seed(1)
    inputs = {
        "text": torch.randn(1, facts.text_tokens, facts.text_dim, generator=generator),
        "pooled": torch.randn(1, facts.pooled_dim, generator=generator),
    }
    if facts.guidance_default is not None:
        inputs["guidance"] = torch.tensor([facts.guidance_default])
    return {name: value.to(subject.device) for name, value in inputs.items()}


def staged_method(
    plan: StagePlan,
    subject: Subject,
    runners: Mapping[str, Runner],
    inputs: Mapping[str, Tensor],
) -> Method:
    """Our sampler on the entered runners of a plan, by the sampler's names for them: with one
    launch a stage where they can be captured, step by step elsewhere.
    """
    watch = Stopwatch(clock_of(subject.device))
    timed = {name: TimedRunner(name, runner, watch) for name, runner in runners.items()}
    facts = subject.facts
    denoiser = Denoiser.of(facts, plan, timed, text_tokens=facts.text_tokens, device=subject.device)
    draw, stages = plan_method(denoiser), CapturedStages.of(denoiser)

    def by_steps(seed: int) -> Timed:
        drawn = draw(inputs, seed)
        return Timed(seconds=drawn.seconds, inside=watch.taken(), latents=drawn.latents)

    def by_stages(stages: CapturedStages, seed: int) -> Timed:
        began = perf_counter()
        *_, last = stages.draw(Conditioning(inputs=inputs), seed)
        latents = denoiser.patchifier.unpack(last.tokens, plan.stages[-1].grid).cpu()
        seconds, captured = perf_counter() - began, stages.is_captured
        return Timed(seconds=seconds, inside=watch.taken(), latents=latents, by_stages=captured)

    def method(seed: int) -> Timed:
        nonlocal stages
        if stages is not None:
            try:
                return by_stages(stages, seed)
            except Exception as error:  # on a new card it may fail in any library
                _LOG.warning("measured step by step from here on: %s", said(error))
                stages = None
                watch.reset()
        return by_steps(seed)

    return method


# --- what a point will take -------------------------------------------------------------------


def expected_seconds(
    point: Point, engines: Mapping[Kind, float], plain: Mapping[str, float]
) -> float | None:
    """Seconds that a point's picture should take, from those of each engine's call and of a plain
    step (by the pipeline); None for a point that lacks one of them.
    """
    if point.plan is None:
        step = plain.get(str(point.pipeline))
        return None if step is None else point.steps * step
    kinds = kinds_of(point.plan)
    if not engines.keys() >= set(kinds.values()):
        return None
    return sum(
        engines[kinds[f"stage{index + 1}.{action}"]]
        for index, stage in enumerate(point.plan.stages)
        for action in stage.actions
    )
