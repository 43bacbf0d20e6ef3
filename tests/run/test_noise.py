"""Laws of the noise field: it is diffusers' draw, and its Haar levels are white and invertible."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fresco_trt.run.noise import (
    NoisePyramid,
    fresh_generator,
    level_of,
    noise_field,
)
from fresco_trt.run.resample import haar_merge, haar_split

SEED = 1234


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 6, 10), (1, 16, 128, 64)])
def test_haar_merge_inverts_split_and_split_inverts_merge(shape: tuple[int, ...]) -> None:
    fine = white(*shape)
    low, details = haar_split(fine)
    assert (haar_merge(low, details) - fine).abs().max() <= 1e-6
    low_again, details_again = haar_split(haar_merge(low, details))
    assert (low_again - low).abs().max() <= 1e-6
    for band, again in zip(details, details_again, strict=True):
        assert (again - band).abs().max() <= 1e-6


def test_haar_is_orthonormal() -> None:
    """Every pixel of a 2x2 block, as an impulse, gives four orthonormal columns."""
    impulses = torch.eye(4).reshape(4, 1, 2, 2)
    low, details = haar_split(impulses)
    matrix = torch.cat([band.reshape(4, 1) for band in (low, *details)], dim=1)
    assert torch.allclose(matrix @ matrix.T, torch.eye(4), atol=1e-7)
    assert torch.equal(low.flatten(), torch.full((4,), 0.5))


def test_bands_of_white_noise_are_white_and_uncorrelated() -> None:
    low, details = haar_split(white(1, 4, 512, 512))
    bands = torch.stack([band.flatten() for band in (low, *details)])
    covariance = bands @ bands.T / bands.shape[1]
    assert torch.allclose(covariance, torch.eye(4), atol=0.015)
    neighbours = (low[..., 1:] * low[..., :-1]).mean()
    assert abs(float(neighbours)) < 0.015


def test_levels_round_as_any_device_rounds() -> None:
    """Sums of two float32 numbers and halvings, each rounded once: all that a device must share."""
    fine = 1e3 * white(2, 3, 6, 10)
    block = fine.numpy()
    a, b = block[..., 0::2, 0::2], block[..., 0::2, 1::2]
    c, d = block[..., 1::2, 0::2], block[..., 1::2, 1::2]
    low, details = haar_split(fine)
    assert (low.numpy() == ((a + b) + (c + d)) / 2).all()
    column, row, diagonal = (band.numpy() for band in details)
    assert (column == ((a - b) + (c - d)) / 2).all()
    assert (row == ((a + b) - (c + d)) / 2).all()
    assert (diagonal == ((a - b) - (c - d)) / 2).all()


@pytest.mark.gpu
def test_a_seed_is_the_same_noise_on_a_gpu() -> None:
    here, there = (
        NoisePyramid.from_seed(SEED, channels=16, height=64, width=32, coarsest=0.25, device=device)
        for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(here.fields, there.fields, strict=True):
        assert torch.equal(ours, theirs.cpu())
    for ours, theirs in zip(here.details, there.details, strict=True):
        assert all(map(torch.equal, ours, (band.cpu() for band in theirs)))


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (1, 1, 4, 3)])
def test_odd_sides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be even"):
        haar_split(white(*shape))


@pytest.mark.parametrize("seeds", [SEED, [SEED], [3, 1, 2]])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_field_is_what_the_flux_pipeline_draws(
    seeds: int | list[int], height: int, width: int
) -> None:
    from diffusers import FluxPipeline  # seconds to import, and only this test needs it
    from diffusers.utils.torch_utils import randn_tensor

    field = noise_field(seeds, channels=4, height=height, width=width)
    each = [seeds] if isinstance(seeds, int) else seeds
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in each]
    pipeline = SimpleNamespace(
        vae_scale_factor=4,
        _pack_latents=FluxPipeline._pack_latents,
        _prepare_latent_image_ids=FluxPipeline._prepare_latent_image_ids,
    )
    generator = generators if len(generators) > 1 else generators[0]
    tokens, _ = FluxPipeline.prepare_latents(
        pipeline, len(each), 4, 4 * height, 4 * width, torch.float32, torch.device("cpu"), generator
    )
    assert torch.equal(FluxPipeline._pack_latents(field, len(each), 4, height, width), tokens)

    alone = torch.Generator("cpu").manual_seed(each[0])
    assert torch.equal(field[:1], randn_tensor((1, 4, height, width), generator=alone))


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="no seed"):
        noise_field([], channels=4, height=8, width=8)


def test_drawing_leaves_the_global_generator_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        before = torch.get_rng_state()
        NoisePyramid.from_seed(SEED, channels=4, height=16, width=16, coarsest=0.25)
        fresh_generator(SEED)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("scale", "level"), [(1.0, 0), (0.5, 1), (0.25, 2), (0.0625, 4)])
def test_level_counts_halvings(scale: float, level: int) -> None:
    assert level_of(scale) == level


@pytest.mark.parametrize("scale", [0.75, 0.3, 2.0, 0.0, -0.5, float("nan"), float("inf")])
def test_other_scales_have_no_level(scale: float) -> None:
    with pytest.raises(ValueError, match="no noise level"):
        level_of(scale)


def test_every_level_is_the_ll_band_of_the_finer_one_and_completes_to_it() -> None:
    pyramid = NoisePyramid.from_seed(SEED, channels=4, height=32, width=48, coarsest=0.25)
    assert torch.equal(pyramid.field(1.0), noise_field(SEED, channels=4, height=32, width=48))
    for scale in (0.5, 0.25):
        low, _ = haar_split(pyramid.field(2 * scale))
        assert torch.equal(pyramid.field(scale), low)
        for finer in (scale, 2 * scale, 1.0):
            completed = pyramid.complete(pyramid.field(scale), scale, finer)
            assert (completed - pyramid.field(finer)).abs().max() <= 1e-6


def test_a_level_of_half_tokens_has_a_margin_that_is_white_and_left_out() -> None:
    pyramid = NoisePyramid.from_seed(
        SEED, channels=64, height=90, width=70, frames=3, coarsest=0.25, patch=2
    )
    shapes = [tuple(pyramid.field(scale).shape[-2:]) for scale in (1.0, 0.5, 0.25)]
    assert shapes == [(90, 70), (46, 36), (24, 18)]
    for scale in (0.5, 0.25):
        field = pyramid.field(scale)
        edge = field[..., -1, :].flatten()
        assert abs(edge.std() - 1) < 0.05
        for other in (field[..., -2, :], field[..., -3, :]):
            assert abs((edge * other.flatten()).mean()) < 0.05
        for finer in (scale, 2 * scale, 1.0):
            completed = pyramid.complete(field, scale, finer)
            assert (completed - pyramid.field(finer)).abs().max() <= 1e-6
    whole = NoisePyramid.from_seed(SEED, channels=2, height=32, width=16, coarsest=0.25)
    patched = NoisePyramid.from_seed(SEED, channels=2, height=32, width=16, coarsest=0.25, patch=2)
    assert all(map(torch.equal, whole.fields, patched.fields))


def test_completion_scales_only_the_details() -> None:
    pyramid = NoisePyramid.from_seed(SEED, channels=2, height=16, width=16, coarsest=0.5)
    low = white(1, 2, 8, 8, seed=5)
    low_again, details = haar_split(pyramid.complete(low, 0.5, 1.0, gain=0.3))
    assert torch.allclose(low_again, low, atol=1e-6)
    for band, stored in zip(details, pyramid.details[0], strict=True):
        assert torch.allclose(band, 0.3 * stored, atol=1e-6)


def test_a_pyramid_says_which_scales_it_has() -> None:
    pyramid = NoisePyramid.from_seed(SEED, channels=4, height=16, width=16, coarsest=0.5)
    with pytest.raises(ValueError, match=r"no noise level for scale 0.25; expected one of 1, 0.5"):
        pyramid.field(0.25)
    with pytest.raises(ValueError, match="the same or finer"):
        pyramid.complete(pyramid.field(1.0), 1.0, 0.5)


@pytest.mark.parametrize(
    "field", [torch.zeros(1, 4, 8, 8, dtype=torch.float64), torch.zeros(4, 8, 8)]
)
def test_a_pyramid_wants_float32_latents(field: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        NoisePyramid.from_field(field)


def test_a_pyramid_wants_details_between_its_fields() -> None:
    with pytest.raises(ValueError, match="one detail level between"):
        NoisePyramid(fields=(white(1, 1, 4, 4), white(1, 1, 2, 2)), details=())


def test_fresh_draws_are_reproducible_and_not_the_field() -> None:
    """The trap: a generator seeded with the request's seed would draw the field again."""
    field = noise_field(SEED, channels=4, height=64, width=64)
    fresh = torch.randn(field.shape, generator=fresh_generator(SEED))
    assert torch.equal(fresh, torch.randn(field.shape, generator=fresh_generator([SEED])))
    assert abs(float((fresh * field).mean())) < 0.05
