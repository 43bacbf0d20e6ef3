"""Laws of the principal part: the split, its rank, and what becomes of coefficients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.run.cache.svd import SvdPredictor, directions_of, split
from fresco_trt.run.cache.taylor import TaylorPredictor

WIDTH, RANK = 12, 4
STEPS = (0.0, 1.0, 2.0, 5.0, 7.0, 12.0)


def a_basis(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(WIDTH, RANK, dtype=dtype)).Q
    return basis


def basis_of(features: torch.Tensor, energy: float = 0.85) -> tuple[torch.Tensor, torch.Tensor]:
    wide = features.double()
    return directions_of(wide.T @ wide, energy)


def of_spectrum(values: list[float], rows: int = 50) -> torch.Tensor:
    """Features [rows,H], float64, with these singular values."""
    width = len(values)
    left = torch.linalg.qr(torch.randn(rows, width, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
    features: torch.Tensor = left * torch.tensor(values, dtype=torch.float64) @ right.T
    return features


# --- the basis --------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=12),
    st.floats(0.05, 0.999),
)
def test_the_rank_is_the_smallest_that_holds_the_energy(
    spectrum: list[float], energy: float
) -> None:
    powers = [value**2 for value in sorted(spectrum, reverse=True)]
    shares = [held / sum(powers) for held in itertools.accumulate(powers)]
    directions, values = basis_of(of_spectrum(spectrum), energy)
    rank = directions.shape[1]
    assert shares[rank - 1] >= energy - 1e-9
    assert rank == 1 or shares[rank - 2] < energy + 1e-9
    expected = torch.tensor(sorted(spectrum, reverse=True), dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_known_energies_give_known_ranks() -> None:
    """Squares 9, 4, 2, 1 of 16: 0.5625, 0.8125, 0.9375, 1."""
    features = of_spectrum([3.0, 2.0, 2.0**0.5, 1.0])
    ranks = [basis_of(features, energy)[0].shape[1] for energy in (0.5, 0.57, 0.81, 0.85, 0.95, 1)]
    assert ranks == [1, 2, 2, 3, 4, 4]
    assert basis_of(features)[0].shape[1] == 3  # at the published 0.85


def test_the_directions_are_the_right_singular_vectors() -> None:
    features = torch.randn(200, WIDTH) * torch.linspace(3, 0.5, WIDTH)
    directions, values = basis_of(features, 0.9)
    rank = directions.shape[1]
    _, expected, right = torch.linalg.svd(features.double(), full_matrices=False)
    assert directions.dtype == torch.float64
    torch.testing.assert_close(values, expected)
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(directions.T @ directions, eye, rtol=0, atol=1e-10)
    cosines = (directions * right[:rank].T).sum(dim=0).abs()
    torch.testing.assert_close(cosines, torch.ones(rank, dtype=torch.float64))


def test_the_signs_do_not_depend_on_those_of_the_features() -> None:
    features = torch.randn(200, WIDTH) * torch.linspace(3, 0.5, WIDTH)
    one, other = (basis_of(each, 0.9)[0] for each in (features, -features))
    assert torch.equal(one, other)
    largest = one.abs().argmax(dim=0)
    assert (one[largest, torch.arange(one.shape[1])] > 0).all()


def test_features_that_come_in_parts_have_the_basis_of_all() -> None:
    parts = [torch.randn(30, WIDTH, dtype=torch.float64) for _ in range(3)]
    whole = basis_of(torch.cat(parts))
    directions, values = directions_of(sum((p.T @ p for p in parts), torch.zeros(())), 0.85)
    torch.testing.assert_close(directions, whole[0])
    torch.testing.assert_close(values, whole[1])


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.01, float("nan")])
def test_an_energy_that_is_no_share_is_refused(energy: float) -> None:
    with pytest.raises(ValueError, match=r"expected a share within \(0, 1\]"):
        basis_of(torch.randn(9, 4), energy)


@pytest.mark.parametrize(
    "features",
    [
        torch.empty(0, 4),
        torch.zeros(3, 4),
        torch.tensor([[1.0, torch.nan]]),
        torch.tensor([[1.0, -torch.inf]]),
    ],
)
def test_features_without_directions_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        basis_of(features)


# --- the split --------------------------------------------------------------------------------


def test_the_parts_sum_to_the_feature_and_are_orthogonal() -> None:
    feature, basis = 50 * torch.randn(2, 30, WIDTH), a_basis(torch.float32)
    coefficients, residual = split(feature, basis)
    principal = coefficients @ basis.T
    torch.testing.assert_close(principal + residual, feature, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(principal @ basis @ basis.T, principal, rtol=1e-5, atol=1e-4)
    assert (residual @ basis).abs().max() < 1e-4
    assert coefficients.shape == (2, 30, RANK)


def test_what_the_basis_spans_leaves_no_residual() -> None:
    basis = a_basis()
    _, residual = split(torch.randn(1, 30, RANK, dtype=torch.float64) @ basis.T, basis)
    assert residual.abs().max() < 1e-12


# --- the forecasts ----------------------------------------------------------------------------


def parts_after(
    predictor: SvdPredictor, features: torch.Tensor, at: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prediction's coefficients and residual."""
    state = predictor.start()
    for feature, step in zip(features, STEPS, strict=False):
        state = predictor.observe(state, feature, step)
    return split(predictor.predict(state, at), predictor.basis)


def test_the_residual_is_the_last_ones() -> None:
    basis, features = a_basis(), torch.randn(5, 1, 30, WIDTH, dtype=torch.float64)
    for count in (1, 2, 5):
        _, got = parts_after(SvdPredictor(basis=basis), features[:count], 14.0)
        torch.testing.assert_close(got, split(features[count - 1], basis)[1])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_principal_part_goes_as_in_taylors_cache(order: int) -> None:
    basis, features = a_basis(), torch.randn(5, 1, 30, WIDTH, dtype=torch.float64)
    got, _ = parts_after(SvdPredictor(basis=basis, order=order), features, 9.0)
    taylor = TaylorPredictor(order=order)
    state = taylor.start()
    for feature, at in zip(features, STEPS, strict=False):
        state = taylor.observe(state, feature @ basis, at)
    torch.testing.assert_close(got, taylor.predict(state, 9.0))


def test_with_a_full_basis_it_is_taylors_cache() -> None:
    features = torch.randn(4, 1, 30, WIDTH, dtype=torch.float64)
    predictor, taylor = SvdPredictor(basis=torch.eye(WIDTH).double()), TaylorPredictor()
    one, other = predictor.start(), taylor.start()
    for feature, at in zip(features, STEPS, strict=False):
        one, other = predictor.observe(one, feature, at), taylor.observe(other, feature, at)
        torch.testing.assert_close(predictor.predict(one, 9.0), taylor.predict(other, 9.0))


# --- misuse -----------------------------------------------------------------------------------


def test_features_of_another_width_are_refused() -> None:
    predictor = SvdPredictor(basis=a_basis())
    with pytest.raises(ValueError, match="expected 12 channels"):
        predictor.observe(predictor.start(), torch.randn(1, 30, WIDTH + 1), 0.0)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 5)])
def test_a_basis_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a basis of shape"):
        SvdPredictor(basis=torch.zeros(shape))
