"""Laws of a mixed grid: nothing is lost in it, and every way through it keeps the flow marginal."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.schedule import rewind_sigma
from fresco_trt.plan.stages import Transition
from fresco_trt.run.mixed import Mixed, cross_mixed
from fresco_trt.run.noise import NoisePyramid, fresh_generator
from fresco_trt.run.resample import children_of, lift_bilinear, lift_nearest
from fresco_trt.run.transition import apply_transition, renoise
from tests.run.grids import child_indices

SIGMA = 0.6
LANDS = rewind_sigma(SIGMA)
PATHS = [
    *itertools.product(("nearest", "bilinear", "haar"), ("field", "parent", "fresh")),
    ("haar", "rewind"),
]
"""Every legal pair of lift and noise source."""

RESTARTS = [
    (lift, noise, restart)
    for (lift, noise), restart in itertools.product(PATHS, (SIGMA, LANDS, 1.0))
    if noise != "rewind" or restart == LANDS
]

CHANNELS = 4
PATCHIFIER = FluxPatchifier(FLUX_TINY, 5)
COARSE = Grid(height=8, width=12, scale=0.5)
FINE = Grid(height=16, width=24, scale=1.0)
N = COARSE.tokens

MASKS = st.lists(st.booleans(), min_size=N, max_size=N)

WAYS = {"into": (0.0, 0.4), "within": (0.3, 0.6), "out": (0.5, 1.0)}
"""Shares of the coarse tokens that are expanded before and after a transition."""


def pyramid_of(fine: Grid = FINE, channels: int = CHANNELS, seed: int = 7) -> NoisePyramid:
    return NoisePyramid.from_seed(
        seed, channels=channels, height=fine.height, width=fine.width, coarsest=0.5
    )


def silent(pyramid: NoisePyramid) -> NoisePyramid:
    return NoisePyramid.from_field(torch.zeros_like(pyramid.field(1.0)), coarsest=0.5)


def mixed_of(mask: Tensor, coarse: Grid = COARSE, fine: Grid = FINE) -> Mixed:
    return Mixed.from_mask(coarse, fine, mask, int(mask.sum()))


def before_and_after(way: str, coarse: Grid = COARSE, fine: Grid = FINE) -> tuple[Mixed, Mixed]:
    """Two mixed grids, the second with all that the first has expanded and more."""
    order = torch.randperm(coarse.tokens, generator=torch.Generator().manual_seed(5))
    pair = [order < round(share * coarse.tokens) for share in WAYS[way]]
    return mixed_of(pair[0], coarse, fine), mixed_of(pair[1], coarse, fine)


def cross(
    transition: Transition, x: Tensor, v: Tensor, before: Mixed, pyramid: NoisePyramid
) -> tuple[Tensor, Tensor]:
    generator = fresh_generator(99) if transition.noise == "fresh" else None
    return cross_mixed(transition, x, v, before, pyramid, PATCHIFIER, generator=generator)


def transition_of(lift: Any, noise: Any, restart: float = LANDS) -> Transition:
    return Transition(sigma=SIGMA, restart=restart, lift=lift, noise=noise)


def tokens_of(pyramid: NoisePyramid, mixed: Mixed) -> Tensor:
    """The tokens of the field itself at both resolutions."""
    return mixed.join(pyramid.field(0.5), pyramid.field(1.0), PATCHIFIER)


def white(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- places -----------------------------------------------------------------------------------


@given(MASKS)
def test_kept_and_refined_are_the_mask_in_ascending_order(mask: list[bool]) -> None:
    mixed = mixed_of(torch.tensor(mask))
    families = child_indices(COARSE, FINE)
    refined = [index for index in range(N) if mask[index]]
    assert mixed.refined.tolist() == refined
    assert mixed.kept.tolist() == [index for index in range(N) if not mask[index]]
    assert mixed.children.tolist() == [child for at in refined for child in families[at]]
    assert mixed.tokens == N + 3 * len(refined)
    assert mixed.candidates().tolist() == [not each for each in mask]


def test_children_are_those_of_the_plan() -> None:
    every = children_of(torch.arange(N), COARSE, FINE)
    assert every.reshape(N, 4).tolist() == [list(each) for each in child_indices(COARSE, FINE)]


def test_a_whole_grid_is_a_mixed_one_with_nothing_expanded() -> None:
    mixed, tokens = Mixed.whole(COARSE, FINE, torch.device("cpu")), torch.randn(1, N, 16)
    coarse, fine = mixed.split(tokens, PATCHIFIER)
    assert mixed.tokens == N
    assert torch.equal(coarse, PATCHIFIER.unpack(tokens, COARSE))
    assert not fine.any()


# --- pictures ---------------------------------------------------------------------------------


@given(MASKS)
def test_taking_apart_and_joining_is_the_identity_bit_for_bit(mask: list[bool]) -> None:
    mixed = mixed_of(torch.tensor(mask))
    tokens = white(1, mixed.tokens, 16)
    assert torch.equal(mixed.join(*mixed.split(tokens, PATCHIFIER), PATCHIFIER), tokens)


@given(MASKS)
def test_the_coarse_picture_of_a_repeated_one_is_itself(mask: list[bool]) -> None:
    """Where tokens are fine it holds their block means, and those of four equal pixels are one."""
    mixed, picture = mixed_of(torch.tensor(mask)), white(1, CHANNELS, COARSE.height, COARSE.width)
    tokens = mixed.join(picture, lift_nearest(picture, 2), PATCHIFIER)
    assert torch.equal(mixed.split(tokens, PATCHIFIER)[0], picture)
    assert torch.equal(mixed.dense(tokens, PATCHIFIER), PATCHIFIER.pack(picture))
    assert torch.equal(mixed.picture(tokens, PATCHIFIER), lift_nearest(picture, 2))


def test_a_picture_shows_fine_tokens_as_they_are_and_coarse_ones_repeated() -> None:
    mixed, _ = before_and_after("within")
    coarse, fine = white(1, 4, COARSE.height, COARSE.width), white(1, 4, FINE.height, FINE.width)
    shown = mixed.picture(mixed.join(coarse, fine, PATCHIFIER), PATCHIFIER)
    token_is_fine = torch.zeros(N).index_fill(0, mixed.refined, 1.0)
    over = token_is_fine.reshape(COARSE.rows, COARSE.columns).bool()
    over = over.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    assert torch.equal(shown, torch.where(over, fine, lift_nearest(coarse, 2)))


# --- transitions ------------------------------------------------------------------------------


@pytest.mark.parametrize(("lift", "noise", "restart"), RESTARTS)
def test_refining_everything_is_the_transition_of_the_whole_grid_bit_for_bit(
    lift: str, noise: str, restart: float
) -> None:
    pyramid, transition = pyramid_of(), transition_of(lift, noise, restart)
    x, v = white(2, 1, N, 16)
    before, after = Mixed.whole(COARSE, FINE, x.device), mixed_of(torch.ones(N, dtype=torch.bool))
    coarse, fine = cross(transition, x, v, before, pyramid)
    expected = apply_transition(
        transition,
        PATCHIFIER.unpack(x, COARSE),
        PATCHIFIER.unpack(v, COARSE),
        pyramid,
        scale=0.5,
        scale_next=1.0,
        generator=fresh_generator(99) if noise == "fresh" else None,
    )
    assert torch.equal(fine, expected)
    tokens = after.join(coarse, fine, PATCHIFIER)
    order = torch.tensor(child_indices(COARSE, FINE)).flatten()
    assert torch.equal(tokens, PATCHIFIER.pack(expected)[:, order])


@pytest.mark.parametrize(("lift", "noise", "restart"), RESTARTS)
def test_a_refined_token_does_not_see_which_others_are(
    lift: str, noise: str, restart: float
) -> None:
    """Entering: the tokens of a part are those of the whole, and of nothing."""
    pyramid, transition = pyramid_of(), transition_of(lift, noise, restart)
    x, v = white(2, 1, N, 16)
    before, after = before_and_after("into")
    everyone = mixed_of(torch.ones(N, dtype=torch.bool))
    crossed = cross(transition, x, v, before, pyramid)
    tokens, all_fine, all_coarse = (
        mixed.join(*crossed, PATCHIFIER) for mixed in (after, everyone, before)
    )
    kept = len(after.kept)
    assert torch.equal(tokens[:, :kept], all_coarse[:, after.kept])
    fine = all_fine.reshape(1, N, 4, 16)[:, after.refined].reshape(1, -1, 16)
    assert torch.equal(tokens[:, kept:], fine)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("lift", "noise", "restart"), RESTARTS)
def test_a_constant_clean_picture_keeps_its_amplitude(
    lift: str, noise: str, restart: float, way: str
) -> None:
    """The difference of two runs with the same noise is what their clean pictures differ by."""
    before, after = before_and_after(way)
    transition, pyramid = transition_of(lift, noise, restart), pyramid_of()
    z = white(1, before.tokens, 16)
    results = []
    for clean in (0.0, 1.7):
        x0 = torch.full_like(z, clean)
        crossed = cross(transition, renoise(x0, z, SIGMA), z - x0, before, pyramid)
        results.append(after.join(*crossed, PATCHIFIER))
    assert ((results[1] - results[0]) - (1 - restart) * 1.7).abs().max() <= 3e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("lift", "noise", "restart"), RESTARTS)
def test_the_exact_path_is_rejoined(lift: str, noise: str, restart: float, way: str) -> None:
    """From ``(1-s)*c + s*E`` at two resolutions to ``(1-s')*c + s'*E`` at the next two."""
    before, after = before_and_after(way)
    transition, pyramid = transition_of(lift, noise, restart), pyramid_of()
    clean = 0.8
    z = tokens_of(pyramid, before)
    x = renoise(torch.full_like(z, clean), z, SIGMA)
    landed = after.join(*cross(transition, x, z - clean, before, pyramid), PATCHIFIER)
    on_path = renoise(torch.tensor(clean), tokens_of(pyramid, after), restart)
    if noise == "fresh":
        assert not torch.allclose(landed, on_path, atol=0.1)
    else:
        assert (landed - on_path).abs().max() <= 3e-6


@pytest.mark.parametrize("way", WAYS)
def test_own_noise_at_the_same_sigma_leaves_unchanged_what_keeps_its_resolution(way: str) -> None:
    """Bit for bit, on and off the path; what is expanded does change."""
    before, after = before_and_after(way)
    transition = transition_of("bilinear", "parent", SIGMA)
    x, v = white(2, 1, before.tokens, 16)
    coarse, fine = cross(transition, x, v, before, pyramid_of())
    again = after.join(coarse, fine, PATCHIFIER)
    assert torch.equal(before.join(coarse, fine, PATCHIFIER), x)
    dense_x, dense_again = before.dense(x, PATCHIFIER), after.dense(again, PATCHIFIER)
    assert torch.equal(dense_again[:, after.kept], dense_x[:, after.kept])
    newly = (before.candidates() & ~after.candidates()).nonzero().flatten()
    assert (dense_again - dense_x)[:, newly].abs().max() > 0.1


@pytest.mark.parametrize("way", ["within", "out"])
@pytest.mark.parametrize(("lift", "noise"), PATHS)
def test_a_token_that_is_fine_keeps_its_clean_estimate(lift: str, noise: str, way: str) -> None:
    """Off the path: whatever is lifted around it, its own picture goes on."""
    before, _ = before_and_after(way)
    transition, pyramid = transition_of(lift, noise), pyramid_of()
    quiet = silent(pyramid)
    kept = len(before.kept)
    x0 = white(1, before.tokens, 16)
    z = torch.zeros_like(x0)
    crossed = cross(transition, renoise(x0, z, SIGMA), z - x0, before, quiet)
    again = before.join(*crossed, PATCHIFIER)[:, kept:]
    drawn = cross(transition, z, z, before, quiet)
    noise_alone = before.join(*drawn, PATCHIFIER)[:, kept:]
    expected = (1 - LANDS) * x0[:, kept:] + noise_alone
    assert (again - expected).abs().max() <= 3e-6


def test_a_lift_reads_neighbours_over_a_picture_without_holes() -> None:
    """Bilinear: a ramp over both resolutions stays a ramp where it is expanded, inside."""
    before, _ = before_and_after("within")
    down, across = torch.arange(COARSE.height), torch.arange(COARSE.width)
    ramp = (down[:, None] + 2.0 * across).expand(1, CHANNELS, -1, -1)
    fine_down, fine_across = torch.arange(FINE.height), torch.arange(FINE.width)
    fine_ramp = (fine_down[:, None] - 0.5) / 2 + (fine_across - 0.5)
    fine_ramp = fine_ramp.expand(1, CHANNELS, -1, -1)
    x0 = before.join(ramp, fine_ramp, PATCHIFIER)
    transition = transition_of("bilinear", "field", SIGMA)
    _, fine = cross(transition, (1 - SIGMA) * x0, -x0, before, silent(pyramid_of()))
    inside = (..., slice(1, -1), slice(1, -1))
    assert (fine[inside] - (1 - SIGMA) * fine_ramp[inside]).abs().max() <= 1e-4


def test_inputs_and_pyramid_are_left_alone() -> None:
    pyramid, untouched = pyramid_of(), pyramid_of()
    before, _ = before_and_after("within")
    x, v = white(2, 1, before.tokens, 16)
    x_before, v_before = x.clone(), v.clone()
    for each in cross(transition_of("nearest", "field"), x, v, before, pyramid):
        each.zero_()
    assert torch.equal(x, x_before)
    assert torch.equal(v, v_before)
    for now, then in zip(pyramid.fields, untouched.fields, strict=True):
        assert torch.equal(now, then)


# --- statistics -------------------------------------------------------------------------------

BIG_COARSE = Grid(height=128, width=128, scale=0.5)
BIG_FINE = Grid(height=256, width=256, scale=1.0)


def patches(tokens: Tensor, channels: int, side: int) -> Tensor:
    """Samples [M, side^2] of the pixels of aligned blocks, of tokens (side 2) or families (4)."""
    if side == 2:
        return tokens.reshape(-1, 4)
    cells = tokens.reshape(-1, 2, 2, channels, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 16)


def assert_white(samples: Tensor, std: float) -> None:
    """Six standard errors of the covariance of ``samples``, relative to the variance."""
    covariance = samples.T @ samples / len(samples) / std**2
    off = (covariance - torch.eye(len(covariance))).abs().max()
    assert off < 6 * (2 / len(samples)) ** 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("own", [True, False], ids=["noise-of-the-field", "other-noise"])
@pytest.mark.parametrize(("lift", "noise"), PATHS)
def test_noise_only_input_stays_white_at_the_restart(
    lift: str, noise: str, own: bool, way: str
) -> None:
    """The 2x2 blocks included, for what stays coarse and for whole families of fine tokens."""
    channels = 8
    pyramid = pyramid_of(BIG_FINE, channels)
    before, after = before_and_after(way, BIG_COARSE, BIG_FINE)
    z = tokens_of(pyramid, before) if own else white(1, before.tokens, 4 * channels)
    transition = transition_of(lift, noise)
    tokens = after.join(*cross(transition, SIGMA * z, z, before, pyramid), PATCHIFIER)
    coarse, fine = tokens[:, : len(after.kept)], tokens[:, len(after.kept) :]
    assert_white(patches(fine, channels, 4), LANDS)
    if coarse.numel():
        assert_white(patches(coarse, channels, 2), LANDS)


def test_the_whiteness_check_sees_a_lifted_noise() -> None:
    """The check can fail: repeating noise makes each block constant, averaging shrinks it."""
    squares = Grid(height=64, width=64, scale=0.5), Grid(height=128, width=128, scale=1.0)
    z = white(1, 8, 64, 64)
    everyone = mixed_of(torch.ones(squares[0].tokens, dtype=torch.bool), *squares)
    for lifted in (lift_nearest(z, 2), lift_bilinear(z, 2)):
        samples = patches(everyone.join(z, lifted, PATCHIFIER), 8, 4)
        with pytest.raises(AssertionError):
            assert_white(samples, float(lifted.std()))
