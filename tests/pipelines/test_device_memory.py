"""A GPU that is too small is told with numbers, before an engine is loaded or a weight is read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends.choosing import Gpu
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.bundle import Bundle, open_bundle
from fresco_trt.errors import OutOfDeviceMemory
from fresco_trt.lower import build as lower
from fresco_trt.lower.request import BuildRequest
from fresco_trt.pipelines import loading
from fresco_trt.pipelines.device_memory import check_device_memory, free_device_bytes


class OnGpu(EagerBackend):
    """As on a machine with a GPU; nothing may be loaded."""

    def describe(self) -> Any:
        return replace(super().describe(), device="cuda")

    def load(self, *given: Any) -> Any:
        raise AssertionError("an engine was loaded")


def test_a_bundle_that_does_not_fit_is_refused_before_it_is_loaded(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(eager_bundle)
    monkeypatch.setattr(loading, "free_device_bytes", lambda: 10_000_000)
    said = r"0\.\d\d GB and 0\.\d\d GB of live tensors, 0\.01 GB of GPU memory free.*nothing"
    with ExitStack() as scope, pytest.raises(OutOfDeviceMemory, match=said):
        loading.load_runners(bundle, OnGpu(), scope)


def test_what_fits_or_is_not_known_is_let_through(eager_bundle: Path) -> None:
    bundle = open_bundle(eager_bundle)
    check_device_memory(bundle, 10**9)
    check_device_memory(bundle, None)


def test_a_batch_has_live_tensors_of_every_picture(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(eager_bundle)
    one = needed(bundle)
    monkeypatch.setattr(Bundle, "batch", 8)
    files = {name for engine in bundle.manifest.engines for name in engine.files}
    weights = sum(file.bytes for file in bundle.manifest.files if file.path in files)
    assert needed(bundle) - weights == 8 * (one - weights)


def needed(bundle: Bundle) -> int:
    """The fewest free bytes that are enough, found by halving."""
    low, high = 0, 2**40
    while high - low > 1:
        free = (low + high) // 2
        try:
            check_device_memory(bundle, free)
            high = free
        except OutOfDeviceMemory:
            low = free
    return high


@pytest.mark.skipif(free_device_bytes() is not None, reason="about a machine without a GPU")
def test_without_a_gpu_nothing_is_known() -> None:
    assert free_device_bytes() is None


def test_a_build_for_this_gpu_says_that_it_has_no_room_before_it_reads_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(name="NVIDIA T1000", capability=(7, 5), bytes=4 * 10**9)
    resolved = lower.resolve(BuildRequest(model="flux", backend="eager", precision="fp32"))
    resolved = replace(resolved, backend=OnGpu())
    monkeypatch.setattr(lower, "resolve", lambda request: resolved)
    monkeypatch.setattr(lower, "this_gpu", lambda: gpu)
    said = r"about \d\d\.\d GB of engines for a GPU of 4\.0 GB.*T1000"
    with pytest.raises(OutOfDeviceMemory, match=said):
        lower.run(BuildRequest(model="flux", backend="eager"))
    lower.check_gpu(resolved, None)
    lower.check_gpu(resolved, replace(gpu, bytes=80 * 10**9))
