"""Laws of what is kept of a profiler's trace: time on the device is busy, or a gap."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu.profiling import MOST_KERNELS, reduced


def event(name: str, begin: float, duration: float, category: str = "kernel") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": duration}


EVENTS = [
    event("gemm", 100.0, 50.0),
    event("norm", 140.0, 20.0),  # beside the first on another stream
    event("gemm", 200.0, 100.0),
    event("Memcpy", 310.0, 10.0, "gpu_memcpy"),
    event("cudaGraphLaunch", 0.0, 5.0, "cuda_runtime"),
    event("cudaGraphLaunch", 10.0, 5.0, "cuda_runtime"),
    event("cuLaunchKernelEx", 20.0, 5.0, "cuda_driver"),
    event("cudaStreamSynchronize", 30.0, 290.0, "cuda_runtime"),
    {"ph": "M", "name": "process_name"},
]


def test_what_is_not_busy_between_the_first_and_the_last_is_a_gap() -> None:
    found = reduced(EVENTS)
    assert found["seconds"] == pytest.approx(220e-6)
    assert found["busy_seconds"] == pytest.approx(170e-6)
    assert found["gap_seconds"] == pytest.approx(50e-6)
    assert found["longest_gap_seconds"] == pytest.approx(40e-6)


def test_launches_are_counted_and_kernels_are_told_by_their_total_time() -> None:
    found = reduced(EVENTS)
    assert found["launches"] == {"cudaGraphLaunch": 2, "cuLaunchKernelEx": 1}
    assert [(each["name"], each["calls"]) for each in found["kernels"]] == [
        ("gemm", 2),
        ("norm", 1),
        ("Memcpy", 1),
    ]
    many = [event(f"kernel {number}", 10.0 * number, 1.0) for number in range(50)]
    assert len(reduced(many)["kernels"]) == MOST_KERNELS


def test_without_a_gpu_operators_stand_in_for_kernels_and_nothing_is_nothing() -> None:
    assert reduced([event("aten::mm", 0.0, 7.0, "cpu_op")])["busy_seconds"] == pytest.approx(7e-6)
    assert reduced([])["seconds"] == 0.0
