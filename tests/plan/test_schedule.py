"""Laws of the sigma lists, and the published figures they must reproduce."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fresco_trt.models.registry import model_facts
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.schedule import (
    ShiftRule,
    dynamic_mu,
    plain_sigmas,
    rewind_sigma,
    shift_sigma,
    spectral_switch,
    stage_sigmas,
    stretched,
    unshift_sigma,
)

LAW = settings(deadline=None, max_examples=100, database=None)

UNIT = st.floats(0.0, 1.0)
FACTORS = st.floats(0.05, 50.0)
STEPS = st.integers(1, 60)

FLUX_RULE = ShiftRule(base_shift=0.5, max_shift=1.15, base_tokens=256, max_tokens=4096)
FLUX_SPECTRUM = {"amplitude": 203.615097, "beta": 1.915461}
WAN_SPECTRUM = {"amplitude": 219.484718, "beta": 2.422687}


@LAW
@given(UNIT, FACTORS)
def test_unshift_undoes_shift(u: float, h: float) -> None:
    assert unshift_sigma(shift_sigma(u, h), h) == pytest.approx(u, abs=1e-12)
    assert shift_sigma(unshift_sigma(u, h), h) == pytest.approx(u, abs=1e-12)


@LAW
@given(FACTORS)
def test_noise_and_clean_are_fixed_points(h: float) -> None:
    for ends in (shift_sigma, unshift_sigma):
        assert ends(0.0, h) == 0.0
        assert ends(1.0, h) == 1.0


@LAW
@given(UNIT, UNIT, FACTORS)
def test_shift_keeps_order(a: float, b: float, h: float) -> None:
    assume(a + 1e-9 < b)
    assert shift_sigma(a, h) < shift_sigma(b, h)


@LAW
@given(UNIT, FACTORS, FACTORS)
def test_shifts_compose_by_multiplying(u: float, h: float, k: float) -> None:
    assert shift_sigma(shift_sigma(u, h), k) == pytest.approx(shift_sigma(u, h * k), abs=1e-12)


@LAW
@given(UNIT, FACTORS)
def test_shift_is_the_written_formula(u: float, h: float) -> None:
    assert shift_sigma(u, h) == pytest.approx(h * u / (1 + (h - 1) * u), abs=1e-12)


@LAW
@given(UNIT, UNIT, STEPS, FACTORS)
def test_a_stage_falls_strictly_between_exact_ends(
    one: float, other: float, steps: int, h: float
) -> None:
    start, end = max(one, other), min(one, other)
    assume(end + 1e-6 < start)
    sigmas = stage_sigmas(start, end, steps, h)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-1]) == (start, end)
    assert all(later < earlier for earlier, later in pairwise(sigmas))


@LAW
@given(st.integers(2, 60), FACTORS)
def test_a_stage_is_even_before_the_shift(steps: int, h: float) -> None:
    unshifted = [unshift_sigma(sigma, h) for sigma in stage_sigmas(0.9, 0.1, steps, h)]
    gaps = [earlier - later for earlier, later in pairwise(unshifted)]
    assert max(gaps) == pytest.approx(min(gaps), abs=1e-12)


@LAW
@given(STEPS, st.integers(1, 30), FACTORS)
def test_cutting_a_stage_at_one_of_its_sigmas_changes_nothing(
    steps: int, cut: int, h: float
) -> None:
    assume(cut < steps)
    whole = stage_sigmas(1.0, 0.0, steps, h)
    parts = stage_sigmas(1.0, whole[cut], cut, h)[:-1] + stage_sigmas(
        whole[cut], 0.0, steps - cut, h
    )
    assert parts == pytest.approx(whole, abs=1e-9)


@LAW
@given(STEPS, FACTORS)
def test_the_plain_list_is_one_stage_over_everything(steps: int, h: float) -> None:
    assert plain_sigmas(steps, h) == pytest.approx(stage_sigmas(1.0, 0.0, steps, h), abs=1e-5)


def diffusers_sigmas(steps: int, mu: float | None, **config: object) -> tuple[float, ...]:
    """The list that FluxPipeline has its scheduler make."""
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    kind: Any = FlowMatchEulerDiscreteScheduler
    scheduler = kind(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return tuple(scheduler.sigmas.tolist())


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 10, 28, 50, 100])
@pytest.mark.parametrize(("name", "tokens"), [("flux", 4096), ("flux", 1024), ("flux-tiny", 768)])
def test_the_plain_list_is_diffusers_bit_for_bit(name: str, tokens: int, steps: int) -> None:
    rule = model_facts(name).shift
    assert rule is not None
    mu = dynamic_mu(tokens, rule)
    theirs = diffusers_sigmas(steps, mu, shift=3.0, use_dynamic_shifting=True)
    assert plain_sigmas(steps, math.exp(mu)) == theirs


@pytest.mark.parametrize("steps", [2, 3, 8, 50])
@pytest.mark.parametrize("tokens", [256, 4096])
def test_the_list_to_a_terminal_sigma_is_diffusers_bit_for_bit(tokens: int, steps: int) -> None:
    rule = model_facts("qwen-image").shift
    assert rule is not None
    mu = dynamic_mu(tokens, rule)
    theirs = diffusers_sigmas(steps, mu, use_dynamic_shifting=True, shift_terminal=rule.terminal)
    found = plain_sigmas(steps, math.exp(mu), terminal=rule.terminal)
    assert found == theirs
    assert found[-2] == pytest.approx(0.02, abs=1e-6)
    exact = stage_sigmas(1.0, 0.0, steps, math.exp(mu))
    assert stretched(exact, rule.terminal) == pytest.approx(theirs, abs=1e-6)


def test_a_later_stage_ends_over_the_terminal_sigma_too() -> None:
    plan = make_plan(model_facts("qwen-image"), stages=3)
    last = plan.stages[-1].sigmas
    assert (last[0], last[-2:]) == (plan.transitions[-1].restart, (0.02, 0.0))
    assert stretched((0.7, 0.0), 0.02) == (0.7, 0.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 1.73, 0.4])
def test_the_list_of_a_fixed_shift_is_diffusers_bit_for_bit(steps: int, shift: float) -> None:
    theirs = diffusers_sigmas(steps, None, shift=shift, use_dynamic_shifting=False)
    assert plain_sigmas(steps, shift, fixed=True) == tuple(min(each, 1.0) for each in theirs)
    assert shift != 1.0 or plain_sigmas(steps, 1.0) == theirs


def test_mu_meets_both_ends_of_its_rule() -> None:
    assert dynamic_mu(FLUX_RULE.base_tokens, FLUX_RULE) == pytest.approx(0.5)
    assert dynamic_mu(FLUX_RULE.max_tokens, FLUX_RULE) == pytest.approx(1.15)


@LAW
@given(st.integers(1, 8000), st.integers(1, 8000))
def test_mu_is_linear_in_tokens(a: int, b: int) -> None:
    middle = dynamic_mu(a + b, FLUX_RULE) + dynamic_mu(0, FLUX_RULE)
    assert middle == pytest.approx(dynamic_mu(a, FLUX_RULE) + dynamic_mu(b, FLUX_RULE))


@LAW
@given(st.floats(1e-6, 1.0), st.floats(1.0, 8.0))
def test_rewind_never_lowers_the_level_and_composes(sigma: float, r: float) -> None:
    assert rewind_sigma(sigma, r) >= sigma - 1e-15
    assert rewind_sigma(sigma, 1.0) == sigma
    assert rewind_sigma(rewind_sigma(sigma)) == pytest.approx(rewind_sigma(sigma, 4.0))


@LAW
@given(st.floats(0.01, 0.99))
def test_rewind_puts_signal_and_noise_on_the_marginal(sigma: float) -> None:
    """After the expansion the signal is (1-sigma)/2 and the noise sigma; one factor mends both."""
    end = rewind_sigma(sigma)
    assert (1 - end) / ((1 - sigma) / 2) == pytest.approx(end / sigma)


def coarse_steps(sigmas: tuple[float, ...], switch: float) -> int:
    """SPEED hands over at the first step whose sigma is at or below the switch."""
    return next(index for index, sigma in enumerate(sigmas) if sigma <= switch)


@pytest.mark.parametrize(
    ("delta", "switch", "steps", "restart"),
    [
        (0.005, 0.891, 14, 0.942),
        (0.01, 0.853, 18, 0.918),
        (0.02, 0.803, 22, 0.889),
        (0.05, 0.718, 28, 0.832),
        (0.10, 0.638, 33, 0.765),
        (0.20, 0.544, 37, 0.689),
    ],
)
def test_published_splits_of_flux(delta: float, switch: float, steps: int, restart: float) -> None:
    sigmas = plain_sigmas(50, math.exp(1.15))
    found = spectral_switch(**FLUX_SPECTRUM, delta=delta, frequency=0.5 * 128 / 2)
    assert found == pytest.approx(switch, abs=6e-4)
    assert coarse_steps(sigmas, found) == steps
    assert rewind_sigma(sigmas[steps]) == pytest.approx(restart, abs=6e-4)


def test_published_split_of_flux_with_two_switches() -> None:
    found = spectral_switch(**FLUX_SPECTRUM, delta=0.01, frequency=0.25 * 128 / 2)
    assert found == pytest.approx(0.934, abs=6e-4)
    assert coarse_steps(plain_sigmas(50, math.exp(1.15)), found) == 10


@pytest.mark.parametrize(("delta", "steps"), [(0.01, 23), (0.02, 27), (0.05, 33), (0.10, 37)])
def test_published_splits_of_wan(delta: float, steps: int) -> None:
    found = spectral_switch(**WAN_SPECTRUM, delta=delta, frequency=0.5 * 60 / 2)
    assert coarse_steps(plain_sigmas(50, 5.0), found) == steps


@LAW
@given(st.floats(0.001, 0.25), st.floats(1.0, 60.0), st.floats(1.01, 4.0))
def test_finer_detail_and_looser_tolerance_switch_later(
    delta: float, frequency: float, more: float
) -> None:
    here = spectral_switch(**FLUX_SPECTRUM, delta=delta, frequency=frequency)
    assert 0.0 < here < 1.0
    assert spectral_switch(**FLUX_SPECTRUM, delta=delta, frequency=frequency * more) < here
    assert spectral_switch(**FLUX_SPECTRUM, delta=delta * more, frequency=frequency) < here


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: shift_sigma(1.1, 2.0),
        lambda: shift_sigma(float("nan"), 2.0),
        lambda: shift_sigma(0.5, 0.0),
        lambda: unshift_sigma(-0.1, 2.0),
        lambda: unshift_sigma(0.5, math.inf),
        lambda: stage_sigmas(0.5, 0.5, 3, 2.0),
        lambda: stage_sigmas(0.5, 0.7, 3, 2.0),
        lambda: stage_sigmas(1.0, 0.0, 0, 2.0),
        lambda: plain_sigmas(0, 2.0),
        lambda: plain_sigmas(4, -1.0),
        lambda: spectral_switch(1.0, 1.0, 3.0, 1.0),
        lambda: spectral_switch(1.0, 1.0, 0.1, 0.0),
    ],
)
def test_misuse_is_a_value_error(misuse: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the law is the type; texts differ
        misuse()  # type: ignore[operator]
