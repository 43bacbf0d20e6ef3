"""What compiled blocks are tied to: torch's version, the processor's instructions, the GPU.

Compiled code calls into the torch that it was compiled against and uses every instruction that the
building machine has. So a bundle says where it was built, and is refused elsewhere before any of
its code is loaded. The GPU's driver is no part of it: a kernel is code for one architecture, which
any driver runs that torch of that version runs with.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fresco_trt.errors import EnvironmentMismatch, ManifestInvalid
from fresco_trt.files.atomic_file import replacing
from fresco_trt.files.canonical_json import bounded_file

_GPU = re.compile(r"sm\d+")

_MOST_BYTES = 64 * 1024
"""A file larger than this was not written here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A kind of machine: ``device`` is "cpu" or "cuda", ``features`` what its processor and its GPU
    are able to ("avx2", "sm90"), sorted.
    """

    torch: str
    system: str
    machine: str
    device: str
    features: tuple[str, ...]

    @property
    def gpu(self) -> str | None:
        """The GPU's architecture ("sm90")."""
        return next((each for each in self.features if _GPU.fullmatch(each)), None)

    def __str__(self) -> str:
        digest = hashlib.sha256(" ".join(self.features).encode()).hexdigest()
        return f"{self.system} {self.machine} {self.device} {digest[:12]}"


def this_host(device: str) -> Host:
    """This machine, for graphs that run on ``device``."""
    import torch

    able = [name for name, value in torch.cpu.get_capabilities().items() if value is True]
    if device == "cuda":
        able.append("sm{}{}".format(*torch.cuda.get_device_capability()))
    return Host(
        torch=torch.__version__,
        system=platform.system(),
        machine=platform.machine(),
        device=device,
        features=tuple(sorted(able)),
    )


def write_host(path: Path, host: Host) -> None:
    """Write ``host`` to ``path``, as JSON, in one step. Raises OutputNotWritable or DiskFull."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(asdict(host), indent=1, sort_keys=True) + "\n")


def check_host(path: Path, here: Host) -> None:
    """Raise EnvironmentMismatch unless what was built on the machine of ``path`` runs on this one.

    A processor that is able to more is fine; a GPU must be of the same architecture.
    """
    for given, expected, fix in _problems(_read_host(path), here):
        raise EnvironmentMismatch(
            given, expected=expected, fix=f"build the bundle again on this machine{fix}"
        )


def _problems(built: Host, here: Host) -> Iterator[tuple[str, str, str]]:
    if built.torch != here.torch:
        given = f"blocks compiled with torch {built.torch}; this is {here.torch}"
        yield given, f"torch {built.torch}", f", or install torch=={built.torch}"
    for name in ("system", "machine"):
        was, now = getattr(built, name), getattr(here, name)
        if was != now:
            yield f"blocks compiled for the {name} {was}; this is {now}", f"{name} {was}", ""
    yield from _gpu_problems(built, here)
    lacking = sorted(set(built.features) - set(here.features) - {built.gpu})
    if lacking:
        given = f"blocks compiled for a machine that is able to {', '.join(lacking)}"
        yield given, "a machine that is able to no more than this one", ""


def _gpu_problems(built: Host, here: Host) -> Iterator[tuple[str, str, str]]:
    if built.device == here.device == "cuda" and built.gpu != here.gpu:
        given = f"blocks compiled for a GPU of the architecture {built.gpu}; this is {here.gpu}"
        yield given, f"a GPU of {built.gpu}", ""
    elif built.device != here.device == "cpu":
        given = "blocks compiled for a GPU; torch finds none that it can use here"
        fix = ", or see with nvidia-smi whether a GPU is there and its driver as new as torch asks"
        yield given, "a GPU, and a driver for it", fix
    elif built.device != here.device:
        given = "blocks compiled for the CPU; torch runs on a GPU here"
        yield given, f"the device {built.device}", ""


def _read_host(path: Path) -> Host:
    try:
        fields: dict[str, Any] = bounded_file(path, most_bytes=_MOST_BYTES)
        features = fields.pop("features")
        texts = [*features, *fields.values()]
        if not isinstance(features, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError("a value of another type")
        return Host(features=tuple(features), **fields)
    except (OSError, ManifestInvalid, KeyError, TypeError) as error:
        raise EnvironmentMismatch(
            f"{path.name} does not say what the blocks were compiled for",
            expected="a file as the backend inductor writes it",
            fix="build the bundle again with 'fresco-trt build'",
        ) from error
