"""The table of operating points: complete, without repetition, and every plan a valid one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fresco_trt.bench.methods import METHODS, Point
from fresco_trt.bench.plain import Plain
from fresco_trt.bench.points import TUNED, WAYS, cached_points, chosen, points_of
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.caching import NO_CACHE
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.bench.halving import halving

TINY = model_facts("flux-tiny")


@pytest.mark.parametrize("model", model_names())
def test_every_model_has_every_method_under_names_of_their_own(model: str) -> None:
    points = points_of(model_facts(model))
    assert {point.method for point in points} == set(METHODS)
    assert len({point.name for point in points}) == len(points)
    assert points[0] == Point(
        method="plain", settings=Plain(steps=model_facts(model).default_steps), quick=True
    )


@pytest.mark.parametrize("model", model_names())
def test_every_engine_point_is_a_valid_plan_with_its_own_steps(model: str) -> None:
    facts = model_facts(model)
    for point in points_of(facts):
        if isinstance(point.settings, Preset):
            assert plan_from_preset(facts, point.settings, size=halving(facts)).nfe == point.nfe


def test_no_two_points_of_a_method_are_the_same_work() -> None:
    points = points_of(TINY)
    same = [(point.method, point.settings) for point in points]
    assert len(set(same)) == len(same)


def test_the_short_version_has_every_method() -> None:
    quick = chosen(points_of(TINY), None, quick=True)
    assert {point.method for point in quick} == set(METHODS)
    assert len(quick) < len(chosen(points_of(TINY), None, quick=False)) / 3


def test_the_reference_is_always_measured() -> None:
    points = chosen(points_of(TINY), ["ralu"], quick=False)
    assert {point.method for point in points} == {"plain", "ralu"}
    assert points[0].method == "plain"


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(IncompatibleOptions, match="fresco") as caught:
        chosen(points_of(TINY), ["fresko"], quick=False)
    assert caught.value.exit_code == 2


def test_few_steps_are_tried_with_both_carriers_and_tuned_on_the_faster() -> None:
    found: dict[str, set[tuple[int, str]]] = {"diffusers": set(), "engine": set()}
    for point in points_of(TINY):
        if point.method == "few-step" and point.nfe < TINY.default_steps:
            who, way = str(point.variant).split(", ", maxsplit=1)
            found[who].add((point.nfe, way))
    assert {way for _, way in found["diffusers"]} == {"default shift"}
    assert {steps for steps, _ in found["diffusers"] & found["engine"]} == {10, 5}
    first_order = {"default shift", "mu 1.6", "mu 2.2"}
    second_order = {"mu 1.6, dpmpp_2m", "mu 2.2, dpmpp_2m", "mu 1.6, unipc"}
    for steps in {steps for steps, _ in found["engine"]}:
        # Of two steps a second-order solver takes none.
        ways = first_order if steps == 2 else first_order | second_order
        assert {way for each, way in found["engine"] if each == steps} == ways


def test_where_no_shift_is_the_control_is_tuned_over_solvers_alone() -> None:
    facts = model_facts("flux-schnell")
    points = [point for point in points_of(facts) if point.method == "few-step" and point.nfe == 3]
    assert facts.shift is None
    ways = ["default shift", "default shift, dpmpp_2m", "default shift, unipc"]
    assert [point.variant for point in points] == [f"engine, {way}" for way in ways]


def test_the_short_version_tunes_over_solvers_too() -> None:
    quick = chosen(points_of(TINY), ["few-step"], quick=True)
    solvers = {p.settings.solver for p in quick if isinstance(p.settings, Preset)}
    assert solvers == {"euler", "dpmpp_2m"}


def test_presets_are_measured_at_every_number_of_stages_but_one() -> None:
    ours = [p for p in points_of(TINY) if p.method == "fresco" and p.ablation is None]
    plain = [p for p in ours if isinstance(p.settings, Preset) and p.settings.cache == NO_CACHE]
    for name, schedules in TINY.presets.items():
        settings = {p.settings for p in plain if p.preset == name}
        assert settings == {settings for stages, settings in schedules.items() if stages > 1}


def test_a_tuned_engine_takes_the_sigmas_of_the_tuned_pipeline() -> None:
    # e^mu is the shift factor: mu 1.6 moves the middle of the schedule to e^1.6 / (1 + e^1.6).
    point = next(p for p in points_of(TINY) if p.name == "few-step, 4 steps, engine, mu 1.6")
    assert isinstance(point.settings, Preset)
    sigmas = plan_from_preset(TINY, point.settings).stages[0].sigmas
    assert sigmas[2] == pytest.approx(4.953 / 5.953, abs=1e-3)


def test_ralu_restarts_where_its_paper_says() -> None:
    point = next(p for p in points_of(TINY) if p.name == "ralu, 4x")
    assert isinstance(point.settings, Preset)
    assert point.settings.restarts == pytest.approx((0.9365, 0.8853), abs=1e-4)


def test_spectral_points_follow_the_spectrum_where_there_is_one() -> None:
    measured = points_of(TINY)
    names = [point.name for point in measured if point.method == "spectral"]
    assert any("delta 0.05" in name for name in names)
    assert not any("fixed" in name for name in names)
    blind = points_of(replace(TINY, spectrum=None))
    point = next(p for p in blind if p.method == "spectral")
    assert "fixed" in point.name
    assert isinstance(point.settings, Preset)
    assert (point.settings.noise, point.settings.lift) == ("rewind", "haar")


def test_a_cache_is_measured_alone_and_on_presets_where_it_draws_what_no_other_does() -> None:
    points = list(cached_points(TINY, {"reuse": (7,), "hicache": (3, 7)}))
    names = [point.name for point in points]
    assert len(set(names)) == len(names)
    alone = {point.preset for point in points if point.method == "cache"}
    assert alone == {"reuse, interval 7", "hicache, interval 3", "hicache, interval 7"}
    staged = [(point.preset, point.variant) for point in points if point.method == "fresco"]
    for preset in ("balanced", "fast"):
        assert (preset, "reuse, interval 7") in staged
        # A stage so short has one full step, and all predictors reuse it.
        assert (preset, "hicache, interval 7") not in staged
    assert set(names) <= {point.name for point in points_of(TINY)}


def test_caches_on_fewer_steps_take_the_shift_that_the_peers_and_the_control_take() -> None:
    points = points_of(TINY)
    fewer_steps = [p for p in points if p.method == "cache" and p.nfe < TINY.default_steps]
    coarse = [p for p in fewer_steps if "coarse_velocity" in p.name]
    assert {p.preset[p.preset.index("mu") :].split(",")[0] for p in coarse if p.preset} <= {
        f"mu {mu:g}" for mu, _ in WAYS
    }
    ours = [p for p in fewer_steps if p not in coarse]
    assert {"taylor", "hicache", "reuse"} <= {p.name.split(", ")[3] for p in ours}
    shifts = {p.settings.shift for p in ours if isinstance(p.settings, Preset)}
    control = next(p for p in points if p.name == "few-step, 10 steps, engine, mu 2.2")
    assert isinstance(control.settings, Preset)
    assert shifts == {control.settings.shift}
    peers = [p for p in points if p.method in ("taylorseer", "first-block", "cache-dit")]
    fewer = {getattr(p.settings, "mu", None) for p in peers if p.nfe < TINY.default_steps}
    assert fewer == {TUNED}
    assert (TUNED, "euler") in WAYS


def test_a_run_too_short_to_skip_a_step_has_no_cache_on_it() -> None:
    names = [p.name for p in points_of(model_facts("flux-schnell")) if p.method == "cache"]
    assert not any(name.startswith("cache, 1 steps") for name in names)
