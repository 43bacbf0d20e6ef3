"""mypy beside the tests: begun with them, it has what they leave of the cores, and is asked for at
their end.

Of all processes of a run one begins it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds, against a hang; nothing is measured

# The status is there as a whole or not at all.
_CODE = """
import os, pathlib, subprocess, sys
if hasattr(os, "nice"):
    os.nice(10)
status, place = subprocess.run([sys.executable, "-m", "mypy"]).returncode, pathlib.Path(sys.argv[1])
place.with_suffix(".partial").write_text(str(status))
place.with_suffix(".partial").rename(place)
"""


@contextmanager
def begun(folder: Path) -> Iterator[None]:
    """It is over when the scope ends; ``folder`` is one of all processes of the run."""
    if find_spec("mypy") is None:
        yield
        return
    try:
        said = (folder / "mypy.said").open("xb")
    except FileExistsError:  # by another process
        yield
        return
    command = [sys.executable, "-c", _CODE, str(folder / "mypy.status")]
    with said, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said):
        yield


def ended(folder: Path) -> tuple[int, str]:
    """Its exit status and what it said, as soon as it is over."""
    place, latest = folder / "mypy.status", time.monotonic() + PATIENCE
    while not place.exists():
        if time.monotonic() > latest:
            raise TimeoutError(f"mypy is not over after {PATIENCE} s")
        time.sleep(0.1)
    return int(place.read_text()), (folder / "mypy.said").read_text(errors="replace")
