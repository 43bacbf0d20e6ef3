"""Laws of a change of resolution: white noise stays white, clean amplitude stays, paths meet."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from fresco_trt.plan.schedule import rewind_sigma
from fresco_trt.plan.stages import TokenRefinement, Transition
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.resample import LIFTS, lift_bilinear, lift_haar, lift_nearest
from fresco_trt.run.transition import (
    apply_transition,
    check_transition,
    draws,
    estimate_noise,
    estimate_x0,
    ratio_of,
    renoise,
    rewind,
    stay,
)

SIGMA = 0.6
LANDS = rewind_sigma(SIGMA)
DOUBLINGS = [(0.5, 1.0), (0.25, 0.5)]
SAME = (1.0, 1.0)
QUADRUPLING = (0.25, 1.0)
PATHS = [
    *itertools.product(("nearest", "bilinear", "haar"), ("field", "parent", "fresh")),
    ("haar", "rewind"),
]
"""Every legal pair of lift and noise source."""

SWITCHES = [
    (lift, noise, restart, scales)
    for (lift, noise), restart, scales in itertools.product(
        PATHS, (SIGMA, LANDS, 0.9, 1.0), (*DOUBLINGS, SAME, QUADRUPLING)
    )
    if noise != "rewind" or (restart == LANDS and scales in DOUBLINGS)
]
"""The same with every restart and pair of scales to try; a rewind's restart is not a choice."""


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pyramid_of(channels: int = 4, side: int = 64, *, seed: int = 7) -> NoisePyramid:
    return NoisePyramid.from_seed(seed, channels=channels, height=side, width=side, coarsest=0.25)


def transition_of(lift: Any, noise: Any, restart: float = LANDS) -> Transition:
    return Transition(sigma=SIGMA, restart=restart, lift=lift, noise=noise)


def cross(
    transition: Transition,
    x: torch.Tensor,
    v: torch.Tensor,
    pyramid: NoisePyramid,
    scales: tuple[float, float] = (0.5, 1.0),
) -> torch.Tensor:
    generator = fresh_generator(99) if transition.noise == "fresh" else None
    scale, scale_next = scales
    return apply_transition(
        transition, x, v, pyramid, scale=scale, scale_next=scale_next, generator=generator
    )


def drawn(transition: Transition, pyramid: NoisePyramid, scale_next: float) -> torch.Tensor:
    """The noise that a source uses on the exact path."""
    field = pyramid.field(scale_next)
    if transition.noise == "fresh":
        return torch.randn(field.shape, generator=fresh_generator(99))
    return field


