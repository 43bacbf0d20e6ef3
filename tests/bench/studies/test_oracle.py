"""Laws of the exact flow: Bayes' rule, straight paths to one scene, levels that agree."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from bench.oracle.flow import (
    OraclePatchifier,
    SceneSet,
    exact_velocity,
    nearest,
    observed_tokens,
    oracle_runners,
    posterior_weights,
)
from fresco_trt.bench.engines import plan_method
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.schedule import rewind_sigma
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.mixed import Mixed
from fresco_trt.run.positions import mixed_tables
from fresco_trt.run.resample import haar_split

TINY = model_facts("flux-tiny")
FINE = Grid(height=16, width=16, scale=1.0)
COARSE = Grid(height=8, width=8, scale=0.5)
SIDE = 64
STAGED = Preset(steps=(2, 2, 3), switch=(0.85, 0.7))
MIXED = replace(STAGED, refine=((("edge", 0.4),), ()), window=1)
PRESETS = {
    "one step": Preset(steps=(1,)),
    "seven steps": Preset(steps=(7,)),
    "three stages": STAGED,
    "fresh": replace(STAGED, noise="fresh"),
    "rewind": replace(STAGED, noise="rewind", lift="haar"),
    "mixed": MIXED,
    "mixed, coarse units": replace(MIXED, positions="coarse"),
    "mixed, aligned": replace(MIXED, positions="aligned"),
    "multistep": replace(STAGED, solver="multistep"),
}


def scenes(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 16, 16)


def drawn(preset: Preset, sets: list[SceneSet], seed: int = 3, caption: int = 0) -> torch.Tensor:
    plan = plan_from_preset(TINY, preset, size=(SIDE, SIDE))
    with ExitStack() as scope:
        runners = {
            name: scope.enter_context(runner) for name, runner in oracle_runners(plan, sets).items()
        }
        patchifier = OraclePatchifier()
        draw = plan_method(Denoiser(facts=TINY, plan=plan, runners=runners, patchifier=patchifier))
        return draw({"caption": torch.tensor([caption])}, seed).latents


# --- the posterior ----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5, 0.05, 1e-4])
def test_weights_are_a_distribution_at_every_level(sigma: float) -> None:
    weights = posterior_weights(torch.randn(3, 40), sigma, torch.randn(7, 40))
    assert weights.shape == (3, 7)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_weights_are_those_of_bayes_rule() -> None:
    x, z, sigma = torch.randn(1, 5).double(), torch.randn(4, 5).double(), 0.6
    noise = torch.distributions.Normal(0.0, sigma)
    density = torch.stack([noise.log_prob(x[0] - (1 - sigma) * each).sum().exp() for each in z])
    torch.testing.assert_close(posterior_weights(x, sigma, z)[0], density / density.sum())


def test_pure_noise_says_nothing_and_the_velocity_is_the_mean_flow() -> None:
    x, z = torch.randn(2, 9).double(), torch.randn(5, 9).double()
    torch.testing.assert_close(
        posterior_weights(x, 1.0, z), torch.full((2, 5), 0.2, dtype=torch.float64)
    )
    torch.testing.assert_close(exact_velocity(x, 1.0, z), x - z.mean(dim=0))


def test_near_the_end_the_velocity_points_to_the_nearest_scene() -> None:
    z, sigma = torch.randn(6, 50).double(), 1e-3
    x = z[4:5] + 0.01 * torch.randn(1, 50).double()
    assert nearest(x, z).item() == 4
    torch.testing.assert_close(x - sigma * exact_velocity(x, sigma, z), z[4:5])


def test_the_mean_over_the_posterior_is_the_best_guess_there_is() -> None:
    # No other weighting of the scenes has a smaller mean squared error on average.
    z, sigma = torch.randn(4, 3).double(), 0.7
    truth = z[torch.randint(4, (20000,))]
    x = (1 - sigma) * truth + sigma * torch.randn_like(truth)
    guess = x - sigma * exact_velocity(x, sigma, z)
    error = (guess - truth).square().sum(dim=1).mean()
    for other in (z.mean(dim=0).expand_as(truth), z[nearest(x / (1 - sigma), z)]):
        assert error < (other - truth).square().sum(dim=1).mean()


# --- levels that belong together --------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 0.7, 0.95])
def test_the_coarse_flow_is_that_of_the_fine_ones_low_band(sigma: float) -> None:
    # LL(x) at the level a rewind maps sigma to, scaled, is a coarse latent at sigma: same odds.
    z, noise = scenes(5).double(), torch.randn(1, 4, 16, 16).double()
    level = rewind_sigma(sigma)
    fine = (1 - level) * z[:1] + level * noise
    low = haar_split(fine)[0] * (sigma / level)
    coarse = SceneSet(z).tokens(COARSE)
    packed = OraclePatchifier().pack(low).flatten(1)
    expected = (1 - sigma) * coarse[:1] + sigma * OraclePatchifier().pack(haar_split(noise)[0])
    torch.testing.assert_close(packed, expected.flatten(1))
    bands = haar_split(z)[0].flatten(1)
    odds = posterior_weights(haar_split(fine)[0].flatten(1), level, bands)
    torch.testing.assert_close(posterior_weights(packed, sigma, coarse.flatten(1)), odds)


def test_a_grid_of_another_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="64 tokens"):
        SceneSet(scenes(2)).tokens(Grid(height=32, width=32, scale=1.0))


@pytest.mark.parametrize("units", ["fine", "coarse"])
def test_a_mixed_stage_observes_the_tokens_that_it_holds(units: str) -> None:
    patchifier, chosen = OraclePatchifier(), SceneSet(scenes(3))
    expanded = torch.zeros(16, dtype=torch.bool)
    expanded[[2, 3, 9, 15]] = True
    mixed = Mixed.from_mask(COARSE, FINE, expanded, 4)
    positions = mixed_tables(patchifier, mixed, units)["positions"]  # type: ignore[arg-type]
    found = observed_tokens(
        chosen,
        positions,
        coarse=COARSE,
        fine=FINE,
        kept=12,
        units=units,  # type: ignore[arg-type]
    )
    kept = chosen.tokens(COARSE)[:, ~expanded]
    assert torch.equal(found[:, :12], kept)
    rows = mixed.children
    assert torch.equal(found[:, 12:], chosen.tokens(FINE)[:, rows])


# --- through the sampler ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_with_one_scene_every_plan_draws_it(name: str) -> None:
    only = scenes(1)
    torch.testing.assert_close(drawn(PRESETS[name], [SceneSet(only)]), only, atol=1e-5, rtol=0)


def test_the_path_to_one_scene_is_straight() -> None:
    only = scenes(1)
    x = torch.randn(1, 4, 16, 16).double()
    at = 0.35 * only + 0.65 * x
    velocity = exact_velocity(at.flatten(1), 0.65, only.flatten(1))
    torch.testing.assert_close(velocity, (x - only).flatten(1))


@pytest.mark.parametrize("name", PRESETS)
def test_the_caption_says_which_scenes_are_meant(name: str) -> None:
    sets = [SceneSet(scenes(1)), SceneSet(scenes(1))]
    for caption in (0, 1):
        found = drawn(PRESETS[name], sets, caption=caption)
        torch.testing.assert_close(found, sets[caption].latents.float(), atol=1e-5, rtol=0)


def test_more_steps_come_nearer_to_the_exact_path() -> None:
    # Close scenes: far ones are decided within the first step and leave no path to follow.
    chosen = [SceneSet(0.1 * scenes(6))]
    exact = drawn(Preset(steps=(400,)), chosen)
    errors = [
        (drawn(Preset(steps=(steps,)), chosen) - exact).square().mean().item()
        for steps in (5, 20, 80)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
