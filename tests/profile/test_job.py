"""What is drawn for a profile: by steps or by stages, and when a device is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fresco_trt.backends.eager import EagerBackend
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.loading import load_runners
from fresco_trt.profile import job
from fresco_trt.profile.options import Options
from tests.run.recording_device import RecordingDevice


@pytest.fixture
def replaying(eager_bundle: Path) -> Iterator[FrescoPipeline]:
    """Three stages of a turbo plan over engines of a scripted GPU."""
    with FrescoPipeline.from_bundle(eager_bundle) as pipe, ExitStack() as scope:
        backend = EagerBackend(device=RecordingDevice())
        yield pipe.with_runners(load_runners(pipe.bundle, backend, scope))


def test_by_stages_each_is_one_launch_and_has_no_steps(
    replaying: FrescoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "opened_pipeline", lambda options: nullcontext(replaying))
    monkeypatch.setattr(job, "WARM_UP", 2)
    options = Options(engines=Path("engines"), requests=1, by="stages")
    profile = job.run(options, lambda phase, fraction: None)
    rows = [(row["stage"], row["step"], row["part"]) for row in profile.document["rows"]]
    assert rows == [
        (None, None, "text"),
        *((stage, None, part) for stage in (1, 2, 3) for part in ("replay", "host")),
        (None, None, "decode"),
        (None, None, "host"),
    ]
    assert profile.document["seconds"]["engines"] > 0
    assert [bar.label for bar in profile.tracks[0].bars if bar.name == "replay"] == ["replay"] * 3


@pytest.mark.parametrize("capturing", [False, True])
def test_a_gpu_is_waited_for_unless_it_captures(
    monkeypatch: pytest.MonkeyPatch, capturing: bool
) -> None:
    told: list[str] = []
    facts = SimpleNamespace(device="cuda")
    library = SimpleNamespace(describe=lambda: facts)
    monkeypatch.setattr("fresco_trt.backends.backend", lambda name: library)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    manifest = SimpleNamespace(backend=SimpleNamespace(name="inductor"))
    pipe: Any = SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))
    wait = job._device_wait(pipe)
    assert wait is not None
    wait()
    assert told == ([] if capturing else ["wait"])
    facts.device = "cpu"
    assert job._device_wait(pipe) is None
