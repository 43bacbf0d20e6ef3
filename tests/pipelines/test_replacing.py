"""Bundles put in the place of others while requests run: what each draws, and what is freed."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.errors import BundleNotFound, EngineFailed, IncompatibleOptions
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import FrescoPipelines
from tests.serve.scripted import ScriptedPipeline, ScriptedPipelines

PROMPT = "a bell on a plain blue background"
PATIENCE = 60  # seconds, against a hang


def alone(bundle: Path, seed: int) -> bytes:
    with FrescoPipeline.from_bundle(bundle) as pipe:
        return pixels(pipe, seed)


def pixels(pipe: Any, seed: int, **more: Any) -> bytes:
    picture: bytes = pipe(PROMPT, seed=seed, **more).images[0].tobytes()
    return picture


def test_requests_in_flight_end_with_the_old_engines_which_are_then_freed(
    eager_bundle: Path, onnx_bundle: Path
) -> None:
    replaced, drawing = threading.Event(), threading.Event()

    def wait(step: object) -> None:
        drawing.set()
        assert replaced.wait(PATIENCE)

    with (
        FrescoPipelines.from_bundles(eager_bundle) as pipelines,
        ThreadPoolExecutor(1) as threads,
    ):
        bucket = pipelines.find()

        def draw() -> bytes:
            with pipelines.hold(bucket) as pipe:
                return pixels(pipe, 1, on_step=wait)

        running = threads.submit(draw)
        assert drawing.wait(PATIENCE)
        accepted = pipelines.hold(bucket)  # and not yet begun
        before = accepted.pipeline
        old = [weakref.ref(each) for each in (before, before._decoder, *before.runners.values())]
        del before

        (cost,) = pipelines.replace(onnx_bundle)
        assert cost.bucket == bucket
        assert pipelines.bundle(bucket).manifest.backend.name == "onnxruntime"
        replaced.set()
        with pipelines.hold(bucket) as new:
            assert pixels(new, 3) == alone(onnx_bundle, 3)
        assert running.result() == alone(eager_bundle, 1)
        with accepted as pipe:
            assert pixels(pipe, 2) == alone(eager_bundle, 2)
        del accepted, pipe, running
        assert [each() for each in old] == [None] * len(old)
        assert pixels(new, 3) == pixels(pipelines[bucket], 3)


def test_the_same_files_stay_as_they_are_and_others_do_not(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(eager_bundle, tmp_path / "bundle"))
    with FrescoPipelines.from_bundles(folder) as pipelines:
        (bucket,) = pipelines.buckets
        pipe = pipelines[bucket]
        assert pipelines.replace(folder) == ()
        assert pipelines[bucket] is pipe
        shutil.copytree(eager_bundle, tmp_path / "again")
        shutil.rmtree(folder)
        (tmp_path / "again").rename(folder)
        assert len(pipelines.replace(folder)) == 1
        assert pipelines[bucket] is not pipe


@pytest.fixture
def scripted() -> Iterator[ScriptedPipelines]:
    with ScriptedPipelines(64, 128) as pipelines:
        pipelines.warm_up()
        yield pipelines


def test_a_bundle_that_does_not_open_leaves_all_as_it_was(
    scripted: ScriptedPipelines, tmp_path: Path
) -> None:
    before = scripted.buckets
    with pytest.raises(BundleNotFound, match="nowhere"):
        scripted.replace(tmp_path / "nowhere")
    with pytest.raises(IncompatibleOptions, match="one or more"):
        scripted.replace()
    assert scripted.buckets == before
    assert not any(script.closed for script in scripted.scripts.values())


def test_a_bundle_that_does_not_draw_leaves_all_as_it_was(scripted: ScriptedPipelines) -> None:
    fine, broken = ScriptedPipeline((32, 32)), ScriptedPipeline((64, 64))
    broken._a = broken._fail  # type: ignore[attr-defined]  # of the prompt's first word
    before = scripted.buckets
    with pytest.raises(EngineFailed):
        scripted.replace_with([fine.bundle, broken.bundle])
    assert scripted.buckets == before
    assert scripted[before[0]] is scripted.only
    assert (fine.closed, broken.closed, scripted.only.closed) == (1, 1, 0)


def test_two_replace_one_after_the_other(scripted: ScriptedPipelines) -> None:
    scripts = [ScriptedPipeline((64, 64)) for _ in range(4)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda script: scripted.replace_with([script.bundle]), scripts))
    (bucket,) = scripted.buckets
    in_service: Any = scripted[bucket]
    assert in_service in scripts
    for script in (*scripts, *scripted.scripts.values()):
        assert script.closed == (script is not in_service)


def test_what_comes_after_the_end_is_freed() -> None:
    late = ScriptedPipeline((64, 64))
    pipelines = ScriptedPipelines(64)
    pipelines.close()
    with pytest.raises(RuntimeError, match="closed"):
        pipelines.replace_with([late.bundle])
    assert late.closed == 1


def test_a_hold_that_does_not_load_is_let_go_of() -> None:
    def broken() -> None:
        raise EngineFailed("it stopped", expected="an engine", fix="build again")

    pipelines = ScriptedPipelines(64, load=broken)
    hold = pipelines.hold(pipelines.buckets[0])
    with pytest.raises(EngineFailed), hold:
        pytest.fail("it was entered")
    pipelines.load = lambda: None
    served: Any = pipelines[pipelines.buckets[0]]
    pipelines.replace_with([ScriptedPipeline((64, 64)).bundle])
    assert served.closed == 1  # at once: nobody holds it


def test_what_is_not_in_service_is_a_key_error(scripted: ScriptedPipelines) -> None:
    bucket = scripted.buckets[1]
    scripted.replace_with([scripted.only.bundle])
    for look in (scripted.hold, scripted.bundle, scripted.__getitem__):
        with pytest.raises(KeyError):
            look(bucket)
