"""TensorRT and TensorRT for RTX engines: one code path over two libraries of the same API.

``build`` turns a stage's ONNX graph into one plan file; ``load`` refuses, before any device is
touched, a plan that this library or this GPU cannot run. TensorRT for RTX builds on any machine,
for the GPUs named as targets; TensorRT builds on the GPU it builds for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from fresco_trt.backends.base import (
    BackendFacts,
    BuildOptions,
    EngineFile,
    EngineFiles,
    EngineRunner,
    Missing,
    StageGraph,
    check_precision,
    exported,
    find_engine,
    unavailable,
)
from fresco_trt.backends.cuda_device import CudaDevice, Device
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.tensorrt.build import plan_from_onnx
from fresco_trt.backends.tensorrt.run import Engines
from fresco_trt.errors import (
    ContentInvalid,
    EnvironmentMismatch,
    IncompatibleOptions,
    ManifestInvalid,
)
from fresco_trt.files.atomic_file import replacing
from fresco_trt.files.canonical_json import bounded_file
from fresco_trt.plan.memory import PROFILES, STATIC, Library

ANY = "any"  # in a plan's name: built for every GPU that the library can target
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
REST = "bf16"
"""What a quantised graph leaves as it is: float32 products would cost more than codes save."""

PRODUCTS = ".products.json"
"""Ending of the file that counts a network's matrix products by the type they multiply."""

# TensorRT for RTX 1.7 for sm89, on a CPU, 2 to 5 blocks as wide as FLUX.1-dev's in bfloat16: peaks
# of 5.27, 7.70 and 8.91 GB for 1.09, 1.66 and 1.94 GB of weights (one of the copies is the mapped
# file), 3.8 to 5.1 MB of code, and 1.27 to 1.34 times the live tensors reserved. TensorRT on the
# GPU that it builds for, which also takes that GPU's memory, was not measured.
MEMORY = Library(
    layouts=(STATIC, PROFILES),
    host=900_000_000,
    copies=3.3,
    program=5_000_000,
    program_block=500_000,
    scratch=1.3,
)
"""What the library adds to a graph's own bytes."""

_PRODUCTS_BYTES = 64 * 1024
_HEADER_BYTES = 28
_VERSION_AT = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """One of the two libraries: module, installation, first bytes of a plan, where it builds."""

    name: str
    module: str
    install: str
    magic: bytes
    builds_anywhere: bool


RTX = Flavour(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    install="pip install fresco-trt[rtx]",
    magic=b"vtrt",
    builds_anywhere=True,
)
ENTERPRISE = Flavour(
    name="tensorrt",
    module="tensorrt",
    install="pip install fresco-trt[tensorrt]",
    magic=b"ftrt",
    builds_anywhere=False,
)
_FLAVOURS = {flavour.name: flavour for flavour in (RTX, ENTERPRISE)}


def create(name: str) -> TensorRTBackend:
    """The backend of that name on the current CUDA device."""
    return TensorRTBackend(_FLAVOURS[name])


