"""A preset with one part exchanged: each part once, compared at one and the same count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.ablations import ABLATED, STUDY, ablations, points
from fresco_trt.bench.points import chosen, table_named
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.bench.halving import halving

TINY = model_facts("flux-tiny")
BASE = Preset(steps=(4, 4, 5), switch=(0.85, 0.7))


@pytest.mark.parametrize("model", model_names())
def test_every_model_has_its_ablations_below_the_preset_that_they_change(model: str) -> None:
    facts = model_facts(model)
    found = points(facts, facts.default_size)
    assert table_named(STUDY.points) is points
    assert len({point.name for point in found}) == len(found)
    plain, base, *changed = found
    assert (plain.method, base.settings) == (
        "plain",
        find_preset(facts, ABLATED, max(facts.stage_counts)),
    )
    assert all(point.ablation for point in changed)
    for point in changed:
        assert isinstance(point.settings, Preset)
        assert plan_from_preset(facts, point.settings, size=halving(facts)).nfe == point.nfe
    assert 2 < len(chosen(found, None, quick=True)) < len(found)


def test_an_ablation_changes_its_base_and_nothing_else_of_it_twice() -> None:
    found = ablations(BASE)
    assert BASE not in found.values()
    assert len(set(found.values())) == len(found)
    assert {"noise fresh", "noise parent", "noise rewind", "lift nearest", "lift haar"} <= set(
        found
    )
    assert {"restart same", "selection converged", "selection random"} <= set(found)
    assert {"positions coarse", "positions aligned", "solver multistep"} <= set(found)
    assert found["solver multistep"] == replace(BASE, solver="multistep")


def test_selection_rules_are_compared_at_one_count() -> None:
    found = ablations(BASE)
    rules = [preset for name, preset in found.items() if name.startswith("selection")]
    tokens = {plan_from_preset(TINY, preset).tokens for preset in rules}
    assert len(rules) == 7
    assert len(tokens) == 1


def test_a_mixed_base_keeps_its_shares_and_is_compared_with_all_at_once() -> None:
    mixed = replace(BASE, refine=((("even", 0.5),), ()))
    found = ablations(mixed)
    assert found["selection all"] == BASE
    assert found["selection edge"].refine == ((("edge", 0.5),), ())
    assert "selection even" not in found


def test_one_coarse_step_leaves_no_variance_to_select_by() -> None:
    found = ablations(replace(BASE, steps=(1, 4, 5)))
    assert "selection edge" in found
    assert "selection converged" not in found
