"""Laws of stage plans: every invariant is enforced, and JSON gives back exactly what went in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from fresco_trt.errors import InvalidPlan
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.caching import cache_traits
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.schedule import rewind_sigma
from fresco_trt.plan.stages import Action, Stage, StagePlan, TokenRefinement, Transition
from tests.plan.preset_sizes import size_for

Json = Any


def stage_of(side: int, *sigmas: float) -> Stage:
    grid = Grid(height=side, width=side, scale=side / 64)
    actions: list[Action] = ["full"] * (len(sigmas) - 1)
    return Stage(grid=grid, sigmas=sigmas, actions=tuple(actions))


SWITCH = Transition(sigma=0.8, restart=0.9, lift="bilinear", noise="field")
SECOND = Transition(sigma=0.6, restart=0.7, lift="haar", noise="parent")
SOME = (TokenRefinement(rule="converged", count=20),)
PARTIAL = replace(SWITCH, refinements=SOME, window=2)

PLAN = StagePlan(
    model="flux-tiny",
    size=(256, 256),
    stages=(
        stage_of(16, 1.0, 0.9, 0.8),
        stage_of(32, 0.9, 0.75, 0.6),
        stage_of(64, 0.7, 0.3, 0.0),
    ),
    transitions=(SWITCH, SECOND),
    preset="balanced",
)

MIXED = replace(
    PLAN,
    stages=(
        stage_of(32, 1.0, 0.9, 0.8),
        stage_of(64, 0.9, 0.75, 0.6),
        stage_of(64, 0.7, 0.3, 0.0),
    ),
    transitions=(PARTIAL, SECOND),
    positions="coarse",
)

# 256 coarse tokens: 20 refined, then 30 and 5 of those left, then the rest.
TWICE = replace(
    MIXED,
    stages=(
        *MIXED.stages[:2],
        stage_of(64, 0.7, 0.5),
        stage_of(64, 0.6, 0.3, 0.0),
    ),
    transitions=(
        PARTIAL,
        replace(
            SECOND,
            refinements=(
                TokenRefinement(rule="edge", count=30),
                TokenRefinement(rule="even", count=5),
            ),
            window=1,
        ),
        Transition(sigma=0.5, restart=0.6, lift="nearest", noise="fresh"),
    ),
    solver="multistep",
)


def skipping(plan: StagePlan) -> StagePlan:
    """The last step from a predicted feature."""
    last = plan.stages[-1]
    actions = (*last.actions[:-1], "bypass")
    stages = (*plan.stages[:-1], replace(last, actions=actions))
    return replace(plan, stages=stages, cache=cache_traits("hicache").settings())


def every_plan() -> Iterator[tuple[str, StagePlan]]:
    for name in model_names():
        facts = model_facts(name)
        for preset, schedules in facts.presets.items():
            for stages in schedules:
                plan = make_plan(facts, stages=stages, preset=preset, size=size_for(facts, preset))
                yield f"{name}-{preset}-{stages}", plan
    yield "by hand", PLAN
    yield "cached", skipping(PLAN)
    yield "mixed", MIXED
    yield "mixed twice", TWICE


EVERY_PLAN = dict(every_plan())


def with_stage(plan: StagePlan, index: int, **change: Any) -> StagePlan:
    stages = list(plan.stages)
    stages[index] = replace(stages[index], **change)
    return replace(plan, stages=tuple(stages))


def even(count: int) -> tuple[TokenRefinement, ...]:
    return (TokenRefinement(rule="even", count=count),)


EVEN = even(20)


def rewinding(restart: float) -> StagePlan:
    """MIXED, left at 0.6 by an expansion that is said to end at ``restart``."""
    leaving = replace(SECOND, noise="rewind", restart=restart)
    stages = (*MIXED.stages[:2], stage_of(64, restart, 0.3, 0.0))
    return replace(MIXED, stages=stages, transitions=(PARTIAL, leaving))


def with_transition(plan: StagePlan, index: int, **change: Any) -> StagePlan:
    transitions = list(plan.transitions)
    transitions[index] = replace(transitions[index], **change)
    return replace(plan, transitions=tuple(transitions))


BROKEN_STAGES: dict[str, Callable[[], object]] = {
    "no step": lambda: stage_of(64, 1.0),
    "starts above noise": lambda: stage_of(64, 1.1, 0.0),
    "ends below clean": lambda: stage_of(64, 1.0, -0.1),
    "repeats a sigma": lambda: stage_of(64, 1.0, 0.5, 0.5, 0.0),
    "rises": lambda: stage_of(64, 1.0, 0.4, 0.5, 0.0),
    "is not a number": lambda: stage_of(64, 1.0, float("nan"), 0.0),
    "starts at not a number": lambda: stage_of(64, float("nan"), 0.0),
    "lacks an action": lambda: replace(PLAN.stages[0], actions=("full",)),
    "unknown action": lambda: replace(PLAN.stages[0], actions=("full", "half")),  # type: ignore[arg-type]
    "bypass first": lambda: replace(PLAN.stages[0], actions=("bypass", "full")),
}

BROKEN_TRANSITIONS: dict[str, Callable[[], object]] = {
    "restarts below": lambda: replace(SWITCH, restart=0.79),
    "restarts above noise": lambda: replace(SWITCH, restart=1.01),
    "restarts clean": lambda: replace(SWITCH, sigma=0.0, restart=0.0),
    "at not a number": lambda: replace(SWITCH, sigma=float("nan")),
    "unknown lift": lambda: replace(SWITCH, lift="bicubic"),  # type: ignore[arg-type]
    "unknown noise": lambda: replace(SWITCH, noise="white"),  # type: ignore[arg-type]
    "unknown rule": lambda: TokenRefinement(rule="best", count=5),  # type: ignore[arg-type]
    "a rule for none": lambda: TokenRefinement(rule="even", count=0),
    "a window that nothing reads": lambda: replace(SWITCH, window=2),
    "no window": lambda: replace(PARTIAL, refinements=EVEN, window=0),
    "a variance over one step": lambda: replace(PARTIAL, window=1),
    "a variance over one step among others": lambda: replace(
        PARTIAL, refinements=(*EVEN, TokenRefinement(rule="changing-latent", count=1)), window=1
    ),
}

BROKEN_PLANS: dict[str, Callable[[], object]] = {
    "no model": lambda: replace(PLAN, model=""),
    "no stage": lambda: replace(PLAN, stages=(), transitions=()),
    "a transition too few": lambda: replace(PLAN, transitions=(SWITCH,)),
    "a transition too many": lambda: replace(PLAN, transitions=(SWITCH, SECOND, SECOND)),
    "never full size": lambda: replace(
        PLAN, stages=(PLAN.stages[0], stage_of(32, 0.9, 0.0)), transitions=(SWITCH,)
    ),
    "ends above clean": lambda: with_stage(PLAN, 2, sigmas=(0.7, 0.3, 0.1)),
    "coarsens": lambda: with_stage(PLAN, 0, grid=PLAN.stages[2].grid),
    "grows one side": lambda: with_stage(PLAN, 0, grid=Grid(height=16, width=32, scale=0.25)),
    "grows but not in scale": lambda: with_stage(
        PLAN, 0, grid=Grid(height=16, width=16, scale=0.5)
    ),
    "changes the patch": lambda: with_stage(
        PLAN, 0, grid=Grid(height=16, width=16, scale=0.25, patch=4)
    ),
    "stage ends elsewhere": lambda: with_stage(PLAN, 0, sigmas=(1.0, 0.9, 0.81)),
    "stage starts elsewhere": lambda: with_stage(PLAN, 1, sigmas=(0.91, 0.75, 0.6)),
    "rewinds elsewhere": lambda: with_transition(PLAN, 0, noise="rewind", lift="haar"),
    "another picture": lambda: replace(PLAN, size=(256, 320)),
    "a picture off the grid": lambda: replace(PLAN, size=(100, 100)),
    "no picture": lambda: replace(PLAN, size=(0, 0)),
    "mixed at the end": lambda: with_transition(PLAN, 1, refinements=EVEN, window=1),
    "mixed, then a finer grid": lambda: with_transition(PLAN, 0, refinements=EVEN, window=1),
    "mixed twice and at the end": lambda: with_transition(MIXED, 1, refinements=EVEN, window=1),
    "all refined": lambda: with_transition(MIXED, 0, refinements=even(256)),
    "all refined by two rules": lambda: with_transition(
        MIXED, 0, refinements=(*even(255), TokenRefinement(rule="random", count=1))
    ),
    "all refined in the end": lambda: with_transition(TWICE, 1, refinements=even(236)),
    "one refined of one": lambda: with_transition(
        with_transition(TWICE, 0, refinements=even(255)), 1, refinements=even(1)
    ),
    "mixed over a quadrupling": lambda: with_stage(MIXED, 0, grid=PLAN.stages[0].grid),
    "mixed on the grid before": lambda: with_stage(MIXED, 0, grid=MIXED.stages[1].grid),
    "looks back over more steps than there are": lambda: with_transition(MIXED, 0, window=3),
    "unknown solver": lambda: replace(PLAN, solver="heun"),  # type: ignore[arg-type]
    "unknown positions": lambda: replace(MIXED, positions="middle"),  # type: ignore[arg-type]
    "positions that nothing reads": lambda: replace(PLAN, positions="coarse"),
    "attention that no stage aligns": lambda: replace(PLAN, positions="aligned"),
    "leaves a mixed stage by another rewind": lambda: rewinding(0.6),
}


@pytest.mark.parametrize(
    "broken", [*BROKEN_STAGES.values(), *BROKEN_TRANSITIONS.values(), *BROKEN_PLANS.values()],
    ids=[*BROKEN_STAGES, *BROKEN_TRANSITIONS, *BROKEN_PLANS],
)  # fmt: skip
def test_every_invariant_is_enforced(broken: Callable[[], object]) -> None:
    with pytest.raises(InvalidPlan) as raised:
        broken()
    assert raised.value.expected
    assert raised.value.fix


def test_an_expansion_restarts_where_its_noise_is_white() -> None:
    end = rewind_sigma(0.8)
    rewound = replace(SWITCH, noise="rewind", lift="haar", restart=end)
    stages = (PLAN.stages[0], stage_of(32, end, 0.6), PLAN.stages[2])
    plan = replace(PLAN, stages=stages, transitions=(rewound, SECOND))
    assert plan.transitions[0].restart == end


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.model = "flux"  # type: ignore[misc]


def test_a_mixed_stage_counts_kept_and_expanded_tokens() -> None:
    assert MIXED.tokens == (256, 256 - 20 + 4 * 20, 1024)
    assert MIXED.refined == (0, 20, 0)
    assert TWICE.tokens == (256, 256 - 20 + 4 * 20, 256 - 55 + 4 * 55, 1024)
    assert TWICE.refined == (0, 20, 55, 0)
    assert PLAN.tokens == tuple(stage.grid.tokens for stage in PLAN.stages)
    assert PLAN.refined == (0, 0, 0)


def test_a_partial_transition_counts_what_its_rules_refine() -> None:
    assert [each.count for each in TWICE.transitions] == [20, 35, None]
    assert [each.is_partial for each in TWICE.transitions] == [True, True, False]


def test_all_but_one_token_may_be_refined() -> None:
    for count in (1, 255):
        assert with_transition(MIXED, 0, refinements=even(count)).refined == (0, count, 0)
    for count in (1, 235):
        assert with_transition(TWICE, 1, refinements=even(count)).refined[2] == 20 + count


def test_too_many_refinements_are_told_how_many_are_left() -> None:
    with pytest.raises(InvalidPlan, match="236 still coarse; expected from 1 to 235"):
        with_transition(TWICE, 1, refinements=even(240))


def test_what_leaves_a_mixed_stage_is_expanded_twofold_too() -> None:
    assert rewinding(rewind_sigma(0.6)).transitions[1].restart == rewind_sigma(0.6)


def test_nfe_counts_every_step() -> None:
    assert PLAN.nfe == sum(len(stage.actions) for stage in PLAN.stages) == 6
    assert skipping(PLAN).nfe == PLAN.nfe
    assert skipping(PLAN).full_steps == PLAN.nfe - 1


@pytest.mark.parametrize("name", EVERY_PLAN)
def test_json_gives_exactly_the_plan_back(name: str) -> None:
    plan = EVERY_PLAN[name]
    stored = json.dumps(plan.to_json())
    found = StagePlan.from_json(json.loads(stored))
    assert found == plan
    assert found.digest() == plan.digest()
    assert json.dumps(found.to_json()) == stored


def test_a_writer_that_prints_whole_floats_as_integers_is_understood() -> None:
    plan = EVERY_PLAN["flux-tiny-turbo-3"]
    stored = json.dumps(plan.to_json()).replace("1.0,", "1,").replace("0.0]", "0]")
    found = StagePlan.from_json(json.loads(stored))
    assert found == plan
    assert found.digest() == plan.digest()


def test_attention_is_aligned_where_a_stage_is_mixed_and_the_plan_says_so() -> None:
    aligned = replace(TWICE, positions="aligned")
    assert aligned.aligned == aligned.refined == (0, 20, 55, 0)
    assert TWICE.aligned == (0, 0, 0, 0)
    assert StagePlan.from_json(json.loads(json.dumps(aligned.to_json()))) == aligned


def test_digests_differ_where_plans_differ() -> None:
    others = [
        *EVERY_PLAN.values(),
        replace(PLAN, preset=None),
        with_transition(PLAN, 0, lift="nearest"),
        replace(PLAN, solver="multistep"),
        replace(MIXED, positions="fine"),
        replace(MIXED, positions="aligned"),
        with_transition(MIXED, 0, refinements=even(20)),
        with_transition(MIXED, 0, refinements=even(21)),
        with_transition(MIXED, 0, refinements=even(21), window=1),
        with_stage(PLAN, 2, sigmas=(0.7, 0.30000000000000004, 0.0)),
        replace(skipping(PLAN), cache=cache_traits("svd").settings()),
    ]
    assert len({plan.digest() for plan in others}) == len(others) == len(set(others))


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inside:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def at(value: Json, path: tuple[Any, ...]) -> Json:
    for key in path:
        value = value[key]
    return value


def replaced(value: Json, path: tuple[Any, ...], new: Json) -> Json:
    changed = copy.deepcopy(value)
    at(changed, path[:-1])[path[-1]] = new
    return changed


STORED = TWICE.to_json()
PLACES = list(places(STORED))
STRANGE: tuple[Json, ...] = ("strange", 7, -1, 1.5, True, None, [], {}, 10**400, float("nan"))

# Any text is a model or a preset, and null is no preset: those stay plans.
HARMLESS = [(("model",), "strange"), (("preset",), "strange"), (("preset",), None)]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(str(key) for key in path))
def test_nothing_stored_can_be_replaced_unnoticed(path: tuple[Any, ...]) -> None:
    for strange in STRANGE:
        if (path, strange) in HARMLESS or repr(at(STORED, path)) == repr(strange):
            continue
        with pytest.raises(InvalidPlan):
            StagePlan.from_json(replaced(STORED, path, strange))


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(str(key) for key in path))
def test_nothing_stored_can_be_missing(path: tuple[Any, ...]) -> None:
    changed = copy.deepcopy(STORED)
    del at(changed, path[:-1])[path[-1]]
    with pytest.raises(InvalidPlan):
        StagePlan.from_json(changed)


@pytest.mark.parametrize(
    "path", [(), ("stages", 0), ("stages", 1, "grid"), ("transitions", 0)], ids=str
)
def test_nothing_stored_can_be_added(path: tuple[Any, ...]) -> None:
    changed = copy.deepcopy(STORED)
    at(changed, path)["note"] = "hello"
    with pytest.raises(InvalidPlan, match="note"):
        StagePlan.from_json(changed)


@pytest.mark.parametrize("value", [None, [], "plan", 3])
def test_only_an_object_is_a_plan(value: object) -> None:
    with pytest.raises(InvalidPlan, match="object"):
        StagePlan.from_json(value)