class TensorRTBackend:
    """Builds and runs plans. ``cuda_graphs`` False enqueues engines kernel by kernel every time.

    Runners of one backend share a stream and scratch memory, so they are called from one thread.
    ``library`` and ``device`` replace the installed module and the GPU (tests script them).
    """

    native_code: ClassVar[Mapping[str, str]] = {".plan": "TensorRT plans"}

    def __init__(
        self,
        flavour: Flavour,
        *,
        cuda_graphs: bool = True,
        library: Any = None,
        device: Device | None = None,
    ) -> None:
        self.name = flavour.name
        self._flavour = flavour
        self._injected = library
        self._device = device or CudaDevice()
        self._cuda_graphs = cuda_graphs
        self._engines = Engines(self._device)

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """One plan for all targets and profiles, ``<name>.<targets>.plan``, and a count of its
        products.
        """
        library = self._require()
        check_precision(self.describe(), options.precision)
        exported(graph, options.precision, REST)
        targets = self._targets(library, options.targets)
        plan = plan_from_onnx(library, graph, targets, self._with_timings(library, options))
        suffix = "-".join(targets) or (ANY if self._flavour.builds_anywhere else self._capability())
        stem = f"{graph.name}.{suffix}"
        counted = json.dumps(dict(plan.products), sort_keys=True) + "\n"
        _write(options.folder / f"{stem}.plan", plan.data)
        _write(options.folder / f"{stem}{PRODUCTS}", counted.encode())
        return (f"{stem}.plan", f"{stem}{PRODUCTS}")

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner, once the plan's header, the GPU and the driver have been found fit."""
        library = self._require()
        path = find_engine(folder, record, ".plan")
        self._check_header(library, path)
        self._check_device(library, path)
        graph = Graph(record.name, self._device, captures=self._cuda_graphs)
        open_session = partial(self._engines.open, library, path, record, graph)
        return EngineRunner(record.signature, open_session, graph=graph)

    def describe(self) -> BackendFacts:
        """The library's version and the GPUs it can build for."""
        library = self._library()
        return BackendFacts(
            name=self.name,
            library=self._flavour.module,
            version=None if library is None else str(library.__version__),
            graph_format="onnx",
            targets=_targets_of(library),
            precisions=PRECISIONS,
            rest=REST,
            device="cuda",
            layouts=tuple(layout.name for layout in MEMORY.layouts),
            streams=True,
            memory=MEMORY,
        )

    def check(self) -> tuple[Missing, ...]:
        """The library, then a GPU that it can use."""
        library = self._library()
        if library is None:
            package = f"the Python package {self._flavour.module}"
            return (Missing(what=package, fix=self._flavour.install),)
        found, known = self._device.capability(), _targets_of(library)
        purpose = "to run engines" if self._flavour.builds_anywhere else "to build and run engines"
        if found is None:
            what = f"an NVIDIA GPU with its driver and a CUDA build of torch, {purpose}"
            return (Missing(what=what, fix="use a machine with one, or --backend onnxruntime"),)
        if known and found not in known:
            what = f"a GPU of {', '.join(known)} {purpose}; this one is {found}"
            return (Missing(what=what, fix="pass --backend tensorrt"),)
        return ()

    # --- the library and its targets ----------------------------------------------------------

    def _library(self) -> Any:
        """The module, or None where it is absent or cannot be loaded."""
        if self._injected is not None:
            return self._injected
        if find_spec(self._flavour.module) is None:
            return None
        try:
            return import_module(self._flavour.module)
        except (ImportError, OSError):  # shared libraries that are missing or of another CUDA
            return None

    def _require(self) -> Any:
        library = self._library()
        if library is None:
            raise unavailable(self.name, self.check()[0])
        return library

    def _targets(self, library: Any, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The targets in ascending order, each once; empty for the library's default."""
        known = _targets_of(library)
        wrong = [target for target in asked if target not in known]
        if wrong:
            raise IncompatibleOptions(
                f"the target {', '.join(wrong)} with the backend {self.name}",
                expected=f"one of {', '.join(known)}"
                if known
                else "no target: it builds for its GPU",
                fix="pass one of these, or leave the target out",
            )
        if not self._flavour.builds_anywhere:
            self._capability()
        return tuple(target for target in known if target in asked)

    def _with_timings(self, library: Any, options: BuildOptions) -> BuildOptions:
        """The options with the file of this library and GPU in the folder of timings; without any
        for a library that builds elsewhere, and so times nothing.
        """
        if options.timings is None or self._flavour.builds_anywhere:
            return replace(options, timings=None)
        name = f"{self.name}-{library.__version__}-{self._capability()}.timings"
        return replace(options, timings=options.timings / name)

    def _capability(self) -> str:
        """This machine's, where a GPU is needed to build."""
        found = self._device.capability()
        if found is None:
            raise unavailable(self.name, self.check()[0])
        return found

    # --- preflight ----------------------------------------------------------------------------

    def _check_header(self, library: Any, path: Path) -> None:
        """The first 28 bytes of a plan tell the library and, in the last four, its version."""
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        version = ".".join(str(byte) for byte in header[_VERSION_AT:])
        wanted = ".".join(str(library.__version__).split(".")[:4])
        if len(header) < _HEADER_BYTES or not header.startswith(self._flavour.magic):
            given = f"{path.name} is no {self.name} plan"
        elif version != wanted:
            given = f"{path.name} was built with {self.name} {version}; this is {wanted}"
        else:
            return
        raise EnvironmentMismatch(
            given,
            expected=f"a plan of {self.name} {wanted}",
            fix=f"build the bundle again, or install {self._flavour.module} {version}",
        )

    def _check_device(self, library: Any, path: Path) -> None:
        targets = path.name.split(".")[-2]
        fits = _targets_of(library) if targets == ANY else tuple(targets.split("-"))
        found = self._device.capability()
        if found in fits:
            return
        state = "no usable NVIDIA GPU" if found is None else f"a GPU of {found}"
        raise EnvironmentMismatch(
            f"{path.name} on a machine with {state}",
            expected=f"a GPU of {' or '.join(fits)}, its driver and a CUDA build of torch",
            fix="run it on such a machine, or build for this one: --backend onnxruntime needs none",
        )


def read_products(path: Path) -> dict[str, int]:
    """How many matrix products a network has of each type, as :meth:`TensorRTBackend.build` counted
    them. Raises ContentInvalid for a file that says nothing of the kind.
    """
    try:
        counts = bounded_file(path, most_bytes=_PRODUCTS_BYTES)
        if not all(type(count) is int and count >= 0 for count in counts.values()):
            raise TypeError("a count of another type")
    except (OSError, ManifestInvalid, TypeError) as error:
        why = error.given if isinstance(error, ManifestInvalid) else str(error)
        raise ContentInvalid(
            f"{path.name} does not count matrix products: {why}",
            expected="a count for each type, as 'fresco-trt build' writes it",
            fix="do not use this bundle; build it again with 'fresco-trt build'",
        ) from error
    return counts


def _targets_of(library: Any) -> tuple[str, ...]:
    """GPUs that the library can build for from elsewhere, ascending; TensorRT itself has none."""
    capabilities = getattr(library, "ComputeCapability", None)
    names = [] if capabilities is None else list(capabilities.__members__)
    numbers = sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
    return tuple(f"sm{number}" for number in numbers)


def _write(path: Path, data: bytes | memoryview) -> None:
    with replacing(path) as partial_path:
        partial_path.write_bytes(data)
