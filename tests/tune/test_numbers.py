"""Candidates, costs and the contest: laws of the parts of a tune that are numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pytest

from fresco_trt.errors import EngineFailed
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.stages import SOLVERS, StagePlan
from fresco_trt.tune.cost import covering, medians, plan_seconds, step_kinds
from fresco_trt.tune.entrants import SLACK, entrants, speed_by, universe
from fresco_trt.tune.families import (
    CONTROL,
    FAMILIES,
    LOG_SHIFTS,
    Candidate,
    Ground,
    change_at,
    controls,
    reference,
    sampled,
)
from fresco_trt.tune.halving import Figures, Standing, difference, halve
from fresco_trt.tune.neighbours import neighbours
from fresco_trt.tune.options import Floor
from fresco_trt.tune.stored import preset_from_json, preset_to_json

CHANGES = ((1.0, 0.0), (0.9, 2.0), (0.2, 3.0), (0.0, 5.0))
GROUND = Ground(facts=model_facts("flux-tiny"), size=(64, 64), prompt_tokens=20, changes=CHANGES)
BY_CHANGE = next(each for each in FAMILIES if each.name == "cache, by change")
KINDS = universe(GROUND, 12)


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    """A second for each 64 tokens of an engine, and none for a transition."""
    plans = [reference(GROUND), *(each.plan for each in universe(GROUND, 30))]
    kinds = {kind for plan in plans for step in step_kinds(plan) for kind in step}
    return {
        kind: 0.0 if " to " in kind else int(kind.split()[0].split("-")[0]) / 64 for kind in kinds
    }


# --- families ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_gives_different_plans_and_the_same_ones_again(family: object) -> None:
    first, again = (
        sampled(family, GROUND, lambda plan: True, count=5)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first == again
    assert len({each.plan.digest() for each in first}) == len({e.name for e in first}) == 5
    assert all(each.plan.model == "flux-tiny" and each.plan.size == (64, 64) for each in first)


def test_the_families_are_of_every_kind() -> None:
    by_family = {
        name: [e for e in KINDS if e.family == name] for name in (f.name for f in FAMILIES)
    }
    assert all(e.plan.cache for e in by_family["cache"])
    assert all(e.plan.velocity_grid for e in by_family["coarse-velocity"])
    assert all(len(e.plan.stages) > 1 and e.plan.cache is None for e in by_family["stages"])
    for each in by_family["stages, cache"]:
        assert {i for i, action in each.plan.graphs if action == "bypass"} == {
            len(each.plan.stages) - 1
        }
    assert all(e.plan.velocity_grid for e in by_family["stages, coarse-velocity"])
    assert all(e.plan.cuts_text for e in by_family["stages, text"])
    assert all(any(e.plan.refined) for e in by_family["stages, mixed"])


def test_changes_are_summed_between_the_points() -> None:
    sums = [change_at(CHANGES, sigma) for sigma in (1.0, 0.95, 0.9, 0.55, 0.1, 0.0)]
    assert sums == pytest.approx([0.0, 1.0, 2.0, 2.5, 4.0, 5.0])


def test_what_changes_by_steps_is_run_in_full_there() -> None:
    for each in sampled(BY_CHANGE, GROUND, lambda plan: True, count=8):
        (stage,) = each.plan.stages
        assert stage.actions[0] == stage.actions[-1] == "full"
        assert "bypass" in stage.actions
    unknown = replace(GROUND, changes=())
    assert not sampled(BY_CHANGE, unknown, lambda plan: True, count=1)


def test_no_stage_takes_less_text_than_a_prompt_has() -> None:
    short, longer = (replace(GROUND, prompt_tokens=tokens) for tokens in (30, 40))
    assert short.texts == (32, 64, 128)
    assert longer.texts == (64, 128)


def test_controls_are_full_steps_at_every_shift_with_every_solver() -> None:
    every = controls(GROUND, 6)
    assert len(every) == (1 + len(LOG_SHIFTS)) * len(SOLVERS)
    assert all(each.plan.full_steps == each.plan.nfe == 6 for each in every)
    assert [each for each in every if each.is_default] == every[:1]


def test_a_preset_survives_its_json() -> None:
    for each in (*KINDS, *controls(GROUND, 3)):
        assert preset_from_json(preset_to_json(each.preset)) == each.preset


# --- cost -------------------------------------------------------------------------------------


def test_a_plan_costs_the_sum_of_its_steps(seconds: dict[str, float]) -> None:
    many = reference(GROUND)
    assert plan_seconds(many, seconds) == 50.0
    assert plan_seconds(controls(GROUND, 5)[0].plan, seconds) == 5.0
    assert speed_by(GROUND, seconds)(controls(GROUND, 5)[0].plan) == 10.0
    assert plan_seconds(many, {}) is None


def test_few_plans_have_every_kind_of_step() -> None:
    plans = [each.plan for each in KINDS]
    chosen = covering(plans)

    def kinds(plans: list[StagePlan]) -> set[str]:
        return {step[-1] for plan in plans for step in step_kinds(plan)}

    assert kinds(chosen) == kinds(plans)
    assert len(chosen) < len(plans) / 3
    assert covering([]) == []


def test_sigmas_do_not_change_what_a_step_costs() -> None:
    one, other = (Preset(steps=(3, 2), switch=(each,), shift=(each, 2.0)) for each in (0.9, 0.7))
    from fresco_trt.tune.families import plan_of

    first, second = plan_of(GROUND, one), plan_of(GROUND, other)
    assert first is not None
    assert second is not None
    assert step_kinds(first) == step_kinds(second)


def test_a_kind_takes_the_median_and_a_transition_what_is_more() -> None:
    steps = [(("a",), 1.0), (("b",), 5.0), (("a",), 9.0), (("a",), 2.0)]
    assert medians(steps) == {"a": 2.0, "b": 5.0}
    entered = [(("a", "to a"), 2.5), (("b", "to b"), 4.0), (("c", "to c"), 9.0)]
    assert medians([*steps, *entered]) == {"a": 2.0, "b": 5.0, "to a": 0.5, "to b": 0.0}


# --- who competes -----------------------------------------------------------------------------


def test_entrants_are_of_every_family_and_as_fast_as_asked(seconds: dict[str, float]) -> None:
    found = entrants(GROUND, seconds, 8.0, 21)
    assert found.reached
    assert {each.family for each in found.candidates} == {CONTROL, *(f.name for f in FAMILIES)}
    for each in found.candidates:
        most = float("inf") if each.is_control else SLACK * 8.0
        assert 8.0 <= found.speeds[each.name] <= most
    assert {each.plan.nfe for each in found.candidates if each.is_control} == {6}
    assert len({each.name for each in found.candidates}) == len(found.candidates)


def test_nothing_is_that_fast(seconds: dict[str, float]) -> None:
    found = entrants(GROUND, seconds, 900.0, 2, FAMILIES[1:3])
    assert not found.reached
    assert any(each.is_control for each in found.candidates)
    order = [found.speeds[e.name] for e in found.candidates if not e.is_control]
    assert order == sorted(order, reverse=True)


def test_without_a_speed_they_are_of_every_speed(seconds: dict[str, float]) -> None:
    found = entrants(GROUND, seconds, None, 8, FAMILIES[2:3])
    speeds = sorted(found.speeds.values())
    assert speeds[0] < 2.0
    assert speeds[-1] > 20.0
    names = [each.name for each in found.candidates]
    assert len(set(names)) == len(names)


# --- neighbours -------------------------------------------------------------------------------


def _told(preset: Preset) -> dict[str, object]:
    """The settings of a preset, those of its cache among them; of skipped steps, which."""
    found = asdict(preset)
    return {name: each for name, each in found.items() if name != "cache"} | found["cache"]


@pytest.mark.parametrize("leader", KINDS[1::7], ids=lambda leader: leader.name)
def test_a_neighbour_is_another_plan_of_the_same_kind(leader: Candidate) -> None:
    found = neighbours(leader, GROUND, lambda plan: True, count=12)
    assert found == neighbours(leader, GROUND, lambda plan: True, count=12)
    assert len({leader.plan.digest(), *(each.plan.digest() for each in found)}) == 13
    assert len({leader.name, *(each.name for each in found)}) == 13
    assert {each.family for each in found} == {leader.family}
    assert {len(each.plan.stages) for each in found} == {len(leader.plan.stages)}
    known = neighbours(leader, GROUND, lambda plan: True, count=6, known=found)
    assert not {each.plan.digest() for each in known} & {each.plan.digest() for each in found}
    for each in found:
        before, after = _told(leader.preset), _told(each.preset)
        changed = {name for name in before if before[name] != after[name]}
        spelt = {"actions", "interval", "warmup_steps"}  # the leader's, step by step
        assert changed - spelt <= {"steps"} or len(changed - spelt) <= 3


def test_all_that_a_plan_has_is_changed_and_only_what_is_acceptable_is_taken() -> None:
    leader = next(each for each in KINDS if each.family == "stages, cache")
    found = neighbours(leader, GROUND, lambda plan: True, count=150)
    changed = {
        name
        for each in found
        for name, value in _told(each.preset).items()
        if value != _told(leader.preset)[name]
    }
    assert changed >= {"shift", "solver", "steps", "actions", "name", "switch", "lift", "restart"}
    few = neighbours(leader, GROUND, lambda plan: plan.nfe < leader.plan.nfe, count=5)
    assert few
    assert all(each.plan.nfe < leader.plan.nfe for each in few)


# --- the contest ------------------------------------------------------------------------------

POOL = (
    *controls(GROUND, 6),
    *(each for each in KINDS if each.family == "stages"),
)
SPEEDS = {each.name: 10.0 - place / 10 for place, each in enumerate(POOL)}
ROUNDS = ((len(POOL), 2), (6, 4), (3, 8))


class Drawing:
    """Figures by a rule; who asked for what is kept."""

    def __init__(self, quality: Mapping[str, float], fails: str = "") -> None:
        self.quality, self.fails = quality, fails
        self.asked: dict[str, int] = {}

    def __call__(self, wanted: Sequence[Candidate], number: int) -> dict[str, Figures]:
        found: dict[str, Figures] = {}
        for each in wanted:
            self.asked[each.name] = max(self.asked.get(each.name, 0), number + 1)
            noise = 0.01 * ((number * 7 + len(each.name)) % 5 - 2)
            if each.name != self.fails:
                found[each.name] = {"ssim": self.quality[each.name] + noise}
        return found


def qualities(best: str, second: str = "") -> dict[str, float]:
    return {
        each.name: 0.95 if each.name == best else 0.9 if each.name == second else 0.5
        for each in POOL
    }


def test_the_best_wins_and_the_others_draw_few() -> None:
    best = POOL[-1].name
    drawn = Drawing(qualities(best))
    outcome = halve(POOL, SPEEDS, drawn, ROUNDS)
    assert outcome.winner.candidate.name == best
    assert len(outcome.winner.figures) == 8
    assert len(outcome.everyone) == len(POOL)
    assert sum(count == 8 for count in drawn.asked.values()) <= 3 + 2
    assert sum(count == 2 for count in drawn.asked.values()) >= len(POOL) - 8


def test_the_controls_go_on_to_the_end_however_bad_they_are() -> None:
    outcome = halve(POOL, SPEEDS, Drawing(qualities(POOL[-1].name)), ROUNDS)
    assert outcome.control is not None
    assert len(outcome.control.figures) == 8
    assert any(each.candidate.is_default for each in outcome.finalists)


def test_a_control_that_is_best_wins() -> None:
    best = POOL[3].name
    assert POOL[3].is_control
    outcome = halve(POOL, SPEEDS, Drawing(qualities(best)), ROUNDS)
    assert outcome.winner is outcome.control


def test_who_cannot_be_judged_is_out() -> None:
    best, second = POOL[-1].name, POOL[-2].name
    outcome = halve(POOL, SPEEDS, Drawing(qualities(best, second), fails=best), ROUNDS)
    assert outcome.winner.candidate.name == second
    with pytest.raises(EngineFailed, match="none of 1 candidates"):
        halve(POOL[-1:], SPEEDS, Drawing(qualities(best), fails=best), ROUNDS)


def test_with_a_floor_the_fastest_that_reaches_it_wins() -> None:
    floor = Floor(metric="ssim", least=0.85)
    best, faster = POOL[-1].name, POOL[-2].name
    outcome = halve(POOL, SPEEDS, Drawing(qualities(best, faster)), ROUNDS, floor)
    assert SPEEDS[faster] > SPEEDS[best]
    assert outcome.winner.candidate.name == faster


def test_a_floor_that_nobody_reaches_is_approached() -> None:
    floor = Floor(metric="ssim", least=0.99)
    outcome = halve(POOL, SPEEDS, Drawing(qualities(POOL[-1].name)), ROUNDS, floor)
    assert outcome.winner.candidate.name == POOL[-1].name


def test_differences_are_in_pairs() -> None:
    easy, hard = {"ssim": 0.9}, {"ssim": 0.3}
    ours, theirs = (
        Standing(candidate=POOL[place], speed=8.0, figures=figures)
        for place, figures in (
            (0, (easy, hard, easy)),
            (1, tuple({"ssim": each["ssim"] - 0.1} for each in (easy, hard, easy))),
        )
    )
    mean, low, high = difference(ours, theirs)
    assert mean == pytest.approx(0.1)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.1))
