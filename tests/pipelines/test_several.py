"""Several bundles behind one door: exact look-up, refusals that list what is built, warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.errors import (
    FrescoError,
    IncompatibleOptions,
    InvalidArgument,
    UnknownModel,
    UnknownPreset,
    UnsupportedSize,
)
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import WARMING_PROMPT, Bucket, FrescoPipelines, WarmUp

TURBO = Bucket(model="flux-tiny", size=(64, 64), preset="turbo")
OWN = Bucket(model="flux-tiny", size=(128, 128), preset=None)


@pytest.fixture(scope="module")
def several(eager_bundle: Path, mixed_bundle: Path) -> Iterator[FrescoPipelines]:
    with FrescoPipelines.from_bundles(eager_bundle, mixed_bundle) as opened:
        yield opened


def test_what_is_built_is_listed_in_the_order_given(several: FrescoPipelines) -> None:
    assert several.buckets == (TURBO, OWN)
    assert [str(each) for each in several.buckets] == [
        "flux-tiny 64x64 turbo",
        "flux-tiny 128x128 with a plan of its own",
    ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, TURBO),
        ({"model": "flux-tiny"}, TURBO),
        ({"size": (128, 128)}, OWN),
        ({"size": "128x128", "model": "flux-tiny"}, OWN),
        ({"preset": "turbo", "size": (64, 64)}, TURBO),
    ],
)
def test_a_bucket_is_found_by_what_is_named(
    several: FrescoPipelines, asked: dict[str, str], found: Bucket
) -> None:
    assert several.find(**asked) == found


@pytest.mark.parametrize(
    ("asked", "kind", "built"),
    [
        ({"model": "flux"}, UnknownModel, "flux-tiny"),
        ({"size": (96, 96)}, UnsupportedSize, "64x64, 128x128"),
        ({"size": "big"}, UnsupportedSize, "WIDTHxHEIGHT"),
        ({"preset": "fast"}, UnknownPreset, "turbo"),
        ({"preset": "turbo", "size": (128, 128)}, UnknownPreset, "none has a name"),
        ({"model": "x\n" * 500}, UnknownModel, "flux-tiny"),
        ({"model": 3}, InvalidArgument, "a text"),
    ],
)
def test_what_is_not_built_is_refused_with_what_is(
    several: FrescoPipelines, asked: dict[str, str], kind: type[FrescoError], built: str
) -> None:
    with pytest.raises(kind, match=built) as caught:
        several.find(**asked)
    assert len(str(caught.value)) < 400


def test_two_bundles_of_one_bucket_contradict_each_other(eager_bundle: Path) -> None:
    with pytest.raises(IncompatibleOptions, match="two bundles of flux-tiny 64x64 turbo"):
        FrescoPipelines([open_bundle(eager_bundle)] * 2)
    with pytest.raises(IncompatibleOptions, match="one or more"):
        FrescoPipelines.from_bundles()


def test_a_bundle_draws_what_it_draws_alone(several: FrescoPipelines, eager_bundle: Path) -> None:
    with FrescoPipeline.from_bundle(eager_bundle) as alone:
        expected = alone(WARMING_PROMPT, seed=3).images[0]
    drawn = several[TURBO](WARMING_PROMPT, seed=3).images[0]
    assert (np.asarray(drawn) == np.asarray(expected)).all()
    assert several[TURBO] is several[TURBO]


def test_warming_up_says_what_it_cost(eager_bundle: Path) -> None:
    told: list[WarmUp] = []
    with FrescoPipelines([open_bundle(eager_bundle)]) as cold:
        costs = cold.warm_up(told.append)
        (cost,) = costs
        assert told == [cost]
        assert cost.bucket == TURBO
        assert min(cost.load, cost.first) > 0
        assert cost.second is None
        assert cost.total == cost.load + cost.first
        pipe = cold[TURBO]
    with pytest.raises(RuntimeError, match="scope"):
        pipe(WARMING_PROMPT)


def test_a_gpu_is_warm_at_the_second_request(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrescoPipeline, "device", "cuda")
    with FrescoPipelines([open_bundle(eager_bundle)]) as cold:
        (cost,) = cold.warm_up()
    assert cost.second is not None
    assert cost.total == cost.load + cost.first + cost.second
