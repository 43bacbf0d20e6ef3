"""What a server does under more load than it can carry, when it is killed, and when it is ended.

    python -m bench.stress                 everything, about five minutes
    python -m bench.stress --quick         a dry run of one, into bench-out/

`fresco-trt serve` draws with a small bundle of the demo model. What clients get is compared with
the pictures that the pipeline draws one after the other, pixel for pixel. Ends with 1 if a law of
`bench.stress_laws` is broken.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fresco_trt
from bench.clients import RIGHT, Client, Outcome, Truth
from bench.server_process import Served, command_of, started
from bench.stress_laws import counted, drain_laws, kill_laws, load_laws
from fresco_trt.bench.record import circumstances, store

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL, SIZE, PRESET = "flux-tiny", "64x64", "turbo"
PROMPTS = ("a red apple on a plain blue background", "a bell on a plain green background")
SEEDS = 12
QUEUE, CLIENTS, OVERLOAD = 8, 6, 2.0
DRAIN = 60.0
"""Seconds that accepted requests get after a SIGTERM."""
TOLD = 5.0
"""Seconds after a kill within which every client has to know, and to become idle."""
GROWTH = 0.05
"""Share that the server's memory may grow by between its warm-up and the end of the load."""
NOTICE = 1.0
"""Seconds after a SIGTERM in which a new request may still be taken."""
MIXED = ("plain", "stream", "several", "plain", "leaver", "stream", "wrong")
DRAWN = ("plain", "stream", "several", "stream")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is asked for, in seconds where it says so."""

    warm_seconds: float
    mixed_seconds: float
    overload_seconds: float
    kills: int
    drains: int


WHOLE = Effort(warm_seconds=15, mixed_seconds=40, overload_seconds=60, kills=4, drains=2)
QUICK = Effort(warm_seconds=2, mixed_seconds=4, overload_seconds=4, kills=1, drains=1)


@dataclass(kw_only=True, eq=False)
class Stressed:
    """A server that is started again and again at one address, with a folder for temporary files
    of its own, and what its clients have to get.
    """

    command: Callable[[int], Sequence[str]]
    """Of a port; 0 is any that is free."""
    truth: Truth
    temporary: Path
    server: Served = field(init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The scope of the servers; the last one is killed if it has not ended."""
        self.server = started(self.command(0), TMPDIR=str(self.temporary))
        try:
            yield
        finally:
            if self.server.process is not None:
                self.server.process.kill()
                self.server.process.communicate()

    def start_again(self) -> None:
        """At the same address, after the last one has ended."""
        port = int(self.server.address.rpartition(":")[2])
        self.server = started(self.command(port), TMPDIR=str(self.temporary))

    def client(self, pause: float = 0.5) -> Client:
        """One of its clients."""
        return Client(address=self.server.address, truth=self.truth, pause=pause)

    def inside(self) -> int:
        """Requests that wait or are drawn."""
        names = ("num_requests_running", "num_requests_waiting")
        return int(sum(self.server.count(f"fresco_trt:{name}") for name in names))

    def left(self) -> list[str]:
        """What lies in the folder for temporary files."""
        return sorted(str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*"))


# --- load -------------------------------------------------------------------------------------


def load(stressed: Stressed, effort: Effort) -> dict[str, Any]:
    """Clients of all kinds, then beside some of them twice as many requests as it can draw."""
    client = stressed.client()
    alone = statistics.median(
        each.ended - each.began for each in [client.ask("plain", number) for number in range(5)]
    )
    client = stressed.client(pause=2 * alone)
    with crowd(client, MIXED, CLIENTS):
        time.sleep(effort.warm_seconds)
    warm = _idle(stressed)
    with crowd(client, MIXED, CLIENTS) as mixed:
        time.sleep(effort.mixed_seconds)
    with crowd(client, ("leaver", "wrong"), 2, gap=0.1) as beside:
        rushed = _rush(client, alone / OVERLOAD, effort.overload_seconds)
    end = _idle(stressed)
    row = {
        "row": "load",
        "seconds": effort.mixed_seconds + effort.overload_seconds,
        "alone_seconds": round(alone, 4),
        "overload_rate": round(OVERLOAD / alone, 4),
        "mixed": counted(mixed),
        "overload": counted([*rushed, *beside]),
        "resident_bytes": {"warm": warm[0], "end": end[0]},
        "memory_growth": round(end[0] / warm[0] - 1, 4),
        "limit": GROWTH,
        "descriptors": {"warm": warm[1], "end": end[1]},
    }
    return {**row, "broken": list(load_laws(row))}


def _rush(client: Client, gap: float, seconds: float) -> list[Outcome]:
    """Each request by a client of its own that does not ask again, however the others fare; so many
    at least that the queue is full.
    """
    futures: list[Future[Outcome]] = []
    began, least = time.monotonic(), 5 * QUEUE
    with ThreadPoolExecutor(8 * QUEUE) as pool:
        while (now := time.monotonic() - began) < seconds or len(futures) < least:
            if now >= len(futures) * gap:
                kind = ("plain", "stream")[len(futures) % 2]
                futures.append(pool.submit(client.ask, kind, len(futures)))
            time.sleep(0.002)
    return [future.result() for future in futures]


def _idle(stressed: Stressed) -> tuple[int, int]:
    """Bytes and descriptors that the server holds when nobody wants anything of it."""
    least, end = stressed.server.descriptors(), time.monotonic() + TOLD
    while time.monotonic() < end:
        busy = stressed.inside()
        least = min(least, stressed.server.descriptors())
        if not busy and time.monotonic() > end - TOLD + 0.5:
            return stressed.server.resident(), least
        time.sleep(0.05)
    raise RuntimeError(f"{stressed.inside()} requests are in the server, and nobody waits for them")


# --- kill -------------------------------------------------------------------------------------


def kill(stressed: Stressed, rounds: int) -> dict[str, Any]:
    """SIGKILL under load, in turns within a stream and at any moment, and a new server at the same
    address.
    """
    found: list[Outcome] = []
    again: list[Outcome] = []
    told, starts = [], []
    left: list[str] = []
    dice = random.Random(0)
    for number in range(rounds):
        client = stressed.client()
        with crowd(client, DRAWN, CLIENTS) as ended:
            _until(lambda: stressed.inside() >= CLIENTS // 2)
            if number % 2:
                time.sleep(dice.uniform(0, 0.5))
            else:
                client.streaming.clear()
                client.streaming.wait(2 * DRAIN)
            process = stressed.server.process
            if process is None:
                raise RuntimeError("a server that cannot be killed")
            process.kill()
            killed = time.monotonic()
            process.communicate()
            _until(partial(_all_told, ended, killed))
        in_flight = [each for each in ended if each.began <= killed < each.ended]
        found += in_flight
        told += [each.ended - killed for each in in_flight]
        stressed.start_again()
        starts.append(stressed.server.cold)
        left += stressed.left()
        again += [stressed.client().ask("stream", number) for number in range(CLIENTS)]
    row = {
        "row": "kill",
        "rounds": rounds,
        "in_flight": counted(found),
        "told_seconds": round(max(told, default=0.0), 4),
        "limit": TOLD,
        "restart_seconds": round(statistics.median(starts), 4),
        "after": counted(again),
        "left_in_temporary_folder": left,
    }
    return {**row, "broken": list(kill_laws(row))}


def _all_told(ended: Sequence[Outcome], killed: float) -> bool:
    """Every client has been told; those that ask again are told that nobody is there."""
    return sum(each.ended > killed for each in list(ended)) >= 2 * CLIENTS


# --- drain ------------------------------------------------------------------------------------


def drain(stressed: Stressed, rounds: int) -> dict[str, Any]:
    """SIGTERM while requests are drawn and wait and new ones come; started again between rounds."""
    accepted: list[Outcome] = []
    new: list[Outcome] = []
    seconds, codes, after = [], [], 0
    for number in range(rounds):
        if number:
            stressed.start_again()
        process = stressed.server.process
        if process is None:
            raise RuntimeError("a server that cannot be ended")
        client = stressed.client()
        before = stressed.server.count("fresco_trt:requests_success_total")
        with ThreadPoolExecutor(QUEUE) as pool:
            asked = [pool.submit(client.ask, DRAWN[i % len(DRAWN)], i) for i in range(QUEUE)]
            _until(partial(_all_taken, stressed, before))
            signalled = time.monotonic()
            process.terminate()
            with crowd(client, ("plain", "stream"), 2, gap=0.02) as newcomers:
                codes.append(process.wait(2 * DRAIN))
                seconds.append(time.monotonic() - signalled)
                time.sleep(max(2 * NOTICE - seconds[-1], 0))
            wait(asked)
        ends = [future.result() for future in asked]
        after += sum(each.ended > signalled for each in ends)
        accepted += ends
        new += [_timed(each, signalled) for each in newcomers]
    row = {
        "row": "drain",
        "rounds": rounds,
        "accepted": counted(accepted),
        "answered_after_the_signal": after,
        "newcomers": counted(new),
        "seconds": round(max(seconds), 4),
        "limit": DRAIN,
        "exit_codes": codes,
        "left_in_temporary_folder": stressed.left(),
    }
    return {**row, "broken": list(drain_laws(row))}


def _all_taken(stressed: Stressed, before: float) -> bool:
    """The server has all requests in it, or has answered them since."""
    answered = stressed.server.count("fresco_trt:requests_success_total") - before
    return stressed.inside() + answered >= QUEUE


def _timed(outcome: Outcome, signalled: float) -> Outcome:
    """Under the name of its time: at once after the signal, or when it was noticed for sure."""
    kind = "at once" if outcome.began < signalled + NOTICE else "later"
    return Outcome(kind=kind, end=outcome.end, began=outcome.began, ended=outcome.ended)


# --- what they share --------------------------------------------------------------------------


@contextmanager
def crowd(
    client: Client, kinds: Sequence[str], count: int, gap: float = 0.0
) -> Iterator[list[Outcome]]:
    """Clients that ask as soon as they are answered, or `gap` seconds later; what they ended with.

    At the end of the scope each of them has ended what it was at.
    """
    ended: list[Outcome] = []
    stop = threading.Event()

    def one(first: int) -> None:
        number = first
        while not stop.is_set():
            ended.append(client.ask(kinds[number % len(kinds)], number))
            number += count
            # One that is refused at once does not ask in a circle without a pause.
            stop.wait(gap if ended[-1].end == RIGHT else max(gap, 0.02))

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(one, number) for number in range(count)]
        try:
            yield ended
        finally:
            stop.set()
    for future in running:
        future.result()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 2 * DRAIN
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError("the server is not under load")
        time.sleep(0.005)


# --- together ---------------------------------------------------------------------------------


def measure(command: Callable[[int], Sequence[str]], truth: Truth, effort: Effort) -> list[Any]:
    """The rows of all parts, one after the other, each with the laws that it broke."""
    with tempfile.TemporaryDirectory() as folder:
        stressed = Stressed(command=command, truth=truth, temporary=Path(folder))
        with stressed.running():
            rows = [_said(load(stressed, effort))]
            rows.append(_said(kill(stressed, effort.kills)))
            rows.append(_said(drain(stressed, effort.drains)))
    return rows


def _said(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr)
    return row


def _truth(bundle: Path) -> Truth:
    """What the pipeline draws in this process."""
    from fresco_trt.pipelines.image import FrescoPipeline

    with FrescoPipeline.from_bundle(bundle) as pipe:

        def draw(prompt: str, seed: int) -> list[Image]:
            shown: list[Image] = []
            result = pipe(prompt, seed=seed, on_stage=lambda stage, image: shown.append(image))
            return [*shown, result.images[0]]

        return Truth.of(draw, PROMPTS, SEEDS)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A dry run of a minute.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bench-out"),
    out: Annotated[
        Path | None, typer.Option(help="File.", show_default="bench/results/stress.json")
    ] = None,
) -> None:
    """Load a server, kill it and end it; store what its clients got. Exit code 1: a broken law."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = work / f"stress-{SIZE}"
    bundle = fresco_trt.build(MODEL, stages=3, size=SIZE, preset=PRESET, out=folder)
    options = ("--queue", str(QUEUE), "--drain", str(DRAIN))
    rows = measure(
        lambda port: command_of(bundle, "--port", str(port), *options),
        _truth(bundle),
        QUICK if quick else WHOLE,
    )
    setting = {"model": MODEL, "size": SIZE, "preset": PRESET, "queue": QUEUE, "clients": CLIENTS}
    path = out or (work / "stress-quick.json" if quick else Path("bench/results/stress.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    store({**circumstances(), **setting, "rows": rows}, path)
    print(f"stored {path}")
    broken = [f"{row['row']}: {law}" for row in rows for law in row["broken"]]
    if broken:
        print("broken laws:", *broken, sep="\n  ", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