def block_covariance(x: torch.Tensor, side: int = 4) -> torch.Tensor:
    """Covariance [side^2, side^2] of the pixels of aligned blocks; holds every 2x2 block in it."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch * channels, height // side, side, width // side, side)
    samples = blocks.permute(0, 1, 3, 2, 4).reshape(-1, side * side)
    return samples.T @ samples / samples.shape[0]


def block_mean(x: torch.Tensor, ratio: int) -> torch.Tensor:
    return functional.avg_pool2d(x, ratio)


def assert_white(x: torch.Tensor, std: float) -> None:
    """Six standard errors of 131072 blocks, relative to the variance."""
    covariance = block_covariance(x) / std**2
    assert (covariance - torch.eye(len(covariance))).abs().max() < 0.022


# --- estimates ------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.25, 0.0])
def test_estimates_invert_the_flow_marginal(sigma: float) -> None:
    x0, noise = white(2, 4, 8, 8), white(2, 4, 8, 8, seed=1)
    x, v = renoise(x0, noise, sigma), noise - x0
    assert torch.allclose(estimate_x0(x, v, sigma), x0, atol=1e-6)
    assert torch.allclose(estimate_noise(x, v, sigma), noise, atol=1e-6)


@pytest.mark.parametrize(("lift", "noise"), PATHS)
def test_a_margin_is_left_out_and_the_rest_is_on_the_flow_marginal(lift: Any, noise: Any) -> None:
    """45 rows of tokens: pure noise of the field becomes the field, and a constant stays one."""
    pyramid = NoisePyramid.from_seed(7, channels=4, height=90, width=64, coarsest=0.5, patch=2)
    coarse, fine = pyramid.field(0.5), pyramid.field(1.0)
    assert coarse.shape[-2:] == (46, 32)
    clean = torch.full_like(coarse, 0.5)
    x, v = renoise(clean, coarse, SIGMA), coarse - clean
    found = cross(transition_of(lift, noise), x, v, pyramid)
    assert found.shape == fine.shape
    expected = drawn(transition_of(lift, noise), pyramid, 1.0)
    torch.testing.assert_close(
        found, renoise(torch.tensor(0.5), expected, LANDS), atol=1e-5, rtol=0
    )


def test_estimates_are_the_same_at_both_ends_of_an_euler_step() -> None:
    """Why a transition may use the velocity of the step that led to its sigma."""
    x, v = white(1, 4, 8, 8), white(1, 4, 8, 8, seed=1)
    x_next = x + (0.4 - 0.7) * v
    assert torch.allclose(estimate_x0(x_next, v, 0.4), estimate_x0(x, v, 0.7), atol=1e-6)
    assert torch.allclose(estimate_noise(x_next, v, 0.4), estimate_noise(x, v, 0.7), atol=1e-6)


# --- lifts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("name", ["nearest", "haar"])
def test_up_then_down_is_the_identity(name: str, ratio: int) -> None:
    x0 = white(2, 3, 6, 10)
    lifted = LIFTS[name](x0, ratio)
    assert lifted.shape == (2, 3, 6 * ratio, 10 * ratio)
    assert torch.allclose(block_mean(lifted, ratio), x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_haar_lift_is_pixel_repetition(ratio: int) -> None:
    x0 = white(2, 3, 6, 10)
    assert torch.equal(lift_haar(x0, ratio), lift_nearest(x0, ratio))


def test_bilinear_up_then_down_is_a_known_blur_and_not_the_identity() -> None:
    x0 = white(1, 1, 8, 8)
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8])
    padded = functional.pad(x0, (1, 1, 1, 1), mode="replicate")
    blurred = functional.conv2d(padded, torch.outer(kernel, kernel)[None, None])
    down = block_mean(lift_bilinear(x0, 2), 2)
    assert torch.allclose(down, blurred, atol=1e-6)
    assert (down - x0).abs().max() > 0.1


def test_bilinear_up_then_down_is_the_identity_on_ramps_away_from_the_edge() -> None:
    ramp = torch.arange(8.0)[:, None] + 2 * torch.arange(8.0)[None, :]
    down = block_mean(lift_bilinear(ramp[None, None], 2), 2)
    assert torch.allclose(down[..., 1:-1, 1:-1], ramp[1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(LIFTS))
def test_lifts_keep_constants(name: str, ratio: int) -> None:
    lifted = LIFTS[name](torch.full((1, 2, 4, 6), 0.37), ratio)
    assert lifted.shape == (1, 2, 4 * ratio, 6 * ratio)
    assert (lifted - 0.37).abs().max() <= 1e-7


# --- noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 0.25])
@pytest.mark.parametrize("own", [True, False], ids=["noise-of-the-field", "other-noise"])
@pytest.mark.parametrize(("lift", "noise"), PATHS)
def test_noise_only_input_stays_white_at_the_restart(
    lift: str, noise: str, own: bool, scale: float
) -> None:
    """Also for coarse noise that is not the field's own level: it may not leave its imprint."""
    pyramid = pyramid_of(channels=8, side=round(256 / scale))
    z = pyramid.field(scale) if own else white(*pyramid.field(scale).shape, seed=3)
    transition = transition_of(lift, noise)
    x = cross(transition, SIGMA * z, z, pyramid, (scale, 2 * scale))
    assert_white(x, transition.restart)


@pytest.mark.parametrize(("scale", "ratio"), [(0.5, 2), (0.25, 4)])
def test_an_expansion_is_white_where_it_lands(scale: float, ratio: int) -> None:
    pyramid = pyramid_of(channels=8, side=512)
    z = white(*pyramid.field(scale).shape, seed=3)
    x = rewind(SIGMA * z, SIGMA, pyramid, scale=scale, scale_next=1.0)
    assert_white(x, rewind_sigma(SIGMA, ratio))


