"""What the backends over torch share: the bundle's ``transformer/`` folder and torch's own facts.

Their engines take the weights from one diffusers folder in the bundle, copied once and read once
for all runners in scope. What is peculiar to a family is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fresco_trt.backends.base import EngineFiles, Missing, copy_once
from fresco_trt.errors import BuildError, EngineFailed, OutOfDeviceMemory
from fresco_trt.files.atomic_file import writing

if TYPE_CHECKING:
    from torch.nn import Module

    from fresco_trt.models.family import ModelFamily

FOLDER = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"

STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""The type in which a precision's weights are stored, as safetensors names it."""

CODES, SCALES = {"fp8": "F8_E4M3"}, "F32"
"""Those of codes, and of their scales."""


# --- torch ------------------------------------------------------------------------------------


def torch_version() -> str | None:
    """The installed version, None without torch; does not import it."""
    return metadata.version("torch") if find_spec("torch") is not None else None


def torch_device() -> str:
    """Where graphs run here: "cuda" where torch finds a GPU, else "cpu"."""
    if find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def missing_packages() -> tuple[Missing, ...]:
    """Those of torch and diffusers that are not installed."""
    return tuple(
        Missing(what=f"the Python package {package}", fix=f"pip install {package}")
        for package in ("torch", "diffusers")
        if find_spec(package) is None
    )


@contextmanager
def torch_errors(doing: str) -> Iterator[None]:
    """torch's errors as RunErrors."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(
            f"{doing}: {error}",
            expected="enough GPU memory for the weights and activations",
            fix="use a smaller --size, or close other programs on the GPU",
        ) from error
    except RuntimeError as error:
        raise EngineFailed(
            f"{doing}: {error}",
            expected="a graph that runs",
            fix="build the bundle again with 'fresco-trt build'",
        ) from error


# --- the folder -------------------------------------------------------------------------------


def store_transformer(
    source: Path, folder: Path, precision: str, rest: str = "fp32"
) -> EngineFiles:
    """Copy ``source``, whose weights must be stored in ``precision``, into the bundle at ``folder``
    unless it is there; its files, relative. ``rest`` is what a quantised one leaves as it is.

    Raises BuildError, OutputNotWritable or DiskFull.
    """
    _check_source(source, precision, rest)
    target = folder / FOLDER
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    names = [copy_once(source / name, target) for name in ("config.json", WEIGHTS)]
    return tuple(f"{FOLDER}/{name}" for name in names)


class SharedTransformers:
    """Transformers by folder: each in memory once, as long as a runner in scope holds it."""

    def __init__(self) -> None:
        self._transformers: WeakValueDictionary[object, Module] = WeakValueDictionary()
        self._reading = Lock()

    def of(self, family: ModelFamily, source: Path) -> Module:
        """The transformer of that folder, on torch's device. Raises as the family's loader."""
        state = (source / WEIGHTS).stat()
        key = (source.resolve(), state.st_ino, state.st_size, state.st_mtime_ns)
        with self._reading:
            module = self._transformers.get(key)
            if module is None:
                module = family.weights.stored(source, torch_device())
                self._transformers[key] = module
        return module


def _check_source(source: Path, precision: str, rest: str) -> None:
    """Weights are run as they are stored, so they must be stored in what was asked for."""
    from safetensors import safe_open

    path = source / WEIGHTS
    if not path.is_file():
        raise BuildError(
            f"the transformer folder {source} holds no {WEIGHTS}",
            expected="a folder as lower.weights.write_source makes it",
            fix="write the transformer out again",
        )
    opened: Any = safe_open  # untyped
    with opened(path, framework="pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if precision in STORED:
        wanted = {STORED[precision]}
    else:
        wanted = {CODES[precision], SCALES, STORED[rest]}
    if stored != wanted:
        raise BuildError(
            f"the weights are stored as {', '.join(sorted(stored))}",
            expected=f"{', '.join(sorted(wanted))} for --precision {precision}",
            fix="pass the precision that the weights are in",
        )
