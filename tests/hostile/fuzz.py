"""Thousands of hostile bundles, each opened, loaded and drawn from in a process of its own.

    python -m tests.hostile.fuzz --attempts 3000 --out bench/results/fuzz.json

The first process imports everything once and forks for each attempt, so that a bundle which kills,
hangs or fills its process is one count and no more. Attempt n is the same change in every run; a
killed run goes on where it was. Two small honest bundles are built first.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.hostile.attempt import (
    DIED,
    EQUAL,
    ESCAPE,
    GOOD,
    HANG,
    MEMORY,
    OTHER,
    OUTCOMES,
    WRONG,
    Judged,
    Watch,
    attempt,
    compared,
)
from tests.hostile.changes import OUTSIDE, Change, changed

ROOT = Path(__file__).parents[2]
BACKENDS = ("eager", "onnxruntime")
SECONDS = 20
"""Of processor time, or twice as many on the clock: what takes longer hangs."""
PEAK = 2 * 2**30
"""Bytes of resident memory; what is asked for beyond half as much again is not given."""

_IN_CREATE_OPEN = 0x120


# --- honest bundles ---------------------------------------------------------------------------


def build_honest(folder: Path, backends: Sequence[str] = BACKENDS) -> None:
    """The smallest bundles there are: a block of each kind, random weights, 64x64, two stages."""
    from fresco_trt.lower.build import BuildRequest, run
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.making import plan_from_preset
    from fresco_trt.plan.presets import Preset

    preset = Preset(steps=(1, 2), switch=(0.7,))
    plan = plan_from_preset(model_facts("flux-tiny"), preset, size=(64, 64))
    for backend in backends:
        request = BuildRequest(
            plan=plan, backend=backend, out=folder / backend, weights="random", blocks=(1, 1)
        )
        run(request)


# --- one process ------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """A forked attempt and what its parent keeps of it."""

    number: int
    slot: int
    pid: int
    pipe: int
    began: float
    seed: int | None
    again: bool = False
    heard: bytes = b""


def _forked(number: int, slot: Slot, honest: Path, seed: int | None) -> Child:
    """Begin an attempt; ``seed`` None is the honest bundle's own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(number, slot.index, pid, reading, time.monotonic(), seed)
    code = 1
    try:
        os.close(reading)
        os.setsid()
        answer = _answer(slot, honest, seed)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)


def _answer(slot: Slot, honest: Path, seed: int | None) -> dict[str, Any]:
    """In the child: change, attempt, and what came of it as JSON."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    bundle = slot.place / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(honest, bundle, copy_function=os.link)
    # Told to the parent first: whatever dies, it is known of what.
    change = Change("honest", "", True) if seed is None else changed(bundle, seed)
    (slot.place / "change.json").write_text(json.dumps(asdict(change)), encoding="utf-8")
    os.chdir(bundle)
    import torch

    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # what is made up is made up anew
    watch = Watch(slot.place, slot.known)
    watch.install()
    _limit()
    slot.drain()
    judged = attempt(bundle)
    watch._busy = True
    judged.opened = watch.opened if seed is None else []
    if watch.escapes and seed is not None:
        judged = Judged(ESCAPE, judged.error, "; ".join(watch.escapes[:3])[:600])
    modules = sorted(sys.modules) if seed is None else []
    return {**asdict(judged), "modules": modules}


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + PEAK + PEAK // 2
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Slot:
    """A place for one bundle at a time, and the folder beside it that nothing may touch."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index, self.place = index, folder / f"slot{index}"
        self.known: frozenset[str] = frozenset()
        outside = self.place / OUTSIDE
        shutil.rmtree(self.place, ignore_errors=True)
        outside.mkdir(parents=True)
        for name in ("model.safetensors", "weights.bin", "vocab.json", "tokenizer.json"):
            (outside / name).write_bytes(bytes(1000))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK)
        self._libc.inotify_add_watch(self._events, os.fsencode(outside), _IN_CREATE_OPEN)

    def drain(self) -> bytes:
        """What was opened or made in the outside folder since the last time."""
        with suppress(BlockingIOError):
            return os.read(self._events, 65536)
        return b""

    def change(self) -> dict[str, Any]:
        """What the last attempt said that it did to its bundle."""
        try:
            found: dict[str, Any] = json.loads((self.place / "change.json").read_text("utf-8"))
        except (OSError, ValueError):
            return asdict(Change("unknown", "", False))
        return found


