"""What a process keeps on a disk goes when it ends, or with the next build where it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fresco_trt.files import process_folder as own
from fresco_trt.files.process_folder import process_folder, sweep_process_folders

CODE = """
import os, signal, sys
from fresco_trt.files.process_folder import process_folder
(process_folder() / "code").mkdir()
assert process_folder().stat().st_mode & 0o777 == 0o700
if not os.fork():
    sys.exit()  # leaves its parent's folder alone
os.wait()
assert (process_folder() / "code").is_dir()
os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(own, "_OWN", {})
    return tmp_path


def run(temporary: Path, how: int) -> int:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run([sys.executable, "-c", CODE, str(how)], env=environment).returncode


def test_it_goes_with_its_process(temporary: Path) -> None:
    assert run(temporary, 0) == 0
    assert list(temporary.iterdir()) == []


def test_that_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(
    temporary: Path,
) -> None:
    assert run(temporary, signal.SIGKILL) == -signal.SIGKILL
    (killed,) = temporary.iterdir()
    mine = process_folder()
    (mine / "code").write_bytes(b"x")
    sweep_process_folders()
    assert list(temporary.iterdir()) == [mine]
    assert not killed.exists()
    assert process_folder() == mine


def test_one_that_was_taken_away_is_made_again(temporary: Path) -> None:
    first = process_folder()
    first.rmdir()
    assert process_folder() != first
    assert process_folder().is_dir()
