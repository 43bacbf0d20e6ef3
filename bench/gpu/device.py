"""The device under measurement: its clock, its memory, its facts, and how fast it multiplies.

One interface over a GPU and a CPU: the benchmark that a GPU will run is the one that a CPU tries
out, and no other file of it asks which of the two it is on.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fresco_trt.files.peak_memory import peak_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Mark: TypeAlias = Any
"""A moment of a clock's own time; of use to that clock only."""

Product: TypeAlias = tuple[int, int, int]
"""Sides (m, k, n) of a matrix product [m,k] x [k,n]."""

_QUERY = (
    "name,driver_version,memory.total,power.limit,power.draw,temperature.gpu,clocks.sm,clocks.mem"
)


# --- time -------------------------------------------------------------------------------------


class Clock(Protocol):
    """Time as the device spends it, in the order in which work was given to it."""

    def mark(self) -> Mark:
        """Now, as soon as everything asked of the device so far is done; does not wait for it."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds from one mark to another; waits until the device has come to ``end``."""
        ...


class HostClock:
    """The clock of a device that is done when a call returns."""

    def mark(self) -> Mark:
        """As :class:`Clock`."""
        return perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        """As :class:`Clock`."""
        return float(end - start)


class CudaClock:
    """CUDA's own clock, by events on the current stream."""

    def mark(self) -> Mark:
        """As :class:`Clock`."""
        import torch

        untyped: Any = torch.cuda
        try:
            # External: inside a capture it becomes a part of the graph, marked at every replay.
            event = untyped.Event(enable_timing=True, external=True)
        except TypeError:  # an older torch: what captures it cannot be timed, and that is said
            event = untyped.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """As :class:`Clock`."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def clock_of(device: str) -> Clock:
    """The clock of "cuda" or "cpu"."""
    return CudaClock() if device == "cuda" else HostClock()


class Stopwatch:
    """Seconds inside named calls, as the device spends them; :meth:`taken` reads them.

    Calls that were captured are made by a replay and by no line of Python, with the marks that they
    had: a name that nobody adds to after a reading is read again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: dict[str, list[tuple[Mark, Mark]]] = {}
        self._read: set[str] = set()

    def mark(self) -> Mark:
        """Now, as :class:`Clock` has it."""
        return self._clock.mark()

    def add(self, name: str, start: Mark) -> None:
        """One call of ``name`` that began at ``start`` and ends now."""
        if name in self._read:
            self._read.remove(name)
            self._spans[name] = []
        self._spans.setdefault(name, []).append((start, self._clock.mark()))

    def taken(self) -> dict[str, list[float]]:
        """Seconds of every call of the last request, by name, in order; waits for the device."""
        seconds = {
            name: [self._clock.seconds(start, end) for start, end in spans]
            for name, spans in self._spans.items()
        }
        self._read = set(seconds)
        return seconds

    def reset(self) -> None:
        """Forget all calls."""
        self._spans.clear()
        self._read.clear()


# --- memory -----------------------------------------------------------------------------------


def memory_in_use(device: str) -> dict[str, int | None]:
    """Bytes in use: ``tensors`` those that torch's tensors take (null on a CPU, where nobody
    counts them), ``all`` everything on the card, or of this process on a CPU.
    """
    import torch

    gc.collect()
    if device == "cpu":
        return {"tensors": None, "all": _resident()}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return {"tensors": torch.cuda.memory_allocated(), "all": total - free}


def peaks_of(device: str, call: Callable[[], object]) -> dict[str, int | None]:
    """Most bytes in use at once while ``call`` ran: ``tensors`` those that torch's tensors took on
    the card (null on a CPU), ``host`` those of this process in the machine's own memory (null
    where the system does not count them anew).
    """
    import torch

    counted = _count_anew()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    call()
    tensors = None
    if device == "cuda":
        torch.cuda.synchronize()
        tensors = torch.cuda.max_memory_allocated()
    peak = peak_memory() if counted else None
    return {"tensors": tensors, "host": None if peak is None else peak.own}


def _count_anew() -> bool:
    """Have Linux forget this process's peak; whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident() -> int | None:
    """This process's resident set; None where there is no /proc."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    return int(status.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- facts ------------------------------------------------------------------------------------


def device_facts(device: str) -> dict[str, Any]:
    """What the device is and how it stands: its name, bytes of memory, and of a GPU also compute
    capability, multiprocessors, CUDA's version and what the driver's own tool says.
    """
    import torch

    if device == "cpu":
        return {"kind": device, "name": None, "bytes": None}
    found: Any = torch.cuda.get_device_properties(0)
    return {
        "kind": device,
        "name": found.name,
        "bytes": found.total_memory,
        "capability": f"sm{found.major}{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": driver_facts(),
    }


def driver_facts() -> Mapping[str, str] | None:
    """The driver's version, clocks, power and temperature, as its tool words them; None without
    the tool, or where it has no answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--id=0", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in answer.stdout.split(",")]
    names = _QUERY.split(",")
    if answer.returncode != 0 or len(values) != len(names):
        return None
    return dict(zip(names, values, strict=True))


# --- the roofline -----------------------------------------------------------------------------


class Matmul:
    """Matrix products of given sides on random values, whose rate is the roofline of all else.

    Operands are made once, on the device; random, because zeros are multiplied faster.
    """

    def __init__(self, device: str, dtype: torch.dtype, products: Sequence[Product]) -> None:
        import torch

        self._clock = clock_of(device)
        generator = torch.Generator(device).manual_seed(0)

        def drawn(rows: int, columns: int) -> Tensor:
            values = torch.randn(rows, columns, generator=generator, device=device)
            return values.to(dtype)

        self._operands = {(m, k, n): (drawn(m, k), drawn(k, n)) for m, k, n in products}
        self.rates(repeats=2)

    def rates(self, repeats: int = 50) -> dict[str, float]:
        """FLOP/s of each product, by its sides, over ``repeats`` products in a row."""
        return {
            "x".join(map(str, sides)): self._rate(sides, *pair, repeats)
            for sides, pair in self._operands.items()
        }

    def _rate(self, sides: Product, left: Tensor, right: Tensor, repeats: int) -> float:
        m, k, n = sides
        start = self._clock.mark()
        for _ in range(repeats):
            left @ right
        return 2.0 * m * k * n * repeats / self._clock.seconds(start, self._clock.mark())
