"""What the server counts, for Prometheus; names and units are those of vLLM and SGLang.

One registry a server: two of them in one process count apart.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fresco_trt.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fresco_trt.pipelines.result import Result
    from fresco_trt.pipelines.several import Bucket, WarmUp
    from fresco_trt.serve.drawing import Queue

SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends of the buckets of times."""

PICTURES = (1, 2, 4, 8, 16, 32, 64)
"""Upper ends of those of batch sizes."""

_GAUGES: dict[str, tuple[str, Callable[[Queue], Any]]] = {
    "num_requests_running": ("Requests that are being drawn.", attrgetter("running")),
    "num_requests_waiting": ("Requests that wait for their turn.", attrgetter("waiting")),
    "queue_depth": ("Pictures that waiting requests want.", attrgetter("depth")),
    "ready": ("1 while every bundle is loaded and warm.", lambda queue: queue.state == "ready"),
}
_COUNTERS = {
    "requests_success": ("Requests that got all their pictures.", ["model_name"]),
    "requests_refused": ("Requests that got an error, by its code.", ["reason"]),
    "images_generated": ("Pictures that were drawn.", ["model_name", "size"]),
    "bundle_reloads": (
        "Times that the bundles were read again, by outcome: success or failure.",
        ["outcome"],
    ),
    "engine_fallbacks": (
        "Pictures that a GPU drew step by step, where each stage should be one launch.",
        ["model_name"],
    ),
}
_HISTOGRAMS = {
    "e2e_request_latency_seconds": ("From arrival to the last picture.", ["model_name"]),
    "per_stage_req_latency_seconds": (
        "Of one picture: text, stage1, stage2 and so on, decode.",
        ["model_name", "stage"],
    ),
    "batch_size": ("Pictures of one run of the engines.", ["model_name"]),
}


class ServerMeters:
    """Counters, gauges and histograms of one server, all named `fresco_trt:...`."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"fresco_trt:{name}", about, labels, registry=registry)
            for name, (about, labels) in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(
                f"fresco_trt:{name}",
                about,
                labels,
                registry=registry,
                buckets=PICTURES if name == "batch_size" else SECONDS,
            )
            for name, (about, labels) in _HISTOGRAMS.items()
        }
        self._warm = Gauge(
            "fresco_trt:warm_up_seconds",
            "To load a bundle and to draw with it until it is warm.",
            ["model_name", "size"],
            registry=registry,
        )

        self._memory = Gauge(
            "fresco_trt:warm_up_memory_bytes",
            "Held since a bundle is loaded and warm, by the process and of the GPU.",
            ["model_name", "size", "memory"],
            registry=registry,
        )

    def watch(self, queue: Queue) -> None:
        """Report what a queue holds, whenever somebody asks."""
        for name, (about, value) in _GAUGES.items():
            gauge = Gauge(f"fresco_trt:{name}", about, registry=self._registry)
            gauge.set_function(partial(_number, value, queue))

    def warmed(self, cost: WarmUp) -> None:
        """A bundle is loaded and warm; its labels are there from now on, with nothing counted."""
        model, size = cost.bucket.model, format_size(cost.bucket.size)
        self._warm.labels(model, size).set(cost.total)
        for memory, held in (("host", cost.host_bytes), ("device", cost.device_bytes)):
            if held is not None:
                self._memory.labels(model, size, memory).set(held)
        self._counters["images_generated"].labels(model, size)
        for name in ("requests_success", "engine_fallbacks"):
            self._counters[name].labels(model)

    def reloaded(self, outcome: Sequence[WarmUp] | Exception) -> None:
        """The bundles were read again, or could not be."""
        failed = isinstance(outcome, Exception)
        self._counters["bundle_reloads"].labels("failure" if failed else "success").inc()
        if not isinstance(outcome, Exception):
            for cost in outcome:
                self.warmed(cost)

    def drawn(self, bucket: Bucket, result: Result, device: str) -> None:
        """A run of the engines is over. What a stage took, it took for each of its pictures."""
        count, size = len(result.images), format_size(bucket.size)
        self._counters["images_generated"].labels(bucket.model, size).inc(count)
        for pictures in result.runs:
            self._histograms["batch_size"].labels(bucket.model).observe(pictures)
        stages = self._histograms["per_stage_req_latency_seconds"]
        for stage, seconds in _parts(result):
            for _ in range(count):
                stages.labels(bucket.model, stage).observe(seconds)
        if device != "cpu" and result.steps:
            self._counters["engine_fallbacks"].labels(bucket.model).inc(count)

    def answered(self, model: str, seconds: float) -> None:
        """A request got all its pictures, so long after it came."""
        self._counters["requests_success"].labels(model).inc()
        self._histograms["e2e_request_latency_seconds"].labels(model).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request got an error."""
        self._counters["requests_refused"].labels(reason).inc()

    def value(self, name: str, **labels: str) -> float:
        """One of the numbers; 0 for one that was never counted."""
        return self._registry.get_sample_value(f"fresco_trt:{name}", labels) or 0.0

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


def _number(value: Callable[[Queue], Any], queue: Queue) -> float:
    return float(value(queue))


def _parts(result: Result) -> Iterator[tuple[str, float]]:
    """The seconds of a picture's parts. Where stages were replayed, no step has a time of its own,
    and their sum stands for them.
    """
    yield "text", result.seconds.text
    if not result.steps:
        yield "stages", result.seconds.denoise
    for stage, steps in groupby(result.steps, key=attrgetter("stage")):
        yield f"stage{stage}", sum(step.seconds for step in steps)
    yield "decode", result.seconds.decode
