"""Laws of plans with mixed stages, end to end: with closed-form engines and with a real model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.backends.eager import module_runner
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import SignatureMismatch
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.schedule import rewind_sigma, stage_sigmas
from fresco_trt.plan.stages import (
    POSITIONS,
    SELECTIONS,
    SOLVERS,
    Action,
    Stage,
    StagePlan,
    TokenRefinement,
    Transition,
)
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.request import coarse_grid
from fresco_trt.run.sampler import Conditioning, Step, engine_name, sample
from fresco_trt.run.selection import Choice, Window, select
from fresco_trt.run.transition import draws, estimate_x0, renoise

HEIGHT, WIDTH = 16, 24
FACTS = replace(FLUX_TINY, hidden=64, heads=2, double_blocks=1, single_blocks=1, text_tokens=5)
PATCHIFIER = FluxPatchifier(FACTS, FACTS.text_tokens)
CHANNELS = FACTS.latent_channels

Engine = Callable[[Mapping[str, Tensor]], Tensor]


# --- plans ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """A stage as the tests below write it; its transition is the one that ends it."""

    scale: float
    steps: int
    until: float
    refinements: tuple[tuple[str, int], ...] = ()


def plan_of(
    *legs: Leg,
    lift: Any = "haar",
    noise: Any = "field",
    window: int = 2,
    again: bool = False,
    **choices: Any,
) -> StagePlan:
    """Rewinds at every switch; with ``again`` every stage starts where the one before ended."""
    stages, transitions, start = [], [], 1.0
    for leg in legs:
        side = round(HEIGHT * leg.scale), round(WIDTH * leg.scale)
        grid = Grid(height=side[0], width=side[1], scale=leg.scale)
        sigmas = stage_sigmas(start, leg.until, leg.steps, h=1.0)
        actions: list[Action] = ["full"] * leg.steps
        stages.append(Stage(grid=grid, sigmas=sigmas, actions=tuple(actions)))
        start = leg.until if again else rewind_sigma(leg.until)
        if leg.until > 0:
            refinements = tuple(TokenRefinement(rule=r, count=n) for r, n in leg.refinements)  # type: ignore[arg-type]
            looks_back = {"window": window} if refinements else {}
            common: dict[str, Any] = {"sigma": leg.until, "restart": start}
            common |= {"lift": lift, "noise": noise, "refinements": refinements, **looks_back}
            transitions.append(Transition(**common))
    size = WIDTH * FACTS.vae_scale, HEIGHT * FACTS.vae_scale
    return StagePlan(
        model="flux-tiny",
        size=size,
        stages=tuple(stages),
        transitions=tuple(transitions),
        **choices,
    )


def simple(rule: str = "converged", count: int = 9, **choices: Any) -> StagePlan:
    """1/2, mixed, 1: of 24 coarse tokens 9 are expanded early."""
    return plan_of(
        Leg(scale=0.5, steps=3, until=0.7, refinements=((rule, count),)),
        Leg(scale=1.0, steps=2, until=0.4),
        Leg(scale=1.0, steps=2, until=0.0),
        **choices,
    )


def several(**choices: Any) -> StagePlan:
    """1/2, mixed, mixed, 1: two refinements at the first boundary and three at the second."""
    return plan_of(
        Leg(scale=0.5, steps=3, until=0.75, refinements=(("changing", 4), ("even", 5))),
        Leg(
            scale=1.0,
            steps=3,
            until=0.6,
            refinements=(("edge", 3), ("converged-latent", 2), ("even", 4)),
        ),
        Leg(scale=1.0, steps=2, until=0.3),
        Leg(scale=1.0, steps=2, until=0.0),
        **choices,
    )


def ladder(**choices: Any) -> StagePlan:
    """1/4, mixed, 1/2, mixed, 1: mixed stages of two pairs of grids."""
    return plan_of(
        Leg(scale=0.25, steps=2, until=0.8, refinements=(("even", 2),)),
        Leg(scale=0.5, steps=1, until=0.7),
        Leg(scale=0.5, steps=2, until=0.5, refinements=(("converged", 11), ("edge", 1))),
        Leg(scale=1.0, steps=2, until=0.3),
        Leg(scale=1.0, steps=1, until=0.0),
        **choices,
    )


PLANS = {"simple": simple, "several": several, "ladder": ladder}
SOURCES = ["field", "parent", "rewind"]


def pyramid_of(seed: int = 7, device: str = "cpu") -> NoisePyramid:
    return NoisePyramid.from_seed(
        seed, channels=CHANNELS, height=HEIGHT, width=WIDTH, coarsest=0.25, device=device
    )


def generator_of(plan: StagePlan, seed: int = 7) -> torch.Generator | None:
    return fresh_generator(seed) if any(map(draws, plan.transitions)) else None


# --- engines ----------------------------------------------------------------------------------


def towards(clean: float) -> Engine:
    """The exact velocity of the path to a constant picture."""
    return lambda named: (named["latents"] - clean) / named["timestep"]


def curved(named: Mapping[str, Tensor]) -> Tensor:
    """A velocity that bends, and differs from place to place."""
    x, places = named["latents"], named["rope_cos"][FACTS.text_tokens :].sum(dim=1, keepdim=True)
    return torch.tanh(x + 0.2 * places) * (0.5 + named["timestep"]) + 0.3 * x - 0.1


def erratic(named: Mapping[str, Tensor]) -> Tensor:
    """Another velocity at every sigma, so that a window one step or one sigma off is another."""
    seed = round(float(named["timestep"]) * 1e6)
    x = named["latents"]
    return 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def conditioning() -> Conditioning:
    """Text of a prompt, and guidance."""
    generator = torch.Generator().manual_seed(11)
    text = torch.randn(1, FACTS.text_tokens, FACTS.text_dim, generator=generator)
    pooled = torch.randn(1, FACTS.pooled_dim, generator=generator)
    inputs = {"text": text, "pooled": pooled, "guidance": torch.tensor([3.5])}
    return Conditioning(inputs=inputs)


def signatures(plan: StagePlan) -> dict[str, Any]:
    return {
        engine_name(index, "full"): stage_signature(
            FACTS, plan, index, text_tokens=FACTS.text_tokens
        )
        for index in range(len(plan.stages))
    }


def fakes(plan: StagePlan, engine: Engine = curved) -> dict[str, FakeRunner]:
    """Entered runners that hold every input to the shapes that engines of the plan have."""
    return {
        name: FakeRunner(signature, lambda named: {"velocity": engine(named)}).__enter__()
        for name, signature in signatures(plan).items()
    }


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_transformer(FACTS, seed=3)


def run(
    plan: StagePlan,
    runners: Mapping[str, Any] | None = None,
    seed: int = 7,
    choice: Choice = select,
) -> list[Step]:
    """All steps, with clones of what the sampler and the runners will overwrite."""
    steps = sample(
        plan,
        fakes(plan) if runners is None else runners,
        conditioning(),
        pyramid_of(seed),
        PATCHIFIER,
        fresh=generator_of(plan, seed),
        choice=choice,
    )
    return [
        replace(step, tokens=step.tokens.clone(), velocity=step.velocity.clone()) for step in steps
    ]


def run_model(plan: StagePlan, model: torch.nn.Module, seed: int = 7) -> list[Step]:
    with ExitStack() as scope:
        runners = {
            name: scope.enter_context(
                module_runner(graph_from_signature(model, signature), signature)
            )
            for name, signature in signatures(plan).items()
        }
        return run(plan, runners, seed)


def field_tokens(step: Step, plan: StagePlan, pyramid: NoisePyramid) -> Tensor:
    """The noise field at the places of a step's tokens."""
    if step.mixed is None:
        return PATCHIFIER.pack(pyramid.field(plan.stages[step.stage].grid.scale))
    coarse, fine = step.mixed.coarse.scale, step.mixed.fine.scale
    return step.mixed.join(pyramid.field(coarse), pyramid.field(fine), PATCHIFIER)


