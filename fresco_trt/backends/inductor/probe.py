"""What a freshly compiled file takes, asked without risking this process.

Under ``build.py``. On a GPU some builds of torch die of a signal inside their own loader
when they are given what they have just compiled; a child process dies in its place.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from fresco_trt.backends.transformer import torch_version
from fresco_trt.errors import BuildError

_CHILD = """
import json, sys
from torch._inductor import aoti_load_package
print(json.dumps(aoti_load_package(sys.argv[1]).get_constant_fqns()))
"""

_SECONDS = 300
"""A child has as long as this: it imports torch, and opens the device."""

_LONGEST = 400
"""Characters of a child's last words that are passed on."""

_PROVEN: set[str] = set()
"""Devices of which this torch has loaded a file in a child."""


def constants_of(path: Path, device: str) -> set[str]:
    """Names of the weights that the compiled code in ``path`` takes.

    The first file that this process compiles for anything but the CPU is loaded in a child only.
    Raises BuildError where that dies or fails; in this process, whatever torch raises.
    """
    if device == "cpu" or device in _PROVEN:
        from torch._inductor import aoti_load_package

        return set(aoti_load_package(str(path)).get_constant_fqns())
    found = _constants_in_child(path)
    _PROVEN.add(device)
    return found


def trust(device: str) -> None:
    """Load what is compiled for ``device`` in this process, which may die of it."""
    _PROVEN.add(device)


def _constants_in_child(path: Path) -> set[str]:
    # -P: what lies in the current folder is not taken for a module.
    command = [sys.executable, "-P", "-c", _CHILD, str(path)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise _unloadable(path, f"did not end within {_SECONDS} s") from error
    if done.returncode != 0:
        raise _unloadable(path, ending(done.returncode, done.stderr))
    return _names(path, done.stdout)


def _names(path: Path, said: str) -> set[str]:
    """Those in the last line that a child said; torch may have said something before."""
    lines = said.splitlines()
    try:
        return set(json.loads(lines[-1]))
    except (IndexError, TypeError, ValueError) as error:
        raise _unloadable(path, f"gave no names of weights but {said[-_LONGEST:]!r}") from error


def ending(status: int, said: str) -> str:
    """How a child ended that failed: a signal, or an exit status with its last line."""
    if status >= 0:
        lines = said.strip().splitlines()
        return f"ended with exit status {status}: {lines[-1][:_LONGEST] if lines else 'silent'}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    return f"was ended by {name}"


def _unloadable(path: Path, ending: str) -> BuildError:
    return BuildError(
        f"torch {torch_version()} does not load the {path.stem} that it compiled:"
        f" the process that tried {ending}",
        expected="a torch that loads what it compiles",
        fix="install another version of torch, or pass --backend eager",
    )
