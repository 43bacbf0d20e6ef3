"""Laws of the sampler: one stage is diffusers' Euler sampler, many stages stay on one path."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import EngineFailed, NonFiniteValues, SignatureMismatch
from fresco_trt.models.family import Patchifier
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.schedule import rewind_sigma, stage_sigmas
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.plan.stages import Action, Solver, Stage, StagePlan, Transition
from fresco_trt.run.finite import FiniteCheck
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.sampler import Conditioning, Step, engine_name, sample
from fresco_trt.run.transition import renoise

CHANNELS, SIDE = 4, 64
NOTHING = Conditioning(inputs={})
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PackedPatchifier:
    """FLUX's 2x2 packing, with the token count as the only table."""

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = latents.shape
        blocks = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        tokens = blocks.permute(0, 2, 4, 1, 3, 5)
        return tokens.reshape(batch, height * width // 4, channels * 4)

    def unpack(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        blocks = tokens.reshape(len(tokens), grid.height // 2, grid.width // 2, -1, 2, 2)
        return blocks.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, grid.height, grid.width)

    def positions(self, grid: Grid, image: int = 0) -> torch.Tensor:
        return torch.zeros(grid.tokens, 3)

    def tables(self, positions: torch.Tensor) -> Mapping[str, torch.Tensor]:
        count = len(positions)
        return {"rope_cos": torch.ones(count, 2), "rope_sin": torch.zeros(count, 2)}


class FlatPatchifier(PackedPatchifier):
    """Packing as a view of the latents: stepping it in place would ruin the noise pyramid."""

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.view(len(latents), latents.shape[-1] ** 2 // 4, -1)

    def unpack(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return tokens.view(len(tokens), -1, grid.height, grid.width)


def curved(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + sigma) + 0.3 * x - 0.1


def towards(clean: float) -> Velocity:
    """The exact velocity of the path to a constant picture: every path is a straight line."""
    return lambda x, sigma: (x - clean) / sigma


def grid_of(scale: float) -> Grid:
    side = round(SIDE * scale)
    return Grid(height=side, width=side, scale=scale)


def stage_of(scale: float, sigmas: Iterable[float]) -> Stage:
    sigmas = tuple(sigmas)
    actions: list[Action] = ["full"] * (len(sigmas) - 1)
    return Stage(grid=grid_of(scale), sigmas=sigmas, actions=tuple(actions))


def plan_of(
    stages: tuple[Stage, ...], transitions: tuple[Transition, ...] = (), solver: Any = "euler"
) -> StagePlan:
    return StagePlan(
        model="flux-tiny",
        size=(256, 256),
        stages=stages,
        transitions=transitions,
        solver=solver,
    )


def line(start: float, end: float, steps: int) -> tuple[float, ...]:
    return stage_sigmas(start, end, steps, h=1.0)


def three_stages(lift: Any = "bilinear", noise: Any = "field") -> StagePlan:
    """Three grids, two, three and four steps, and restarts at the rewind level."""
    first, second = rewind_sigma(0.8), rewind_sigma(0.5)
    return plan_of(
        (
            stage_of(0.25, line(1.0, 0.8, 2)),
            stage_of(0.5, line(first, 0.5, 3)),
            stage_of(1.0, line(second, 0.0, 4)),
        ),
        (
            Transition(sigma=0.8, restart=first, lift=lift, noise=noise),
            Transition(sigma=0.5, restart=second, lift=lift, noise=noise),
        ),
    )


def one_stage(sigmas: Iterable[float], solver: str = "euler") -> StagePlan:
    return plan_of((stage_of(1.0, sigmas),), solver=solver)


def pyramid_of(seeds: Sequence[int] = (7,)) -> NoisePyramid:
    return NoisePyramid.from_seed(seeds, channels=CHANNELS, height=SIDE, width=SIDE, coarsest=0.25)


def signature_of(grid: Grid, inputs: Mapping[str, torch.Tensor], batch: int) -> GraphSignature:
    shapes = {
        "latents": (batch, grid.tokens, 4 * CHANNELS),
        "timestep": (batch,),
        "rope_cos": (grid.tokens, 2),
        "rope_sin": (grid.tokens, 2),
        **{name: tuple(value.shape) for name, value in inputs.items()},
    }
    specs = [TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()]
    velocity = TensorSpec(name="velocity", dtype="float32", shape=shapes["latents"])
    return GraphSignature(inputs=tuple(specs), outputs=(velocity,))


def runners_of(
    plan: StagePlan,
    velocity: Velocity = curved,
    inputs: Mapping[str, torch.Tensor] = MappingProxyType({}),
    batch: int = 1,
) -> dict[str, FakeRunner]:
    """Entered runners with the closed-form ``velocity``; each call overwrites the last output."""

    def engine(named: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {"velocity": velocity(named["latents"], named["timestep"].reshape(-1, 1, 1))}

    return {
        engine_name(index, "full"): FakeRunner(
            signature_of(stage.grid, inputs, batch), engine
        ).__enter__()
        for index, stage in enumerate(plan.stages)
    }


def run(
    plan: StagePlan,
    velocity: Velocity = curved,
    seeds: Sequence[int] = (7,),
    *,
    pyramid: NoisePyramid | None = None,
    patchifier: Patchifier | None = None,
    fresh: torch.Generator | None = None,
) -> list[Step]:
    """All steps, with their tokens and velocity kept as the contract says: as clones."""
    runners = runners_of(plan, velocity, batch=len(seeds))
    pyramid, patchifier = pyramid or pyramid_of(seeds), patchifier or PackedPatchifier()
    return [
        replace(step, tokens=step.tokens.clone(), velocity=step.velocity.clone())
        for step in sample(plan, runners, NOTHING, pyramid, patchifier, fresh=fresh)
    ]


# --- one stage ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_one_stage_is_the_diffusers_sampler(steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)], mu=1.15)
    plan = one_stage(scheduler.sigmas.tolist())
    x = PackedPatchifier().pack(pyramid_of().field(1.0))
    for step, timestep, sigma in zip(
        run(plan), scheduler.timesteps, scheduler.sigmas, strict=False
    ):
        v = curved(x, sigma)
        x = scheduler.step(v, timestep, x).prev_sample
        assert torch.equal(step.velocity, v)
        assert torch.equal(step.tokens, x)
    assert step.step == steps - 1


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("multistep", 2)])
def test_the_plans_solver_is_of_its_order(solver: str, order: int) -> None:
    """On dx/dsigma = x the solution at 0 is x(1)/e; twice the steps divide the error by 2^order."""
    start = PackedPatchifier().pack(pyramid_of().field(1.0))
    counts, errors = (8, 16, 32, 64, 128), []
    for count in counts:
        final = run(one_stage(line(1.0, 0.0, count), solver), lambda x, _: x)[-1].tokens
        errors.append(float((final - start / math.e).abs().max()))
    logs = torch.tensor([counts, errors], dtype=torch.float64).log()
    deviations = logs - logs.mean(dim=1, keepdim=True)
    slope = float((deviations[0] * deviations[1]).sum() / deviations[0].square().sum())
    assert slope == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "first"),
    [("multistep", {0, 2, 5}), ("dpmpp_2m", {0, 2, 5, 8}), ("unipc", {0, 2, 5, 8})],
)
def test_a_multistep_solver_begins_every_stage_without_history(
    solver: Solver, first: set[int]
) -> None:
    """The first step of a stage is Euler's, bit for bit, and so may be the one to 0; no other."""
    plan = replace(three_stages(), solver=solver)
    runners = runners_of(plan, curved)
    steps = sample(plan, runners, NOTHING, pyramid_of(), PackedPatchifier())
    for step in steps:
        given = runners[engine_name(step.stage, "full")].calls[-1]["latents"]
        euler = given + (step.sigma_next - step.sigma) * step.velocity
        assert torch.equal(step.tokens, euler) is (step.step in first)


# --- many stages ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["field", "parent", "rewind"])
def test_every_step_of_every_stage_is_on_the_path_of_one_noise_field(noise: str) -> None:
    plan, pyramid = three_stages("haar", noise), pyramid_of()
    for step in run(plan, towards(0.4)):
        grid = plan.stages[step.stage].grid
        clean = torch.full_like(pyramid.field(grid.scale), 0.4)
        expected = renoise(clean, pyramid.field(grid.scale), step.sigma_next)
        latents = PackedPatchifier().unpack(step.tokens, grid)
        assert torch.allclose(latents, expected, atol=1e-5), step


def test_fresh_noise_leaves_the_path_of_the_field() -> None:
    """The ablation is one: on the same plan the states after a transition differ."""
    plan = three_stages("haar", "fresh")
    steps = run(plan, towards(0.4), fresh=fresh_generator(7))
    same = run(plan, towards(0.4), fresh=fresh_generator(7))
    unified = run(three_stages("haar", "field"), towards(0.4))
    assert torch.equal(steps[3].tokens, same[3].tokens)
    assert torch.equal(steps[1].tokens, unified[1].tokens)
    assert (steps[2].tokens - unified[2].tokens).abs().max() > 0.1


def test_one_plan_may_mix_noise_sources() -> None:
    """Only the transition that draws fresh noise gets the generator."""
    fresh, field = (three_stages("haar", noise) for noise in ("fresh", "field"))
    mixed = replace(fresh, transitions=(field.transitions[0], fresh.transitions[1]))
    steps = run(mixed, towards(0.4), fresh=fresh_generator(7))
    unified = run(field, towards(0.4))
    assert torch.equal(steps[4].tokens, unified[4].tokens)
    assert not torch.equal(steps[5].tokens, unified[5].tokens)


def test_steps_follow_the_plan() -> None:
    plan = three_stages()
    steps = run(plan)
    pairs = [pair for stage in plan.stages for pair in itertools.pairwise(stage.sigmas)]
    assert [(step.sigma, step.sigma_next) for step in steps] == pairs
    assert [step.stage for step in steps] == [0] * 2 + [1] * 3 + [2] * 4
    assert [step.step for step in steps] == list(range(9))
    assert {step.steps_total for step in steps} == {9}
    assert {step.action for step in steps} == {"full"}
    for step in steps:
        tokens = plan.stages[step.stage].grid.tokens
        assert step.tokens.shape == step.velocity.shape == (1, tokens, 4 * CHANNELS)
        assert step.engine_seconds > 0
        assert step.host_seconds > 0


def test_engines_get_constants_tables_and_their_own_sigma() -> None:
    plan = three_stages()
    inputs = {"text": torch.ones(2, 3, 5), "pooled": torch.ones(2, 5), "guidance": torch.ones(2)}
    runners = runners_of(plan, curved, inputs, batch=2)
    steps = list(
        sample(plan, runners, Conditioning(inputs=inputs), pyramid_of([1, 2]), PackedPatchifier())
    )
    calls = [call for runner in runners.values() for call in runner.calls]
    for step, call in zip(steps, calls, strict=True):
        assert torch.equal(call["timestep"], torch.full((2,), step.sigma, dtype=torch.float32))
        assert call["latents"].shape[1] == plan.stages[step.stage].grid.tokens
        assert len(call["rope_cos"]) == plan.stages[step.stage].grid.tokens
        for name, value in inputs.items():
            assert torch.equal(call[name], value)
        assert call.keys() == {"latents", "timestep", "rope_cos", "rope_sin", *inputs}


# --- reproducible and isolated --------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_differs() -> None:
    plan = three_stages()
    one, same, other = (run(plan, seeds=[seed])[-1].tokens for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_batch_is_its_pictures() -> None:
    plan = three_stages()
    batch = run(plan, seeds=[7, 8])[-1].tokens
    for row, seed in enumerate((7, 8)):
        assert torch.allclose(batch[row], run(plan, seeds=[seed])[-1].tokens[0], atol=1e-6)


def test_interleaved_samplers_share_runners_pyramid_and_no_state() -> None:
    """The runners' only output buffer is overwritten by the other sampler between two steps."""
    plan, pyramid = three_stages(noise="parent"), pyramid_of()
    alone = run(plan)
    runners = runners_of(plan, curved)
    first, second = (sample(plan, runners, NOTHING, pyramid, PackedPatchifier()) for _ in range(2))
    next(first)
    for expected, ahead, behind in zip(alone[1:], first, second, strict=False):
        assert torch.equal(ahead.tokens, expected.tokens)
        assert behind.step == ahead.step - 1
    assert torch.equal(next(second).tokens, alone[-1].tokens)


@pytest.mark.parametrize("patchifier", [PackedPatchifier(), FlatPatchifier()])
def test_the_noise_is_not_stepped_in_place(patchifier: PackedPatchifier) -> None:
    pyramid, untouched = pyramid_of(), pyramid_of()
    run(three_stages(), pyramid=pyramid, patchifier=patchifier)
    for now, before in zip(pyramid.fields, untouched.fields, strict=True):
        assert torch.equal(now, before)


def test_within_a_stage_tokens_are_one_buffer() -> None:
    plan = three_stages()
    seen = [
        (step.stage, step.tokens.data_ptr(), step.tokens)
        for step in sample(
            plan,
            runners_of(plan, curved),
            NOTHING,
            pyramid_of(),
            PackedPatchifier(),
        )
    ]
    assert len({(stage, pointer) for stage, pointer, _ in seen}) == len(plan.stages)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_caller_may_stop_early_and_nothing_is_left(after: int) -> None:
    plan = three_stages()
    runners = runners_of(plan, curved)
    steps = sample(plan, runners, NOTHING, pyramid_of(), PackedPatchifier())
    buffers = [weakref.ref(next(steps).tokens) for _ in range(after)]
    steps.close()
    gc.collect()
    assert sum(len(runner.calls) for runner in runners.values()) == after
    assert [buffer() for buffer in buffers] == [None] * after
    assert next(steps, None) is None


def test_the_caller_keeps_its_gradient_mode() -> None:
    plan = three_stages()
    for step in sample(plan, runners_of(plan, curved), NOTHING, pyramid_of(), PackedPatchifier()):
        assert torch.is_grad_enabled()
        assert not step.tokens.requires_grad


# --- refusals -------------------------------------------------------------------------------


def refuse(match: str, plan: StagePlan, **options: Any) -> None:
    """A wrong request is refused when it is made, not at the first step."""
    runners = options.pop("runners", runners_of(plan, curved))
    pyramid = options.pop("pyramid", pyramid_of())
    with pytest.raises(ValueError, match=match):
        sample(plan, runners, NOTHING, pyramid, PackedPatchifier(), **options)


def test_a_missing_runner_is_refused() -> None:
    runners = runners_of(one_stage((1.0, 0.0)), curved)
    refuse(r"no runner named 'stage2\.full'", three_stages(), runners=runners)
    stage = Stage(grid=grid_of(1.0), sigmas=(1.0, 0.5, 0.0), actions=("full", "bypass"))
    cached = replace(one_stage((1.0, 0.0)), stages=(stage,), cache=cache_traits("reuse").settings())
    refuse(r"no runner named 'stage1\.bypass'", cached, runners=runners)


def test_a_pyramid_of_another_size_or_depth_is_refused() -> None:
    small = NoisePyramid.from_seed(7, channels=CHANNELS, height=32, width=32, coarsest=0.25)
    refuse("expected the grid's", three_stages(), pyramid=small)
    flat = NoisePyramid.from_seed(7, channels=CHANNELS, height=SIDE, width=SIDE)
    refuse("no noise level", three_stages(), pyramid=flat)


def test_a_generator_is_given_exactly_where_it_is_used() -> None:
    refuse("without a generator", three_stages(noise="fresh"))
    refuse("expected none", three_stages(), fresh=fresh_generator(7))


def test_a_transition_that_cannot_be_applied_is_refused() -> None:
    refuse("expected lift 'haar'", three_stages("nearest", "rewind"))


def test_a_plan_must_start_from_noise() -> None:
    refuse("expected 1", one_stage((0.9, 0.0)))


def test_constants_may_not_replace_the_samplers_own_inputs() -> None:
    plan = one_stage((1.0, 0.0))
    inputs = {"timestep": torch.ones(1)}
    with pytest.raises(ValueError, match="timestep"):
        next(
            sample(
                plan,
                runners_of(plan, curved),
                Conditioning(inputs=inputs),
                pyramid_of(),
                PackedPatchifier(),
            )
        )


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"velocity": torch.zeros(1, 1, 16)},
        {"velocity": torch.zeros(1, 1024, 16, dtype=torch.float16)},
    ],
)
def test_a_wrong_velocity_is_named_with_its_stage(outputs: dict[str, torch.Tensor]) -> None:
    plan = one_stage((1.0, 0.5, 0.0))
    runners: dict[str, Any] = {"stage1.full": lambda inputs: outputs}
    with pytest.raises(SignatureMismatch, match=r"^stage 1 of 1 \(32x32 tokens\), step 1 of 2: "):
        next(sample(plan, runners, NOTHING, pyramid_of(), PackedPatchifier()))


