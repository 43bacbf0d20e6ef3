"""Peak memory is the system's own count, in bytes, and what was given back stays in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fresco_trt.files.peak_memory import PeakMemory, peak_memory

pytest.importorskip("resource")


def test_what_was_held_once_stays_the_peak() -> None:
    before = peak_memory()
    assert before is not None
    held = bytearray(before.own)  # as much again: more than anything freed meanwhile
    held[::1024] = b"x" * len(held[::1024])  # pages count once they are touched
    during = peak_memory()
    del held
    after = peak_memory()
    assert during is not None
    assert after is not None
    assert during.own > 1.5 * before.own
    assert after.own > 0.99 * during.own  # the kernel adds up its counts for each core late


def test_programs_that_ended_are_counted_apart() -> None:
    size = 64 * 2**20
    subprocess.run([sys.executable, "-c", f"b'x' * {size}"], check=True)
    found = peak_memory()
    assert found is not None
    assert size < found.children


def test_the_kernels_account_of_this_program_comes_first(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t     12 kB\nVmRSS:\t      7 kB\n")
    found = peak_memory(status)
    assert found is not None
    assert found.own == 12 * 1024
    for text in (None, "Name:\tpython\n"):
        if text is not None:
            status.write_text(text)
        other = peak_memory(status if text else tmp_path / "absent")
        assert other is not None
        assert other.own > 2**20


def test_the_report_is_in_bytes() -> None:
    assert PeakMemory(own=5, children=3).to_json() == {"own_bytes": 5, "children_bytes": 3}