def test_the_whiteness_check_sees_a_lifted_noisy_latent() -> None:
    """The check can fail: repeating noise makes each block constant, averaging shrinks it."""
    z = white(1, 8, 256, 256)
    for lifted in (lift_nearest(z, 2), lift_bilinear(z, 2)):
        with pytest.raises(AssertionError):
            assert_white(lifted, float(lifted.std()))


# --- amplitude and paths --------------------------------------------------------------------


@pytest.mark.parametrize(("lift", "noise", "restart", "scales"), SWITCHES)
def test_constant_clean_image_keeps_its_amplitude(
    lift: str, noise: str, restart: float, scales: tuple[float, float]
) -> None:
    silent = NoisePyramid.from_field(torch.zeros(1, 4, 32, 32), coarsest=0.25)
    clean = torch.full(silent.field(scales[0]).shape, 1.7)
    transition = transition_of(lift, noise, restart)
    x = cross(transition, (1 - SIGMA) * clean, -clean, silent, scales)
    rest = x - restart * drawn(transition, silent, scales[1])
    assert (rest - (1 - restart) * 1.7).abs().max() <= 1e-6


@pytest.mark.parametrize(("lift", "noise", "restart", "scales"), SWITCHES)
def test_the_exact_path_is_rejoined(
    lift: str, noise: str, restart: float, scales: tuple[float, float]
) -> None:
    """From ``(1-s)*c + s*E_LL`` a transition lands on ``(1-s')*c + s'*E``."""
    pyramid = pyramid_of()
    clean = torch.tensor([0.5, -1.0, 2.0, 0.0]).reshape(1, 4, 1, 1)
    field = pyramid.field(scales[0])
    transition = transition_of(lift, noise, restart)
    landed = cross(transition, renoise(clean, field, SIGMA), field - clean, pyramid, scales)
    expected = renoise(clean, drawn(transition, pyramid, scales[1]), restart)
    assert (landed - expected).abs().max() <= 2e-6


def test_two_expansions_are_one_of_both() -> None:
    pyramid = pyramid_of()
    x = white(*pyramid.field(0.25).shape)
    once = rewind(x, SIGMA, pyramid, scale=0.25, scale_next=1.0)
    half = rewind(x, SIGMA, pyramid, scale=0.25, scale_next=0.5)
    twice = rewind(half, LANDS, pyramid, scale=0.5, scale_next=1.0)
    assert torch.allclose(twice, once, atol=2e-6)


def test_same_grid_same_sigma_changes_nothing() -> None:
    """For any x and v; the field source does so on the exact path, which is tested above."""
    pyramid = pyramid_of()
    x, v = white(1, 4, 64, 64), white(1, 4, 64, 64, seed=1)
    kept = cross(transition_of("nearest", "parent", SIGMA), x, v, pyramid, SAME)
    assert torch.allclose(kept, x, atol=1e-6)
    kept = rewind(x, SIGMA, pyramid, scale=1.0, scale_next=1.0)
    assert torch.allclose(kept, x, atol=1e-6)


@pytest.mark.parametrize("restart", [SIGMA, LANDS, 1.0])
@pytest.mark.parametrize("noise", ["field", "parent", "fresh"])
def test_staying_is_the_transition_to_the_same_grid(noise: str, restart: float) -> None:
    pyramid, transition = pyramid_of(), transition_of("bilinear", noise, restart)
    x, v = white(1, 4, 64, 64), white(1, 4, 64, 64, seed=1)
    generator = fresh_generator(99) if noise == "fresh" else None
    stayed = stay(transition, x, v, pyramid, scale=1.0, generator=generator)
    assert torch.allclose(stayed, cross(transition, x, v, pyramid, SAME), atol=1e-6)


def test_a_rewind_takes_what_stays_to_its_level_by_its_own_noise() -> None:
    x0, noise = white(1, 4, 64, 64), white(1, 4, 64, 64, seed=1)
    transition = transition_of("haar", "rewind")
    stayed = stay(transition, renoise(x0, noise, SIGMA), noise - x0, pyramid_of(), scale=1.0)
    assert torch.allclose(stayed, renoise(x0, noise, LANDS), atol=1e-6)


