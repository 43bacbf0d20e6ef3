"""What is measured side by side: the plain pipeline, compiled or not, and our plans on engines.

Every method draws a whole picture's latents from a seed, between text encoder and decoder, and says
how long that took on the wall and how much of it the device spent inside the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.gpu.device import Stopwatch, clock_of
from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.bench.engines import Kind, kinds_of, plan_method
from fresco_trt.bench.plain import Plain, denoise
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.cost import flops_of_step, plan_cost
from fresco_trt.plan.making import make_plan
from fresco_trt.run.denoise import Denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from bench.gpu.engines import Subject
    from fresco_trt.backends.base import Runner
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size
    from fresco_trt.plan.stages import StagePlan

PRESETS = ("quality", "balanced", "fast", "turbo")
HICACHE = CacheConfig(name="hicache")
EAGER, COMPILED = "diffusers", "diffusers, torch.compile"

TRANSFORMER = "transformer"
"""What the network of the plain pipeline is called among the parts that are timed."""


# --- points -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method at one setting: of our ``plan``, or where that is None the plain pipeline with
    ``steps`` steps. ``group`` is what it is dropped with.
    """

    name: str
    group: str
    steps: int
    plan: StagePlan | None = None
    compiled: bool = False


def points_of(facts: ModelFacts, size: Size) -> tuple[Point, ...]:
    """Every point, the most important first; those of one group together.

    What has to be left out for lack of time is left out from the end, group by group.
    """
    long, short = facts.default_steps, 28

    def plain(group: str, steps: int) -> list[Point]:
        return [
            Point(name=name_of_plain(each, steps), group=group, steps=steps, compiled=bool(number))
            for number, each in enumerate((EAGER, COMPILED))
        ]

    def staged(group: str, stages: int, cache: CacheConfig = NO_CACHE) -> list[Point]:
        plans = [
            make_plan(facts, stages=stages, preset=preset, size=size, cache=cache)
            for preset in PRESETS
        ]
        return [_planned(f"fresco {plan.preset}, {group}", group, plan) for plan in plans]

    def single(group: str, steps: int) -> list[Point]:
        plan = make_plan(facts, stages=1, steps=steps, size=size)
        return [_planned(f"one static engine, {steps} steps", group, plan)]

    return (
        *plain("plain, long", long),
        *staged("3 stages", 3),
        *plain("plain, short", short),
        *staged("3 stages, hicache", 3, HICACHE),
        *staged("2 stages", 2),
        *single("one static engine", short),
        *staged("2 stages, hicache", 2, HICACHE),
        *single("one static engine, long", long),
    )


def name_of_plain(pipeline: str, steps: int) -> str:
    """The name of a plain point; ``pipeline`` is :data:`EAGER` or :data:`COMPILED`."""
    return f"{pipeline}, {steps} steps"


def _planned(name: str, group: str, plan: StagePlan) -> Point:
    return Point(name=name, group=group, steps=plan.nfe, plan=plan)


def flops_of(point: Point, facts: ModelFacts, tokens: int) -> float:
    """FLOPs of a point's picture; ``tokens`` are those of the full grid."""
    if point.plan is not None:
        return plan_cost(facts, point.plan).flops
    return point.steps * flops_of_step(facts, tokens)


# --- drawing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One picture: wall seconds until its latents [1,C,h,w] were on the CPU, and the seconds that
    the device spent in each call of each engine, or of the transformer, by name.
    """

    seconds: float
    inside: Mapping[str, Sequence[float]]
    latents: Tensor

    @property
    def engine_seconds(self) -> float:
        """Seconds inside all calls together."""
        return sum(sum(each) for each in self.inside.values())


Method: TypeAlias = Callable[[int], Timed]
"""Draws one picture from a seed."""


class TimedRunner(BorrowedRunner):
    """A runner whose calls a stopwatch takes down, under the engine's name."""

    def __init__(self, name: str, runner: Runner, watch: Stopwatch) -> None:
        super().__init__(runner)
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
    """Our sampler on the entered runners of a plan, by the sampler's names for them."""
    watch = Stopwatch(clock_of(subject.device))
    timed = {name: TimedRunner(name, runner, watch) for name, runner in runners.items()}
    facts = subject.facts
    denoiser = Denoiser.of(facts, plan, timed, text_tokens=facts.text_tokens, device=subject.device)
    draw = plan_method(denoiser)

    def method(seed: int) -> Timed:
        drawn = draw(inputs, seed)
        return Timed(seconds=drawn.seconds, inside=watch.taken(), latents=drawn.latents)

    return method


class PlainPipeline:
    """diffusers' own FluxPipeline around a transformer, without encoders and decoder."""

    def __init__(self, transformer: Any, subject: Subject, inputs: Mapping[str, Tensor]) -> None:
        self._subject = subject
        self._inputs = {name: inputs[name].to(subject.dtype) for name in ("text", "pooled")}
        self._pipe = _pipe(transformer, subject.facts)
        self._watch = Stopwatch(clock_of(subject.device))
        self._entered: list[Any] = []
        transformer.register_forward_pre_hook(self._enter)
        transformer.register_forward_hook(self._leave)

    def method(self, steps: int) -> Method:
        """The pipeline's denoising at a number of steps."""

        def method(seed: int) -> Timed:
            facts, size = self._subject.facts, self._subject.size
            point = Plain(steps=steps)
            latents, seconds = denoise(self._pipe, facts, size, self._inputs, [seed], point)
            return Timed(seconds=seconds, inside=self._watch.taken(), latents=latents)

        return method

    def _enter(self, *_: object) -> None:
        self._entered.append(self._watch.mark())

    def _leave(self, *_: object) -> None:
        self._watch.add(TRANSFORMER, self._entered.pop())


def compiled_blocks(transformer: Any) -> Any:
    """The transformer, its blocks compiled by torch.compile one kind at a time, as diffusers does
    it: as fast as the whole at once, and compiled in a fraction of the time.
    """
    transformer.compile_repeated_blocks(fullgraph=True)
    return transformer


def _pipe(transformer: Any, facts: ModelFacts) -> Any:
    import diffusers

    untyped: Any = diffusers
    rule = facts.shift
    shifted = {} if rule is None else _dynamic(rule)
    parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = untyped.FluxPipeline(
        scheduler=untyped.FlowMatchEulerDiscreteScheduler(**shifted),
        transformer=transformer,
        **dict.fromkeys(parts),
    )
    pipe.vae_scale_factor = facts.vae_scale  # which it would take from the decoder
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _dynamic(rule: Any) -> dict[str, Any]:
    return {
        "use_dynamic_shifting": True,
        "base_shift": rule.base_shift,
        "max_shift": rule.max_shift,
        "base_image_seq_len": rule.base_tokens,
        "max_image_seq_len": rule.max_tokens,
    }


# --- what a point will take -------------------------------------------------------------------


def expected_seconds(
    point: Point, engines: Mapping[Kind, float], plain: Mapping[bool, float]
) -> float | None:
    """Seconds that a point's picture should take, from those of each engine's call and of a plain
    step (by whether it is compiled); None for a point that lacks one of them.
    """
    if point.plan is None:
        return point.steps * plain[point.compiled] if point.compiled in plain else None
    kinds = kinds_of(point.plan)
    if not engines.keys() >= set(kinds.values()):
        return None
    return sum(
        engines[kinds[f"stage{index + 1}.{action}"]]
        for index, stage in enumerate(point.plan.stages)
        for action in stage.actions
    )
