"""What the server costs, and what it does under more load than it can carry.

    python -m bench.serving                 everything, about ten minutes, alone on a machine
    python -m bench.serving --quick         a dry run of a minute, into bench-out/

A server process draws with the demo model's bundle. Beside it: a plain loop over FrescoPipeline,
turn by turn with requests to the server, and diffusers' own pipeline behind the same server.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

import fresco_trt
from bench.lean import link_needed
from bench.server_process import PATIENCE, PROMPT, Answer, Served, command_of, served
from fresco_trt.bench.quality import median_interval
from fresco_trt.bench.record import circumstances, median_and_range, store
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.serve.limits import Limits
from fresco_trt.serve.pictures import encoded
from fresco_trt.serve.server import Server, listen, url_of

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle
    from fresco_trt.pipelines.result import Result

MODEL, CLIENTS, OVERLOAD, QUEUE = "flux-tiny", 8, 2.0, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured."""

    pairs: int
    """Requests, each beside a draw of the plain loop."""
    streams: int
    each: int
    """Requests of each of the clients that ask at once."""
    overload_seconds: float
    starts: int
    """Cold starts."""
    size: str | None
    peer_requests: int


WHOLE = Effort(
    pairs=20, streams=6, each=5, overload_seconds=60, starts=3, size=None, peer_requests=3
)
QUICK = Effort(
    pairs=2, streams=1, each=1, overload_seconds=4, starts=1, size="64x64", peer_requests=1
)


def _command(bundle: Path) -> list[str]:
    return command_of(bundle, "--port", "0", "--queue", str(QUEUE))


# --- what is measured -------------------------------------------------------------------------


def overhead(server: Served, pipe: FrescoPipeline, pairs: int) -> dict[str, Any]:
    """A request beside a turn of a plain loop that makes the same PNG, who begins taking turns.

    Two pictures never take the same time on a machine that does other things. So what a request
    takes beside its own drawing is set against what the loop takes beside its own; and whether a
    server's drawing takes longer than the loop's is a figure of its own, with the noise.
    """

    def loop(seed: int) -> tuple[float, float]:
        began = time.perf_counter()
        result = pipe(PROMPT, seed=seed)
        encoded(result.images[0], "png", 100)
        return time.perf_counter() - began, result.seconds.total

    def request(seed: int) -> tuple[float, float]:
        answer = server.ask(seed=seed)
        _require(answer.status == 200, f"a request got {answer.status}")
        return answer.seconds, answer.drawing

    for warm in (loop, request):
        warm(0)
    loops: list[tuple[float, float]] = []
    requests: list[tuple[float, float]] = []
    for seed in range(pairs):
        for each in (loop, request) if seed % 2 else (request, loop):
            (loops if each is loop else requests).append(each(seed))
    return {"row": "overhead", **overhead_of(loops, requests), "limit": 0.03}


