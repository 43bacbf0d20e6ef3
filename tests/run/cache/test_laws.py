"""What holds for every predictor: states are values, bounded, and share nothing with anyone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from fresco_trt.plan.caching import cache_names
from fresco_trt.run.cache import Predictor
from fresco_trt.run.cache.freqca import FreqCaPredictor
from fresco_trt.run.cache.hicache import HiCachePredictor
from fresco_trt.run.cache.reuse import ReusePredictor
from fresco_trt.run.cache.svd import SvdPredictor
from fresco_trt.run.cache.taylor import TaylorPredictor

ROWS, COLUMNS, WIDTH, RANK = 12, 20, 8, 3
SHAPE = 2, ROWS * COLUMNS, WIDTH
FULL = (0.0, 1.0, 4.0, 6.0, 11.0, 12.0)

BASIS = torch.linalg.qr(torch.randn(WIDTH, RANK, generator=torch.Generator().manual_seed(1))).Q

EVERY: dict[str, Predictor[Any]] = {
    "reuse": ReusePredictor(),
    "taylor-1": TaylorPredictor(order=1),
    "taylor-3": TaylorPredictor(order=3),
    "hicache": HiCachePredictor(),
    "svd": SvdPredictor(basis=BASIS),
    "freqca": FreqCaPredictor(rows=ROWS, columns=COLUMNS),
}
each = pytest.mark.parametrize("predictor", EVERY.values(), ids=EVERY.keys())


def observed(predictor: Predictor[Any], features: Sequence[torch.Tensor] | torch.Tensor) -> Any:
    """The state after full steps at the first of ``FULL``."""
    state = predictor.start()
    for feature, at in zip(features, FULL, strict=False):
        state = predictor.observe(state, feature, at)
    return state


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a state holds."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from tensors_of(getattr(state, field.name))


def bytes_of(state: Any) -> int:
    """What the state keeps alive, views with all that they look at."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(state)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_every_cache_of_the_plan_is_here() -> None:
    assert {name.split("-")[0] for name in EVERY} == set(cache_names("feature"))


@each
def test_a_new_cache_is_empty(predictor: Predictor[Any]) -> None:
    """Also after the predictor was used: a new stage must not see the one before."""
    observed(predictor, torch.randn(3, *SHAPE).unbind())
    assert not list(tensors_of(predictor.start()))
    with pytest.raises(ValueError, match="empty cache"):
        predictor.predict(predictor.start(), 1.0)


@each
def test_after_a_new_start_only_what_follows_matters(predictor: Predictor[Any]) -> None:
    features = torch.randn(2, *SHAPE).unbind()
    before = predictor.predict(observed(predictor, features), 3.0)
    observed(predictor, torch.randn(5, *SHAPE).unbind())
    assert torch.equal(predictor.predict(observed(predictor, features), 3.0), before)


@each
def test_two_requests_share_nothing(predictor: Predictor[Any]) -> None:
    """Interleaved or one after the other: the same predictions at every step."""
    ones, others = torch.randn(2, len(FULL), *SHAPE)
    alone = [predictor.predict(observed(predictor, ones[: n + 1]), 13.0) for n in range(len(FULL))]
    one, other = predictor.start(), predictor.start()
    for feature, unlike, at, expected in zip(ones, others, FULL, alone, strict=True):
        one = predictor.observe(one, feature, at)
        other = predictor.observe(other, unlike, -at)
        predictor.predict(other, -13.0)
        assert torch.equal(predictor.predict(one, 13.0), expected)
        assert not torch.equal(predictor.predict(other, -13.0), expected)


@each
def test_an_old_state_stays_what_it_was(predictor: Predictor[Any]) -> None:
    features = torch.randn(5, *SHAPE)
    state = observed(predictor, features[:3])
    kept = [tensor.clone() for tensor in tensors_of(state)]
    prediction = predictor.predict(state, 5.0).clone()
    later = predictor.observe(state, features[3], 6.0)
    predictor.predict(later, 7.0)
    assert all(map(torch.equal, tensors_of(state), kept))
    assert torch.equal(predictor.predict(state, 5.0), prediction)


