"""`fresco-trt doctor`: what this machine can build and run, and the command that adds the rest.

The report of the command; what one backend lacks is said by :mod:`fresco_trt.backends.missing`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from fresco_trt.backends import backend, backend_names
from fresco_trt.backends.missing import missing_to_build, missing_to_run
from fresco_trt.cli import display, tables
from fresco_trt.cli.options import Json
from fresco_trt.models.registry import model_names
from fresco_trt.models.weights import bundled_folder

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend


def doctor(as_json: Json = False) -> None:
    """Say what this machine can build and run, and the command that adds the rest."""
    display.show(examine(), as_json, tables.doctor_table)


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
            {"name": name, "bundled_weights": bundled_folder(name).is_dir()}
            for name in model_names()
        ],
    }


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