# --- the run ----------------------------------------------------------------------------------


class Fuzzer:
    """Attempts by number, some at a time, each kept in a file of lines when it is judged."""

    def __init__(self, work: Path, workers: int, log: Path) -> None:
        self.honest = work / "honest"
        self.slots = [Slot(index, work) for index in range(workers)]
        self.log = log
        self.done: dict[int, dict[str, Any]] = {}
        self._pictures: dict[str, str] = {}
        self._suspects: list[int] = []

    def prepare(self) -> None:
        """Draw from the honest bundles in children; import here whatever they imported."""
        opened: set[str] = set()
        for round_ in range(2):
            for backend in BACKENDS:
                child = _forked(-1, self.slots[0], self.honest / backend, None)
                told = self._finish(child)
                if told["outcome"] != EQUAL or not told["picture"]:
                    raise SystemExit(f"the honest {backend} bundle: {told}")
                self._pictures[backend] = told["picture"]
                opened |= {each.replace("/slot0/", "/slotN/") for each in told["opened"]}
                for name in told["modules"] if round_ == 0 else ():
                    with suppress(Exception):
                        importlib.import_module(name)
        for slot in self.slots:
            slot.known = frozenset(e.replace("/slotN/", f"/slot{slot.index}/") for e in opened)
        threads = len(list(Path("/proc/self/task").iterdir()))
        print(f"prepared: {self._pictures}, {threads} threads", file=sys.stderr)

    def run(self, numbers: list[int], until: float) -> None:
        """Every one of these attempts that ``until`` leaves time for."""
        waiting = numbers[::-1]
        free = list(self.slots)
        running: dict[int, Child] = {}
        while running or (waiting and time.monotonic() < until):
            while free and waiting and time.monotonic() < until:
                child = self._begin(waiting.pop(), free.pop())
                running[child.pipe] = child
            for child in self._ended(running):
                del running[child.pipe]
                told = self._finish(child)
                if self._asks_again(child, told):
                    follower = self._begin(child.number, self.slots[child.slot])
                    follower.again = True
                    running[follower.pipe] = follower
                    continue
                self._keep(child.number, told)
                free.append(self.slots[child.slot])

    def _begin(self, number: int, slot: Slot) -> Child:
        backend = BACKENDS[number % len(BACKENDS)]
        return _forked(number, slot, self.honest / backend, number)

    def _ended(self, running: dict[int, Child]) -> list[Child]:
        """Those whose pipe has closed, or who are out of time."""
        ready, _, _ = select.select(list(running), [], [], 0.5)
        ended = []
        for pipe in ready:
            child = running[pipe]
            text = os.read(pipe, 1 << 20)
            child.heard += text
            if not text:
                ended.append(child)
        late = time.monotonic() - 2 * SECONDS
        for child in running.values():
            if child.began < late and child not in ended:
                child.heard = b""
                os.killpg(child.pid, signal.SIGKILL)
                ended.append(child)
        return ended

    def _finish(self, child: Child) -> dict[str, Any]:
        """Wait for a child and judge: what it said, how it ended, what it took."""
        if child.number < 0:
            while text := os.read(child.pipe, 1 << 20):
                child.heard += text
        os.close(child.pipe)
        _, status, usage = os.wait4(child.pid, 0)
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        slot = self.slots[child.slot]
        told: dict[str, Any] = json.loads(child.heard) if child.heard else {"error": "", "text": ""}
        told |= {"cpu": round(cpu, 2), "seconds": round(time.monotonic() - child.began, 2)}
        told["peak_mb"] = peak // 2**20
        change = slot.change()
        told["bundle"] = BACKENDS[child.number % len(BACKENDS)]
        told |= {"change": change["kind"], "said": change["said"], "matters": change["matters"]}
        if child.number >= 0:
            told["outcome"] = self._outcome(told, status, slot.drain())
            told.pop("modules", None)
            told.pop("opened", None)
        return told

    def _outcome(self, told: dict[str, Any], status: int, touched: bytes) -> str:
        if touched:
            told["text"] = f"touched the folder outside: {touched[16:].rstrip(bytes(1))!r}"
            return ESCAPE
        if "outcome" not in told:
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            told["error"] = signal.Signals(signalled).name if signalled else f"exit {status}"
            return HANG if signalled in (signal.SIGXCPU, signal.SIGKILL) else DIED
        if told["cpu"] > SECONDS:
            return HANG
        if told["peak_mb"] * 2**20 > PEAK and told["outcome"] in GOOD:
            return MEMORY
        if told["outcome"] != EQUAL:
            return str(told["outcome"])
        return compared(told["picture"], self._pictures[told["bundle"]], told["matters"])

    def _asks_again(self, child: Child, told: dict[str, Any]) -> bool:
        """A picture that is another one is drawn a second time: from its values it is the same."""
        if told["outcome"] != OTHER:
            return False
        first = self.done.pop(-1 - child.number, None)
        if not child.again:
            self.done[-1 - child.number] = told
            return True
        if first is not None and first["picture"] != told["picture"]:
            told["outcome"], told["text"] = WRONG, "two runs of one seed drew two pictures"
        return False

    def _keep(self, number: int, told: dict[str, Any]) -> None:
        self.done[number] = told
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"attempt": number, **told}) + "\n")
        if len(self.done) % 100 == 0 or told["outcome"] not in GOOD:
            said = [told[key] for key in ("outcome", "bundle", "change", "said", "error")]
            said.append(told["text"][:200] if told["outcome"] not in GOOD else "")
            print(f"{len(self.done)} done; {number}:", *said, file=sys.stderr, flush=True)


