"""What every stored figure carries with it: the machine, the command, the commit."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.files.atomic_file import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence


def circumstances() -> dict[str, Any]:
    """Machine, software versions, command line and commit, without names of users or paths."""
    packages = ("torch", "diffusers", "onnxruntime", "onnx")
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            **_gpu(),
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
        },
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "commit": _commit(),
    }


def _module() -> str:
    main = sys.modules["__main__"]
    if main.__spec__ is None:
        return Path(sys.argv[0]).stem
    return main.__spec__.name.removesuffix(".__main__")  # as a package is named to be run


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> dict[str, str]:
    """The GPU, on a machine that has one."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except OSError:  # no git on this machine
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def store(document: dict[str, Any], path: Path) -> None:
    """Write a result as JSON, replacing an older one in one step."""
    store_text(json.dumps(document, indent=1) + "\n", path)


def store_text(text: str, path: Path) -> None:
    """Write a text file, replacing an older one in one step.

    Raises OutputNotWritable or DiskFull.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