def overhead_of(
    loops: Sequence[tuple[float, float]], requests: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Of pairs of a turn of the loop and a request, each the seconds of all and of the drawing."""
    pairs = list(zip(loops, requests, strict=True))
    beside = [(whole - drawing) - (w - d) for (w, d), (whole, drawing) in pairs]
    return {
        "loop_seconds": median_and_range([whole for whole, _ in loops]),
        "request_seconds": median_and_range([whole for whole, _ in requests]),
        "overhead_seconds": _interval(beside),
        "overhead": _interval([b / d for b, (_, d) in zip(beside, requests, strict=True)]),
        "drawing_ratio": _interval([d / of for (_, of), (_, d) in pairs]),
        "whole_ratio": _interval([whole / of for (of, _), (whole, _) in pairs]),
    }


def _interval(values: Sequence[float]) -> dict[str, float]:
    """The median and its 95% interval."""
    names = ("median", "low", "high")
    return {
        name: round(value, 5) for name, value in zip(names, median_interval(values), strict=True)
    }


def first_partial(server: Served, count: int) -> dict[str, Any]:
    """The first partial picture of a stream, as a share of the whole request."""
    shares = []
    for seed in range(count):
        answer = server.ask(seed=seed, stream=True, partial_images=2)
        _require(answer.status == 200, f"a stream got {answer.status}")
        partials = answer.body.count(b"event: image_generation.partial_image")
        _require(partials == 2, "no two partials")
        shares.append(answer.early / answer.seconds)
    return {"row": "first partial", "share": median_and_range(shares), "limit": 0.2}


def concurrency(server: Served, each: int, alone: float) -> dict[str, Any]:
    """Clients that ask at once, each again as soon as it is answered. A request's place is the one
    that the server gave it: who sent first is not who was read first.
    """

    def client(number: int) -> list[Answer]:
        return [server.ask(seed=number * each + turn) for turn in range(each)]

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]
    seconds = time.perf_counter() - began
    others = {answer.status for answer in found} - {200}
    _require(not others, f"requests got {others}")
    return {
        "row": f"{CLIENTS} clients",
        "requests": len(found),
        "images_per_second": round(len(found) / seconds, 4),
        "throughput_ratio": round(len(found) / seconds * alone, 4),
        "why": "engines draw one picture at a time, with all cores; encoding is done beside it",
        **by_place([(answer.seconds, answer.place) for answer in found]),
        "limit": 1.5,
    }


def by_place(found: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Of the seconds of requests over their place in the queue, the median and the 99th centile."""
    shares = sorted(seconds / place for seconds, place in found)
    p50, p99 = (shares[min(int(q * len(shares)), len(shares) - 1)] for q in (0.5, 0.99))
    return {
        "places": dict(sorted(Counter(place for _, place in found).items())),
        "p50_by_place": round(p50, 4),
        "p99_by_place": round(p99, 4),
        "p99_ratio": round(p99 / p50, 4),
    }


def overload(server: Served, seconds: float, alone: float) -> dict[str, Any]:
    """Requests at twice the rate that it can answer, each by a client of its own that does not ask
    again, and the memory of the server meanwhile.
    """
    statuses: Counter[int] = Counter()
    resident = [server.resident()]
    gap, began = alone / OVERLOAD, time.perf_counter()
    futures = []
    with ThreadPoolExecutor(QUEUE + 8) as pool:
        sent = 0
        while (now := time.perf_counter() - began) < seconds:
            if now >= sent * gap:
                futures.append(pool.submit(server.ask, seed=sent))
                sent += 1
                resident.append(server.resident())
            time.sleep(0.002)
    for future in futures:
        statuses[future.result().status] += 1
    others = {status: n for status, n in statuses.items() if status not in (200, 429)}
    half = len(resident) // 2
    return {
        "row": "overload",
        "seconds": seconds,
        "requests": sent,
        "rate": round(1 / gap, 4),
        "answered": statuses[200],
        "refused": statuses[429],
        "other": others,
        "resident_bytes": {
            "before": resident[0],
            "halfway": max(resident[: half + 1]),
            "end": max(resident[half:]),
        },
        "memory_growth": round(max(resident[half:]) / max(resident[: half + 1]) - 1, 4),
    }


def cold_starts(bundle: Path, count: int) -> Iterator[dict[str, Any]]:
    """From a process's start until it is ready; files are in the page cache, the process is new.
    In turns with what is installed here, and with nothing but what serving needs.
    """
    everything: list[float] = []
    needed: list[float] = []
    command = _command(bundle)
    with tempfile.TemporaryDirectory() as folder:
        packages = link_needed("serve", Path(folder))
        path = os.pathsep.join([str(Path(__file__).parents[1]), str(packages)])
        for _ in range(count):
            with served(command) as server:
                everything.append(server.cold)
            with served([command[0], "-S", *command[1:]], PYTHONPATH=path) as server:
                needed.append(server.cold)
    for name, seconds in (("cold start", needed), ("cold start, developing", everything)):
        yield {"row": name, "seconds": median_and_range(seconds), "limit": 6.0}


# --- the peer ---------------------------------------------------------------------------------


class Peer(FrescoPipelines):
    """diffusers' pipeline in the place of ours, behind the same server."""

    def pipeline_of(self, bundle: Bundle) -> Any:
        return _PlainDrawer(bundle)


class _PlainDrawer:
    device = "cpu"
    runners: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, bundle: Bundle) -> None:
        from fresco_trt.bench.plain import load_pipeline

        self.bundle, self.plan = bundle, bundle.plan
        self._pipe, self._size = _kept(load_pipeline), bundle.plan.size

    def prompt_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def __call__(self, prompt: str, *, seed: int = 0, **others: Any) -> Result:
        import torch

        from fresco_trt.models.registry import model_facts
        from fresco_trt.pipelines.result import Result, Seconds

        facts, began = model_facts(MODEL), time.perf_counter()
        image = self._pipe(
            prompt,
            width=self._size[0],
            height=self._size[1],
            num_inference_steps=facts.default_steps,
            max_sequence_length=facts.text_tokens,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        seconds = time.perf_counter() - began
        spent = Seconds(total=seconds, text=0.0, denoise=seconds, engines=0.0, decode=0.0)
        nfe = facts.default_steps
        return Result(images=[image], seeds=(seed,), nfe=nfe, seconds=spent, steps=())

    def close(self) -> None:
        pass


_LOADED: list[Any] = []


def _kept(load: Callable[[], Any]) -> Any:
    if not _LOADED:
        _LOADED.append(load())
    return _LOADED[0]


def peer(bundle: Path, ours: Served, count: int) -> dict[str, Any]:
    """Requests to diffusers' pipeline and to ours, in turns."""
    from fresco_trt.bundle import open_bundle

    warm = threading.Event()
    with listen("127.0.0.1", 0) as listening:
        server = Server(
            Peer([open_bundle(bundle)]), listening, Limits(), warm=lambda costs: warm.set()
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            _require(warm.wait(PATIENCE), "diffusers' pipeline did not get ready")
            theirs = Served(url=url_of(listening))
            pairs = [
                (theirs.ask(seed=seed).seconds, ours.ask(seed=seed).seconds)
                for seed in range(count)
            ]
        finally:
            server.stop()
            thread.join()
    return {
        "row": "diffusers behind the same server",
        "request_seconds": median_and_range([a for a, _ in pairs]),
        "ours_faster": median_and_range([a / b for a, b in pairs]),
    }


# --- together ---------------------------------------------------------------------------------


def measure(effort: Effort, work: Path) -> dict[str, Any]:
    """All rows, from one bundle of the demo model."""
    size = effort.size
    bundle = fresco_trt.build(MODEL, stages=3, size=size, out=work / f"serving-{size or 'demo'}")
    rows = [_said(row) for row in cold_starts(bundle, effort.starts)]
    with served(_command(bundle)) as server:
        with FrescoPipeline.from_bundle(bundle) as pipe:
            rows.append(_said(overhead(server, pipe, effort.pairs)))
            plan = pipe.plan
        alone = rows[-1]["request_seconds"]["median"]
        rows.append(_said(first_partial(server, effort.streams)))
        rows.append(_said(concurrency(server, effort.each, alone)))
        rows.append(_said(overload(server, effort.overload_seconds, alone)))
        answer = server.ask(seed=1)
        _require(answer.status == 200, "the server did not outlive its overload")
        b64decode(json.loads(answer.body)["data"][0]["b64_json"], validate=True)
        rows.append(_said(peer(bundle, server, effort.peer_requests)))
    setting = {"model": MODEL, "size": list(plan.size), "preset": plan.preset, "queue": QUEUE}
    return {**circumstances(), **setting, "rows": rows}


def _said(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr)
    return row


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise RuntimeError(why)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A dry run of a minute.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bench-out"),
    out: Annotated[
        Path | None, typer.Option(help="File.", show_default="bench/results/serving.json")
    ] = None,
) -> None:
    """Measure the server and store the figures."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    document = measure(QUICK if quick else WHOLE, work)
    path = out or (work / "serving-quick.json" if quick else Path("bench/results/serving.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    store(document, path)
    print(f"stored {path}")


if __name__ == "__main__":
    typer.run(main)
