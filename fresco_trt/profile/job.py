"""Draws warmed requests with a bundle's engines, and records where their time goes.

What ``fresco-trt profile --engines`` runs. A request is drawn step by step, so that each step has a
time; or by stages, as a GPU replays them, where a stage is one launch without steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.profile.files import Profile
from fresco_trt.profile.options import STAGES, STEPS, WARM_UP
from fresco_trt.profile.spans import Recorder
from fresco_trt.profile.summary import SCHEMA, host_summary
from fresco_trt.profile.tracks import median_request, track_of
from fresco_trt.run.trace import recording

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fresco_trt.backends.base import Runner
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.profile.options import Options

    Report = Callable[[str, float], None]


def run(options: Options, report: Report) -> Profile:
    """Load, warm up, draw and record. Raises as the pipeline, and IncompatibleOptions for stages
    where nothing replays them.
    """
    report("loading engines", 0.0)
    with opened_pipeline(options) as pipe:
        report("loading engines", 1.0)
        warm_up(pipe, options, report)
        wait = _device_wait(pipe)
        sink = Recorder(wait=wait)
        with recording(sink):
            draw(pipe, options, report)
        document = {
            "schema": SCHEMA,
            "source": "spans",
            **described(pipe, options),
            "waits_for_device": wait is not None,
            **host_summary(sink.spans),
            "layers": layers_of(pipe.runners),
        }
        return Profile(document=document, tracks=[track_of(median_request(sink.spans))])


def opened_pipeline(options: Options) -> FrescoPipeline:
    """The bundle's pipeline. Raises as :meth:`FrescoPipeline.from_bundle`."""
    from fresco_trt.pipelines.checks import check_seed
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.pipelines.loading import opened, trust_of

    check_seed(options.seed)
    trust = trust_of(options.trust_native_code, options.verify_key)
    return FrescoPipeline.over(opened(options.engines, trust), trust)


def warm_up(pipe: FrescoPipeline, options: Options, report: Report) -> None:
    """Requests that nobody records. Raises IncompatibleOptions for stages where nothing replays
    them.
    """
    for index in range(WARM_UP):
        result = _one(pipe, options)
        report("warming up", (index + 1) / WARM_UP)
    if options.by == STAGES and result.steps:
        raise IncompatibleOptions(
            f"--by {STAGES} with engines of {pipe.bundle.manifest.backend.name}",
            expected="engines that a GPU replays as CUDA graphs",
            fix=f"pass --by {STEPS}",
        )


def draw(pipe: FrescoPipeline, options: Options, report: Report) -> None:
    """The requests to be recorded."""
    for index in range(options.requests):
        _one(pipe, options)
        report("drawing", (index + 1) / options.requests)


def described(pipe: FrescoPipeline, options: Options) -> dict[str, Any]:
    """What was drawn, with what and on which machine."""
    from fresco_trt.bench.record import circumstances

    manifest = pipe.bundle.manifest
    return {
        "model": manifest.model.name,
        "backend": manifest.backend.name,
        "size": list(pipe.plan.size),
        "stages": len(pipe.plan.stages),
        "nfe": pipe.plan.nfe,
        "prompt": options.prompt,
        "seed": options.seed,
        "drawn_by": options.by,
        "machine": circumstances()["machine"],
    }


def layers_of(runners: Mapping[str, Runner]) -> list[dict[str, Any]]:
    """What each engine is made of, of those whose library tells it (TensorRT's inspector): its
    ``layers``, their ``precisions``, and those of its matrix ``products``.
    """
    found = []
    for name, runner in runners.items():
        session = getattr(runner, "session", None)
        told = getattr(session, "layers", None)
        report = None if told is None else told()
        if report is not None:
            found.append({"engine": name, **report})
    return found


def _one(pipe: FrescoPipeline, options: Options) -> Any:
    from fresco_trt.pipelines.edit import example_source

    source = example_source(pipe.bundle)
    return pipe(options.prompt, image=source, seed=options.seed, record_steps=options.by == STEPS)


def _device_wait(pipe: FrescoPipeline) -> Callable[[], None] | None:
    """What waits for the GPU that the engines run on; None for engines of the CPU."""
    from fresco_trt.backends import backend

    if backend(pipe.bundle.manifest.backend.name).describe().device != "cuda":
        return None
    import torch

    def wait() -> None:
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    return wait
