"""What a request of the pipeline tells a sink: its stages, steps and parts, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.plan.stages import StagePlan
from fresco_trt.profile.spans import Recorder, place_of
from fresco_trt.run.trace import recording

PROMPT = "a red apple on a plain blue background"


@pytest.fixture(scope="module")
def pipe(eager_bundle: Path) -> Iterator[FrescoPipeline]:
    """Three stages at 64x64, eager."""
    with FrescoPipeline.from_bundle(eager_bundle) as opened:
        yield opened


def told(sink: Recorder) -> list[tuple[str, int | None]]:
    return [(each.name, each.number) for each in sink.spans]


def expected(plan: StagePlan) -> Iterator[tuple[str, int | None]]:
    yield from (("request", None), ("text", None))
    step = 0
    for number, stage in enumerate(plan.stages, start=1):
        yield "stage", number
        for action in stage.actions:
            step += 1
            yield from (("step", step), (action, None))
        if number < len(plan.stages):
            yield "transition", number
    yield "decode", None


def test_a_request_is_told_from_its_text_to_its_picture(pipe: FrescoPipeline) -> None:
    plain = pipe(PROMPT, seed=3)
    with recording(sink := Recorder()):
        profiled = pipe(PROMPT, seed=3)
    assert told(sink) == list(expected(pipe.plan))
    assert profiled.images[0].tobytes() == plain.images[0].tobytes()
    request = sink.spans[0]
    assert all(each.parent is request for each in sink.spans if each.name in ("text", "stage"))
    step = next(each for each in sink.spans if each.name == "full")
    assert str(place_of(step)) == "stage 1, step 1, full"


def test_a_request_that_fails_ends_its_spans(pipe: FrescoPipeline) -> None:
    def refuse(step: object) -> None:
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"), recording(sink := Recorder()):
        pipe(PROMPT, on_step=refuse)
    assert [each[0] for each in told(sink)] == ["request", "text", "stage", "step", "full"]
    assert all(each.end is not None for each in sink.spans)
