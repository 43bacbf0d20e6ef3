"""What loading and warming up take: seconds, memory of the process and of the GPU.

Beside the pipelines. Memory is counted from outside, by what the whole process holds and by what is
left of the GPU, so that no library is left out; whatever else runs meanwhile is counted in.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from fresco_trt.files.peak_memory import resident_bytes
from fresco_trt.pipelines.device_memory import free_device_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds, and the bytes that are held since: resident ones of the process, and of the GPU.

    Bytes are 0 where memory that was free already was enough, and None where nobody counts them: on
    a system that does not, or without a GPU.
    """

    seconds: float
    host_bytes: int | None
    device_bytes: int | None

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            host_bytes=_sum(self.host_bytes, other.host_bytes),
            device_bytes=_sum(self.device_bytes, other.device_bytes),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What a stage, counted from 1, cost until it was warm.

    Its engines' `load`; weights that all stages share are counted with the stage that is loaded
    first. The seconds of its steps in the `first` request, None where a GPU launches whole stages.
    """

    stage: int
    load: Cost
    first: float | None


class Meter:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._host, self._device = resident_bytes(), free_device_bytes()
        self._began = perf_counter()

    def cost(self) -> Cost:
        """So far."""
        seconds = perf_counter() - self._began
        host, free = resident_bytes(), free_device_bytes()
        return Cost(
            seconds=seconds,
            host_bytes=_more(self._host, host),
            device_bytes=_more(free, self._device),
        )


def _more(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