@pytest.mark.parametrize("noise", ["parent", "rewind"])
def test_staying_at_the_same_sigma_with_its_own_noise_changes_no_bit(noise: Any) -> None:
    # A rewind that stays, which no plan has: the law is the function's.
    transition: Any = SimpleNamespace(sigma=SIGMA, restart=SIGMA, noise=noise, refinements=())
    x, v = white(1, 4, 64, 64), white(1, 4, 64, 64, seed=1)
    assert torch.equal(stay(transition, x, v, pyramid_of(), scale=1.0), x)


@pytest.mark.parametrize(("lift", "noise"), PATHS)
def test_inputs_and_pyramid_are_left_alone(lift: str, noise: str) -> None:
    pyramid, untouched = pyramid_of(), pyramid_of()
    x, v = white(1, 4, 32, 32), white(1, 4, 32, 32, seed=1)
    x_before, v_before = x.clone(), v.clone()
    result = cross(transition_of(lift, noise), x, v, pyramid)
    result.zero_()
    assert torch.equal(x, x_before)
    assert torch.equal(v, v_before)
    for now, before in zip(pyramid.fields, untouched.fields, strict=True):
        assert torch.equal(now, before)


def test_only_fresh_noise_depends_on_the_generator() -> None:
    pyramid = pyramid_of()
    x, v = white(1, 4, 32, 32), white(1, 4, 32, 32, seed=1)
    transition = transition_of("nearest", "fresh")
    one, same, other = (
        apply_transition(
            transition, x, v, pyramid, scale=0.5, scale_next=1.0, generator=fresh_generator(seed)
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- refusals -------------------------------------------------------------------------------


def test_a_generator_is_given_exactly_where_it_is_used() -> None:
    pyramid, x = pyramid_of(), white(1, 4, 32, 32)
    fresh, field = (transition_of("nearest", name) for name in ("fresh", "field"))
    with pytest.raises(ValueError, match="without a generator"):
        apply_transition(fresh, x, x, pyramid, scale=0.5, scale_next=1.0)
    with pytest.raises(ValueError, match="expected none"):
        apply_transition(
            field, x, x, pyramid, scale=0.5, scale_next=1.0, generator=fresh_generator(0)
        )
    with pytest.raises(ValueError, match="without a generator"):
        stay(fresh, x, x, pyramid, scale=0.5)


@pytest.mark.parametrize("noise", ["field", "parent", "fresh"])
@pytest.mark.parametrize("rules", [(), ("even",), ("converged", "random")])
def test_a_transition_draws_for_fresh_noise_and_for_random_tokens(
    noise: str, rules: tuple[Any, ...]
) -> None:
    refinements = tuple(TokenRefinement(rule=rule, count=1) for rule in rules)
    transition = replace(transition_of("nearest", noise), refinements=refinements)
    assert draws(transition) == (noise == "fresh" or "random" in rules)


@pytest.mark.parametrize(
    "x", [white(1, 4, 64, 64), white(2, 4, 32, 32), white(1, 4, 32, 32).double()]
)
def test_latents_must_fit_the_pyramid(x: torch.Tensor) -> None:
    transition = transition_of("nearest", "field")
    with pytest.raises(ValueError, match="expected float32"):
        cross(transition, x, x, pyramid_of())
    with pytest.raises(ValueError, match="expected float32"):
        stay(transition, x, x, pyramid_of(), scale=0.5)


def test_coarsening_is_refused() -> None:
    with pytest.raises(ValueError, match="the same or finer"):
        ratio_of(1.0, 0.5)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"lift": "nearest"}, "expected lift 'haar'"),
        ({"restart": 0.9}, r"expected 0\.75, the only level"),
    ],
)
def test_what_would_have_to_be_ignored_is_refused(wrong: dict[str, Any], match: str) -> None:
    right = {"sigma": SIGMA, "restart": LANDS, "lift": "haar", "noise": "rewind"}
    # Not Transitions, which may refuse to be made like this.
    legal: Any = SimpleNamespace(**right)
    request: Any = SimpleNamespace(**(right | wrong))
    check_transition(legal, scale=0.5, scale_next=1.0)
    with pytest.raises(ValueError, match=match):
        check_transition(request, scale=0.5, scale_next=1.0)