def refined(steps: list[Step]) -> list[set[int]]:
    """The refined coarse tokens of every stage, in order."""
    last = {step.stage: step for step in steps}
    return [
        set() if step.mixed is None else set(step.mixed.refined.tolist()) for step in last.values()
    ]


# --- plans end to end -------------------------------------------------------------------------


@pytest.mark.parametrize("noise", SOURCES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_step_of_every_stage_is_on_the_path_of_one_noise_field(
    plan: Callable[..., StagePlan], noise: str
) -> None:
    made, pyramid = plan(noise=noise), pyramid_of()
    for step in run(made, fakes(made, towards(0.4))):
        expected = renoise(torch.tensor(0.4), field_tokens(step, made, pyramid), step.sigma_next)
        assert torch.allclose(step.tokens, expected, atol=1e-5), step


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_stage_runs_at_the_plans_token_count(
    plan: Callable[..., StagePlan], positions: str, solver: str
) -> None:
    """The fake engines refuse any input of another shape."""
    made = plan(positions=positions, solver=solver)
    steps = run(made)
    counts = [len(each) for each in refined(steps)]
    assert counts == list(made.refined)
    assert [step.tokens.shape[1] for step in steps] == [made.tokens[step.stage] for step in steps]
    assert [step.mixed is not None for step in steps] == [
        made.refined[step.stage] > 0 for step in steps
    ]
    assert steps[-1].tokens.isfinite().all()


def test_what_is_fine_stays_fine_until_everything_is() -> None:
    made = several()
    first, second = refined(run(made))[1:3]
    assert first < second
    assert (len(first), len(second)) == (9, 18)


@pytest.mark.parametrize("noise", [*SOURCES, "fresh"])
@pytest.mark.parametrize("rule", SELECTIONS)
def test_same_seed_same_bits_and_another_seed_differs(rule: str, noise: str) -> None:
    made = simple(rule, noise=noise)
    one, same, other = (run(made, seed=seed)[-1].tokens for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_rule_and_every_choice_of_the_plan_changes_the_picture(
    model: torch.nn.Module,
) -> None:
    """No option is accepted and ignored."""
    others: list[dict[str, Any]] = [{"rule": rule} for rule in SELECTIONS]
    others += [{"positions": scheme} for scheme in ("coarse", "aligned")]
    others += [{"count": 10}, {"solver": "multistep"}]
    pictures = [run_model(simple(**other), model)[-1].tokens for other in others]
    for one, other in itertools.combinations(pictures, 2):
        assert not torch.equal(one, other)


def test_interleaved_samplers_share_no_state() -> None:
    made, pyramid = several(noise="parent", solver="multistep"), pyramid_of()
    alone, runners = run(made), fakes(made)
    first, second = (sample(made, runners, conditioning(), pyramid, PATCHIFIER) for _ in range(2))
    next(first)
    for expected, ahead, _ in zip(alone[1:], first, second, strict=False):
        assert torch.equal(ahead.tokens, expected.tokens)
    assert torch.equal(next(second).tokens, alone[-1].tokens)


# --- selection --------------------------------------------------------------------------------


def oracle(rule: str, steps: list[Step], rows: int, columns: int) -> Tensor:
    """Scores of a rule from the step records, by the words of the papers."""
    latents, clean = [], []
    for step in steps:
        x0 = estimate_x0(step.tokens, step.velocity, step.sigma_next)
        if step.mixed is None:
            latents.append(step.tokens[0])
            clean.append(x0[0])
        else:
            latents.append(step.mixed.dense(step.tokens, PATCHIFIER)[0])
            clean.append(step.mixed.dense(x0, PATCHIFIER)[0])
    if rule == "edge":
        grid = clean[-1].reshape(rows, columns, -1)
        down = torch.cat([grid[1:] - grid[:-1], torch.zeros(1, columns, grid.shape[-1])])
        across = torch.cat([grid[:, 1:] - grid[:, :-1], torch.zeros(rows, 1, grid.shape[-1])], 1)
        return (down**2 + across**2).sum(-1).flatten()
    values = torch.stack(latents if rule.endswith("-latent") else clean)
    mean = values.mean(dim=0)
    spread = ((values - mean) ** 2).sum(dim=0).div(len(values) - 1).mean(dim=-1)
    return spread if rule.startswith("changing") else -spread


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("rule", [rule for rule in SELECTIONS if rule not in ("even", "random")])
def test_rules_see_the_last_steps_of_the_stage_before(rule: str, window: int) -> None:
    """Into a mixed stage, and on within it, where only what is still coarse may be chosen."""
    made = plan_of(
        Leg(scale=0.5, steps=4, until=0.75, refinements=((rule, 7),)),
        Leg(scale=1.0, steps=4, until=0.6, refinements=((rule, 6),)),
        Leg(scale=1.0, steps=1, until=0.3),
        Leg(scale=1.0, steps=1, until=0.0),
        window=window,
    )
    steps = run(made, fakes(made, erratic))
    taken: set[int] = set()
    for stage, (count, chosen) in enumerate(zip((7, 6), refined(steps)[1:3], strict=True)):
        last = [step for step in steps if step.stage == stage][-window:]
        scores = oracle(rule, last, 4, 6)
        order = [index for index in scores.argsort(descending=True).tolist() if index not in taken]
        taken |= set(order[:count])
        assert chosen == taken


def test_a_window_holds_what_the_steps_tell() -> None:
    """Latents after each step and their clean estimates, over the coarse grid, oldest first."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(refinements: Any, window: Window, *rest: Any) -> Tensor:
        seen.append((window.latents.clone(), window.clean.clone()))
        return select(refinements, window, *rest)

    made = several(window=3, noise="parent", solver="multistep")
    steps = run(made, choice=spy)
    for stage, (latents, clean) in enumerate(seen):
        last = [step for step in steps if step.stage == stage][-3:]
        for slot, step in enumerate(last):
            x0 = estimate_x0(step.tokens, step.velocity, step.sigma_next)
            both = step.tokens, x0
            if step.mixed is not None:
                both = step.mixed.dense(step.tokens, PATCHIFIER), step.mixed.dense(x0, PATCHIFIER)
            assert torch.equal(latents[slot], both[0][0])
            assert torch.equal(clean[slot], both[1][0])
    assert len(seen) == 2


def test_without_a_refinement_nothing_is_recorded() -> None:
    """A stage's window has room only where a rule will look back."""
    from fresco_trt.run.request import Request
    from fresco_trt.run.stage import StageState

    made = several()
    request = Request(
        plan=made,
        runners=fakes(made),
        conditioning=conditioning(),
        pyramid=pyramid_of(),
        patchifier=PATCHIFIER,
        generator=None,
        choice=select,
    )
    state, rooms = StageState.first(request), []
    for _ in made.transitions:
        rooms.append(state.window.steps)
        state = state.leave(request, torch.zeros_like(state.tokens))
    assert [*rooms, state.window.steps] == [2, 2, 0, 0]


# --- places -----------------------------------------------------------------------------------


def test_every_token_is_at_its_own_place() -> None:
    """An engine that draws what the rotary tables say: each token paints its row and column."""
    made = several(noise="field")
    every = PATCHIFIER.tables(PATCHIFIER.positions(made.stages[-1].grid))["rope_cos"][
        FACTS.text_tokens :
    ]
    paint = torch.randn(every.shape[1], 4 * CHANNELS, generator=torch.Generator().manual_seed(1))

    def painter(named: Mapping[str, Tensor]) -> Tensor:
        wanted = named["rope_cos"][FACTS.text_tokens :] @ paint
        return (named["latents"] - wanted) / named["timestep"]

    steps = run(made, fakes(made, painter))
    for step in steps:
        if step.mixed is None:
            continue
        x0 = estimate_x0(step.tokens, step.velocity, step.sigma_next)
        shown = PATCHIFIER.pack(step.mixed.picture(x0, PATCHIFIER))[0]
        fine = step.mixed.children
        assert torch.allclose(shown[fine], (every @ paint)[fine], atol=1e-3)
    assert torch.allclose(steps[-1].tokens[0], every @ paint, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_order_of_tokens_in_a_mixed_stage_is_only_a_convention(
    plan: Callable[..., StagePlan], model: torch.nn.Module
) -> None:
    """With a real transformer: engines that see tokens and tables in another order draw the same.

    But for float rounding; and another order of the tables alone is another picture.
    """
    made = plan()
    expected = run_model(made, model)[-1].tokens
    for mixed_up, same in ((("latents", "rope_cos", "rope_sin"), True), (("latents",), False)):
        engines = dict(permuted(made, model, mixed_up))
        drawn = run(made, fakes_by_name(made, engines))[-1].tokens
        assert torch.allclose(drawn, expected, atol=1e-4) is same


def permuted(
    plan: StagePlan, model: torch.nn.Module, names: tuple[str, ...]
) -> Iterator[tuple[str, Engine]]:
    """Engines that mix up the tokens of the named inputs, and put their answer back in order."""
    for (name, signature), count in zip(signatures(plan).items(), plan.tokens, strict=True):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
        if not plan.refined[list(signatures(plan)).index(name)]:
            order = torch.arange(count)
        graph = graph_from_signature(model, signature)

        def engine(
            named: Mapping[str, Tensor],
            order: Tensor = order,
            signature: Any = signature,
            graph: Any = graph,
        ) -> Tensor:
            given = dict(named)
            rows = torch.cat([torch.arange(FACTS.text_tokens), FACTS.text_tokens + order])
            for each in names:
                given[each] = given[each][:, order] if each == "latents" else given[each][rows]
            with torch.no_grad():
                (velocity,) = graph(*(given[spec.name] for spec in signature.inputs))
            answer: Tensor = velocity[:, order.argsort()]
            return answer

        yield name, engine


def fakes_by_name(plan: StagePlan, engines: Mapping[str, Engine]) -> dict[str, FakeRunner]:
    def answer(name: str) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        return lambda named: {"velocity": engines[name](named)}

    return {
        name: FakeRunner(signature, answer(name)).__enter__()
        for name, signature in signatures(plan).items()
    }


@pytest.mark.parametrize("noise", [*SOURCES, "fresh"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_real_model_draws_every_plan_bit_for_bit_again(
    plan: Callable[..., StagePlan], noise: str, model: torch.nn.Module
) -> None:
    made = plan(noise=noise, solver="multistep", positions="coarse")
    first, second = (run_model(made, model)[-1].tokens for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert 0.1 < first.std() < 10


# --- the device is never waited for -----------------------------------------------------------


class Meta:
    """An engine on the meta device: shapes and places without a value that could be read."""

    def __init__(self, signature: Any) -> None:
        self.signature = signature

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for spec in self.signature.inputs:
            assert (tuple(inputs[spec.name].shape), inputs[spec.name].device.type) == (
                spec.shape,
                "meta",
            )
        return {"velocity": torch.empty_like(inputs["latents"])}


class MetaPatchifier:
    """The patchifier with its tables held on the meta device."""

    pack = staticmethod(PATCHIFIER.pack)
    unpack = staticmethod(PATCHIFIER.unpack)

    positions = staticmethod(PATCHIFIER.positions)

    def tables(self, positions: Tensor) -> Mapping[str, Tensor]:
        return {name: value.to("meta") for name, value in PATCHIFIER.tables(positions).items()}


@pytest.mark.parametrize("noise", [*SOURCES, "fresh"])
@pytest.mark.parametrize("rule", SELECTIONS)
def test_nothing_reads_a_value_from_the_device(rule: str, noise: str) -> None:
    """On the meta device there is none: ``item``, ``tolist``, ``cpu`` and bool indices raise.

    Until every step was taken; then the generator asks whether all velocities were finite.
    """
    made = plan_of(
        Leg(scale=0.5, steps=3, until=0.75, refinements=((rule, 4), ("even", 5))),
        Leg(scale=1.0, steps=3, until=0.6, refinements=(("edge", 3), (rule, 2))),
        Leg(scale=1.0, steps=2, until=0.3),
        Leg(scale=1.0, steps=2, until=0.0),
        noise=noise,
        solver="multistep",
        positions="aligned",  # both kinds of tables
    )
    runners: Any = {name: Meta(signature) for name, signature in signatures(made).items()}
    inputs = {name: value.to("meta") for name, value in conditioning().inputs.items()}
    pyramid = pyramid_of(device="meta")
    patchifier, fresh = MetaPatchifier(), generator_of(made)
    drawing = sample(made, runners, Conditioning(inputs=inputs), pyramid, patchifier, fresh=fresh)
    steps = list(islice(drawing, made.nfe))
    assert len(steps) == made.nfe
    with pytest.raises(NotImplementedError, match="meta"):
        next(drawing)
    mixed = steps[-4].mixed
    assert mixed is not None
    assert {mixed.kept.device.type, mixed.children.device.type} == {"meta"}
    reads: tuple[Callable[[Tensor], object], ...] = (
        Tensor.item,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.nonzero,
    )
    for read in reads:
        with pytest.raises((NotImplementedError, RuntimeError)):
            read(mixed.refined[:1])


# --- refusals ---------------------------------------------------------------------------------


def refuse(match: str, plan: StagePlan, pyramid: NoisePyramid, fresh: Any = None) -> None:
    runners = fakes(plan)
    with pytest.raises(ValueError, match=match):
        sample(plan, runners, conditioning(), pyramid, PATCHIFIER, fresh=fresh)
    assert not any(runner.calls for runner in runners.values())


def test_a_batch_is_refused_where_a_stage_is_mixed() -> None:
    two = NoisePyramid.from_seed(
        [1, 2], channels=CHANNELS, height=HEIGHT, width=WIDTH, coarsest=0.25
    )
    refuse("a batch of 2 on a mixed grid", simple(), two)


def test_a_generator_is_given_exactly_where_something_is_drawn() -> None:
    refuse("without a generator", simple("random"), pyramid_of())
    refuse("without a generator", simple(noise="fresh"), pyramid_of())
    refuse("expected none", simple("even"), pyramid_of(), fresh_generator(1))


def test_a_rewind_out_of_a_mixed_stage_needs_the_lift_that_it_is() -> None:
    refuse("expected lift 'haar'", several(lift="nearest", noise="rewind"), pyramid_of())


def test_the_grid_of_what_is_still_coarse_is_the_last_whole_one() -> None:
    grids = [coarse_grid(ladder(), stage).scale for stage in range(5)]
    assert grids == [0.25, 0.25, 0.5, 0.5, 1.0]


def test_a_wrong_velocity_of_a_mixed_stage_is_named_with_its_places() -> None:
    made = simple()
    runners: Any = {**fakes(made), "stage2.full": lambda inputs: {}}
    match = r"^stage 2 of 3 \(51 tokens on a mixed grid of 8x12\), step 4 of 7: "
    with pytest.raises(SignatureMismatch, match=match):
        run(made, runners)
