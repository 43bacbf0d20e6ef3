"""Which engine library and precision a build has that names none: what this machine runs best.

The one place for the rule, for Python and the command line alike. On a machine without a GPU torch
is not imported to find that out where it was built for CPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fresco_trt.backends import backend
from fresco_trt.backends.transformer import torch_version

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend, BackendFacts

Fits: TypeAlias = "Callable[[BackendFacts], bool]"
"""Whether a library can do what else a build asks of it."""

ON_CPU, ON_GPU = "onnxruntime", "inductor"

BF16_FROM = (8, 0)
"""Compute capability of the first GPUs that multiply in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that torch finds: its name, compute capability and bytes of memory."""

    name: str
    capability: tuple[int, int]
    bytes: int

    @property
    def libraries(self) -> Mapping[str, str]:
        """Engine libraries for it, the fastest first, and what they are for."""
        rtx = {"tensorrt-rtx": "an RTX GPU"} if "RTX" in self.name else {}
        return {**rtx, "tensorrt": "an NVIDIA GPU", ON_GPU: "any CUDA GPU"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A library and a precision; ``defaults`` says which of them were not asked for, and why they
    are what they are: "onnxruntime in fp32: no NVIDIA GPU ...". None where both were.
    """

    backend: Backend
    precision: str
    defaults: str | None


def this_gpu() -> Gpu | None:
    """The GPU that graphs would run on here; None without one that torch can use."""
    version = torch_version()
    if version is None or version.endswith("+cpu"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return Gpu(
        name=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        bytes=torch.cuda.mem_get_info()[1],
    )


def choose(asked: str | None, precision: str | None, gpu: Gpu | None, fits: Fits) -> Choice:
    """The library and the precision that were asked for, or this machine's own: of the libraries
    for its ``gpu`` the first that is installed whole and that ``fits``; without a GPU, or one that
    does, ONNX Runtime. bf16 where engines run on a GPU that multiplies in it, else fp32.

    Raises UnknownBackend for an unknown name.
    """
    library, why = (backend(asked), None) if asked is not None else _library(gpu, fits)
    about = library.describe()
    on_gpu = gpu is not None and about.device == "cuda"
    able = gpu is not None and gpu.capability >= BF16_FROM and "bf16" in about.precisions
    found = precision or ("bf16" if on_gpu and able else "fp32")
    names = [*([] if asked else [about.name]), *([] if precision else [found])]
    reason = why or f"what runs on {'a GPU' if on_gpu else 'a CPU'} has it by default"
    defaults = f"{' in '.join(names)}: {reason}" if names else None
    return Choice(backend=library, precision=found, defaults=defaults)


def _library(gpu: Gpu | None, fits: Fits) -> tuple[Backend, str]:
    if gpu is None:
        return backend(ON_CPU), "no NVIDIA GPU that torch can use is here"
    for name, purpose in gpu.libraries.items():
        library = backend(name)
        if not library.check() and fits(library.describe()):
            return library, f"the first library for {purpose} that is installed here"
    # What is missing to build the one is said, with its fix; what none can do needs another device.
    if fits(backend(ON_GPU).describe()):
        return backend(ON_GPU), f"the library for any CUDA GPU, such as this {gpu.name}"
    return backend(ON_CPU), f"no library for {gpu.name} at hand does what else was asked for"
