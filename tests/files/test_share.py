"""Laws of a process's share of the machine: the least of what it is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fresco_trt.files.share import free_memory, usable_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Limits of a container, none yet; the process may run on eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def put(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_cores_are_those_that_the_process_may_run_on(groups: Path) -> None:
    assert usable_cores(groups) == 8
    put(groups, cpu__max="max 100000")
    assert usable_cores(groups) == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000", 3), ("10000", 1), ("3200000", 8), ("-1", 8)]
)
def test_a_quota_of_either_version_bounds_the_cores(groups: Path, quota: str, cores: int) -> None:
    put(groups / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cores(groups) == cores
    put(groups, cpu__max=f"{quota} 100000")
    assert usable_cores(groups) == cores


def test_free_memory_is_the_least_of_the_machine_s_and_the_group_s(groups: Path) -> None:
    nowhere = groups / "nowhere"
    assert free_memory(groups, nowhere) is None
    put(groups, meminfo="MemTotal: 9000 kB\nMemAvailable: 4000 kB")
    assert free_memory(groups, groups / "meminfo") == 4_096_000
    put(groups, memory__max="max", memory__current="1000")
    assert free_memory(groups, groups / "meminfo") == 4_096_000
    put(groups, memory__max="5000", memory__current="1000")
    assert free_memory(groups, groups / "meminfo") == 4000
    usage = {"memory__limit_in_bytes": "3000", "memory__usage_in_bytes": "3500"}
    put(groups / "memory", **usage)
    assert free_memory(groups, groups / "meminfo") == 0


def test_this_machine_says_something() -> None:
    assert usable_cores() >= 1
    assert (free_memory() or 1) > 0