# --- counts -----------------------------------------------------------------------------------


def counts(done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """How the attempts ended, by outcome, by error and by kind of change."""
    lines = [told for number, told in sorted(done.items()) if number >= 0]
    outcomes = Counter(told["outcome"] for told in lines)
    rows = [
        {"change": kind, "attempts": len(of), **Counter(told["outcome"] for told in of)}
        for kind in sorted({told["change"] for told in lines})
        for of in [[told for told in lines if told["change"] == kind]]
    ]
    errors = Counter(told["error"] for told in lines if told["outcome"] == "refused")
    return {
        "attempts": len(lines),
        "bundles": dict(Counter(told["bundle"] for told in lines)),
        "outcomes": {each: outcomes[each] for each in OUTCOMES},
        "refused": dict(errors.most_common()),
        "largest_peak_mb": max((told["peak_mb"] for told in lines), default=0),
        "longest_cpu_seconds": max((told["cpu"] for told in lines), default=0),
        "rows": rows,
    }


def main() -> int:
    """Run, go on, count; 1 if an attempt ended as none may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--attempts", type=int, default=3_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--work", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    if not (given.work / "honest").is_dir():
        code = "import sys; from pathlib import Path; from tests.hostile.fuzz import build_honest; "
        code += "build_honest(Path(sys.argv[1]))"
        partial = given.work / "honest.partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run([sys.executable, "-c", code, str(partial)], check=True, cwd=ROOT)
        partial.rename(given.work / "honest")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = given.work / "attempts.jsonl"
    fuzzer = Fuzzer(given.work, given.workers, log)
    if log.is_file():
        for line in log.read_text("utf-8").splitlines():
            with suppress(ValueError):
                told = json.loads(line)
                fuzzer.done[told.pop("attempt")] = told
    fuzzer.prepare()
    numbers = range(given.first, given.first + given.attempts)
    fuzzer.run([number for number in numbers if number not in fuzzer.done], until)
    found = counts(fuzzer.done)
    print(json.dumps(found, indent=1))
    if given.out is not None:
        from fresco_trt.bench.record import circumstances, store

        store({**circumstances(), **found}, given.out)
    return int(any(found["outcomes"][each] for each in OUTCOMES if each not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
