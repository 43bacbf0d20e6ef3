"""Engines that are loaded when a request comes to them, and what loading is said to cost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends.base import EngineRunner
from fresco_trt.backends.eager import EagerBackend
from fresco_trt.errors import (
    BundleChanged,
    Cancelled,
    DigestMismatch,
    InvalidArgument,
    OutOfDeviceMemory,
)
from fresco_trt.files.peak_memory import resident_bytes
from fresco_trt.pipelines import cost, loading
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import FrescoPipelines

PROMPT = "a bell on a plain blue background"
STAGES = ["stage1.full", "stage2.full", "stage3.full"]


def pixels(pipe: FrescoPipeline, **given: Any) -> bytes:
    picture: bytes = pipe(PROMPT, seed=3, **given).images[0].tobytes()
    return picture


def loaded(pipe: FrescoPipeline) -> list[str]:
    """The engines that are, in their order."""
    assert isinstance(pipe.runners, loading.Engines)
    return list(pipe.runners.costs)


def test_a_stage_is_loaded_when_a_request_comes_to_it(eager_bundle: Path) -> None:
    with FrescoPipeline.from_bundle(eager_bundle) as whole:
        assert loaded(whole) == STAGES
        expected = pixels(whole)
    with FrescoPipeline.from_bundle(eager_bundle, lazy=True) as pipe:
        assert loaded(pipe) == []
        ends: list[int] = []
        with pytest.raises(Cancelled):
            pipe(PROMPT, on_stage=lambda stage, picture: ends.append(stage), cancel=ends.copy)
        assert loaded(pipe) == STAGES[:2]
        assert pixels(pipe) == expected
        assert loaded(pipe) == STAGES
    with pytest.raises(RuntimeError, match="inside its scope only"):
        pipe(PROMPT)


def test_what_is_loaded_late_is_what_was_checked_or_nothing(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(eager_bundle, tmp_path / "b", copy_function=os.link))
    with FrescoPipeline.from_bundle(folder, lazy=True) as pipe:
        folder.rename(tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", folder, copy_function=os.link)
        with pytest.raises(BundleChanged, match="loaded when a request came to it"):
            pipe(PROMPT)
        assert not loaded(pipe)
    weights = next(folder.rglob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.unlink()  # the file has another name, in the bundle that is everybody's
    weights.write_bytes(damaged)
    with pytest.raises(DigestMismatch):
        FrescoPipeline.from_bundle(folder, lazy=True)


def test_lazy_is_yes_or_no(eager_bundle: Path) -> None:
    for door in (FrescoPipeline.from_bundle, FrescoPipelines.from_bundles):
        with pytest.raises(InvalidArgument, match="lazy"):
            door(eager_bundle, lazy=1)  # type: ignore[operator]


# --- what it costs ------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that the process is said to hold; half as many of a GPU's million."""
    count = [0]
    monkeypatch.setattr(cost, "resident_bytes", lambda: count[0])
    monkeypatch.setattr(cost, "free_device_bytes", lambda: 10**6 - count[0] // 2)
    return count


class Weighing(EagerBackend):
    """An engine of the stage N takes N thousand bytes; one in `refused` does not fit."""

    def __init__(self, held: list[int]) -> None:
        super().__init__()
        self.held = held
        self.refused: set[str] = set()

    def load(self, folder: Path, record: Any) -> EngineRunner:
        inner = super().load(folder, record)

        @contextmanager
        def open_session() -> Iterator[Any]:
            if record.name in self.refused:
                raise OutOfDeviceMemory("it is full", expected="room", fix="close others")
            with inner:
                self.held[0] += 1000 * int(record.name[5])
                yield inner
                self.held[0] -= 1000 * int(record.name[5])

        return EngineRunner(record.signature, open_session)


def test_each_engine_is_weighed_as_it_is_loaded(eager_bundle: Path, held: list[int]) -> None:
    bundle, library = loading.opened(eager_bundle), Weighing(held)
    with ExitStack() as scope:
        engines = loading.load_runners(bundle, library, scope)
        costs = engines.costs.values()
        assert [each.host_bytes for each in costs] == [1000, 2000, 3000]
        assert [each.device_bytes for each in costs] == [500, 1000, 1500]
        assert all(each.seconds > 0 for each in costs)
    assert held == [0]


def test_a_stage_that_does_not_load_is_named_and_tried_again(
    eager_bundle: Path, held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Weighing(held)
    library.refused = {"stage2.full"}
    monkeypatch.setattr("fresco_trt.backends.backend", lambda name: library)
    with FrescoPipeline.from_bundle(eager_bundle, lazy=True) as pipe:
        with pytest.raises(OutOfDeviceMemory, match=r"loaded when a request came.*stage2\.full"):
            pipe(PROMPT)
        assert held == [1000]
        library.refused.clear()
        pixels(pipe)
        assert held == [6000]
    assert held == [0]


@pytest.mark.parametrize("lazy", [False, True])
def test_warming_up_loads_all_and_says_what_each_stage_cost(
    eager_bundle: Path, held: list[int], monkeypatch: pytest.MonkeyPatch, lazy: bool
) -> None:
    monkeypatch.setattr("fresco_trt.backends.backend", lambda name: Weighing(held))
    with FrescoPipelines.from_bundles(eager_bundle, lazy=lazy) as pipelines:
        (warm,) = pipelines.warm_up()
    assert (warm.host_bytes, warm.device_bytes) == (6000, 3000)
    assert [each.stage for each in warm.stages] == [1, 2, 3]
    assert [each.load.host_bytes for each in warm.stages] == [1000, 2000, 3000]
    assert all(each.first for each in warm.stages)
    assert sum(each.first or 0 for each in warm.stages) < warm.first


def test_memory_that_nobody_counts_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resident_bytes() or 0) > 10**7
    assert resident_bytes(tmp_path / "statm") is None
    (tmp_path / "statm").write_text("12 x")
    assert resident_bytes(tmp_path / "statm") is None
    none = cost.Cost(seconds=1.0, host_bytes=None, device_bytes=None)
    assert none + cost.Cost(seconds=1.0, host_bytes=3, device_bytes=None) == cost.Cost(
        seconds=2.0, host_bytes=None, device_bytes=None
    )
    monkeypatch.setattr(cost, "resident_bytes", iter([9, 4]).__next__)
    monkeypatch.setattr(cost, "free_device_bytes", lambda: None)
    freed = cost.Meter().cost()
    assert (freed.host_bytes, freed.device_bytes) == (0, None)
