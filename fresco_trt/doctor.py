"""What this machine can build and run, and the command that adds the rest.

Beside the data path. Building and running are two questions: TensorRT for RTX builds engines on a
machine that has no GPU to run them.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend, backend_names
from fresco_trt.models.weights import BUNDLED
from fresco_trt.models.zoo import model_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fresco_trt.backends.base import Backend, Missing


def examine() -> dict[str, Any]:
    """The report of `fresco-trt doctor`: machine, backends, models with weights at hand."""
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "gpu": _gpu(),
        },
        "backends": [_backend(backend(name)) for name in backend_names()],
        "models": [
            {"name": name, "bundled_weights": (BUNDLED / name).is_dir()} for name in model_names()
        ],
    }


def missing_to_build(library: Backend) -> tuple[Missing, ...]:
    """What keeps a backend from building here; what it takes to run engines is its `check`.

    A library that is installed and names GPUs as targets builds for them on any machine.
    """
    facts = library.describe()
    builds_anywhere = facts.version is not None and bool(facts.targets)
    return () if builds_anywhere else library.check()


def missing_to_run(library: Backend) -> tuple[Missing, ...]:
    """What keeps engines of a backend, once they are built, from running here."""
    return tuple(each for each in library.check() if not each.only_to_build)


def in_words(missing: Iterable[Missing]) -> str:
    """What is missing, each with what adds it, in one line."""
    return "; ".join(f"{each.what} ({each.fix})" for each in missing)


def _backend(library: Backend) -> dict[str, Any]:
    facts, missing = library.describe(), library.check()
    return {
        "name": library.name,
        "builds": not missing_to_build(library),
        "runs": not missing_to_run(library),
        "library": facts.library,
        "version": facts.version,
        "device": facts.device,
        "precisions": list(facts.precisions),
        "targets": list(facts.targets),
        "missing": [each.what for each in missing],
        "fixes": [each.fix for each in missing],
    }


def _gpu() -> str | None:
    """Names of the NVIDIA GPUs, by the driver's own tool; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is no driver to use
        return None
    names = [name.strip() for name in answer.stdout.splitlines() if name.strip()]
    return ", ".join(names) if answer.returncode == 0 and names else None