def test_a_failing_engine_is_named_with_its_stage() -> None:
    def broken(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 256:
            raise EngineFailed("it stopped", expected="a velocity", fix="none")
        return curved(x, sigma)

    plan = three_stages()
    with pytest.raises(EngineFailed, match=r"^stage 2 of 3 \(16x16 tokens\), step 3 of 9: "):
        list(
            sample(
                plan,
                runners_of(plan, broken),
                NOTHING,
                pyramid_of(),
                PackedPatchifier(),
            )
        )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_velocity_that_is_not_finite_stops_the_run_and_names_its_engine(number: float) -> None:
    calls = []

    def broken(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[1])
        velocity = curved(x, sigma)
        if calls[-1] == 256:
            velocity[0, 200, 3] = number
        return velocity

    plan = three_stages()
    where = r"^stage 2 of 3 \(16x16 tokens\), step 3 of 9: the engine stage2\.full gave"
    with pytest.raises(NonFiniteValues, match=where):
        list(
            sample(plan, runners_of(plan, broken), NOTHING, pyramid_of(), PackedPatchifier()),
        )
    assert len(calls) == 3


class Elsewhere:
    """A tensor as the check sees it, on a device that must not be waited for."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, value: float) -> None:
        self._value = torch.tensor([0.0, value, -3e38])

    def aminmax(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self._value.aminmax()
        return low, high


def test_on_another_device_all_steps_are_looked_at_together() -> None:
    check: Any = FiniteCheck()
    for step, value in enumerate((3e38, math.nan, 1.0, math.inf)):
        check.watch(Elsewhere(value), engine="stage1.full", where=f"step {step}")
    with pytest.raises(NonFiniteValues, match=r"^step 1: the engine stage1\.full"):
        check.require()
    check.watch(Elsewhere(3e38), engine="stage1.full", where="step 4")
    check.require()