@each
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_engine_may_overwrite_its_buffer(predictor: Predictor[Any], count: int) -> None:
    features = torch.randn(count, *SHAPE)
    expected = predictor.predict(observed(predictor, features), 7.0)
    buffer, state = torch.empty(SHAPE), predictor.start()
    for feature, at in zip(features, FULL, strict=False):
        state = predictor.observe(state, buffer.copy_(feature), at)
        assert torch.equal(buffer, feature)  # only read
        buffer.fill_(torch.nan)
    assert torch.equal(predictor.predict(state, 7.0), expected)


@each
def test_a_state_is_bounded_by_what_was_announced(predictor: Predictor[Any]) -> None:
    """Whatever the number of steps, and reached but for the rounding up."""
    feature = torch.randn(SHAPE)
    limit = predictor.nbytes(feature.nbytes)
    state, sizes = predictor.start(), []
    for step in range(12):
        state = predictor.observe(state, torch.randn(SHAPE), step)
        sizes.append(bytes_of(state))
    assert max(sizes) == sizes[-1] == sizes[4]
    assert limit - 16 < sizes[-1] <= limit
    assert limit <= 5 * feature.nbytes


@each
def test_a_view_into_a_large_buffer_does_not_keep_it(predictor: Predictor[Any]) -> None:
    """The engine's feature may be the image part of all its tokens."""
    joint = torch.randn(2, 3 * ROWS * COLUMNS, WIDTH)
    feature = joint[:, : ROWS * COLUMNS]
    state = predictor.observe(predictor.start(), feature, 0.0)
    assert bytes_of(state) <= predictor.nbytes(feature.nbytes)
    torch.testing.assert_close(predictor.predict(state, 1.0), feature, rtol=1e-5, atol=1e-5)


@each
def test_nothing_waits_for_a_device_nor_tracks_gradients(predictor: Predictor[Any]) -> None:
    """Tensors without data cannot be read on the host; a state with a graph would grow."""
    if isinstance(predictor, SvdPredictor):
        predictor = dataclasses.replace(predictor, basis=predictor.basis.to("meta"))
    features = [torch.empty(SHAPE, device="meta", requires_grad=True) for _ in FULL]
    state = observed(predictor, features)
    prediction = predictor.predict(state, 13.0)
    assert (prediction.shape, prediction.dtype) == (SHAPE, torch.float32)
    assert prediction.device.type == "meta"
    assert not any(tensor.requires_grad for tensor in (prediction, *tensors_of(state)))


@each
def test_the_first_prediction_is_the_only_feature(predictor: Predictor[Any]) -> None:
    feature = torch.randn(SHAPE)
    state = predictor.observe(predictor.start(), feature, 3.0)
    for at in (3.0, 4.0, 9.0):
        torch.testing.assert_close(predictor.predict(state, at), feature, rtol=1e-5, atol=1e-6)


@each
def test_a_constant_feature_stays(predictor: Predictor[Any]) -> None:
    feature = torch.randn(SHAPE)
    state = observed(predictor, [feature] * len(FULL))
    torch.testing.assert_close(predictor.predict(state, 15.0), feature, rtol=1e-5, atol=1e-6)


@each
def test_settings_cannot_be_changed(predictor: Predictor[Any]) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(predictor, "order", 3)  # noqa: B010


DIFFERENCING = {name: EVERY[name] for name in EVERY if name != "reuse"}


@pytest.mark.parametrize("predictor", DIFFERENCING.values(), ids=DIFFERENCING.keys())
@pytest.mark.parametrize("steps", [(1.0, 1.0), (1.0, 2.0, 1.5), (3.0, 2.0, 2.0)])
def test_full_steps_go_one_way(predictor: Predictor[Any], steps: tuple[float, ...]) -> None:
    *before, last = steps
    state = predictor.start()
    for at in before:
        state = predictor.observe(state, torch.randn(SHAPE), at)
    with pytest.raises(ValueError, match="all rise or all fall"):
        predictor.observe(state, torch.randn(SHAPE), last)
