"""ONNX Runtime engines: the default where there is no GPU.

An engine is the stage's ONNX graph beside the data file that all stages share. Runtime layout,
measured with three stages of flux-tiny (21 MB of weights): with one memory arena for all sessions
and no memory patterns, sessions and runs add 155 MB to the process instead of 239, at equal speed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from fresco_trt.backends.base import (
    BackendFacts,
    BuildOptions,
    Call,
    EngineFile,
    EngineFiles,
    EngineRunner,
    Missing,
    StageGraph,
    check_precision,
    copy_once,
    exported,
    find_engine,
    no_targets,
    unavailable,
)
from fresco_trt.backends.onnx_graph import ONNX_TYPES, check_graph, check_places
from fresco_trt.errors import BuildError, EngineFailed, FrescoError, OutOfDeviceMemory
from fresco_trt.files.canonical_json import excerpt
from fresco_trt.plan.memory import SHARED, Library

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.signature import TensorSpec

INSTALL = "pip install onnxruntime"

# Prepacking gives every session its own re-laid copy of the weights for about 8% of speed at small
# token counts; above this size one memory-mapped copy for all sessions is worth more.
PREPACK_BYTES = 256 * 1024 * 1024

# 3.01 GB for 2.18 GB of weights as wide as FLUX.1-dev's. Its arena held 8 and 17 matrices of scores
# at the 384 and 1152 tokens of flux-tiny, being the larger the more they are cut up.
MEMORY = Library(
    layouts=(SHARED,),
    host=850_000_000,
    copies=0,
    program=10_000,
    program_block=24_000,
    scores=16,
    relaid_up_to=PREPACK_BYTES,
)
"""What the library adds to a graph's own bytes."""


def create(name: str) -> OnnxRuntimeBackend:
    """The backend, with the library's defaults."""
    return OnnxRuntimeBackend()


class OnnxRuntimeBackend:
    """Runs stage graphs with ONNX Runtime, on CUDA where its CUDA provider is installed.

    ``threads`` bounds the CPU threads of an engine's calls; None takes torch's number (the physical
    cores, unless the caller or OMP_NUM_THREADS says otherwise). Runners of one engine share its
    session, which takes calls of several threads at once.
    """

    name = "onnxruntime"
    native_code: ClassVar[Mapping[str, str]] = {}

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._sessions: WeakValueDictionary[object, Any] = WeakValueDictionary()
        self._opening = Lock()

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Copy the graph and, once, the shared weights; then load it once, as a proof."""
        self._require()
        check_precision(self.describe(), options.precision)
        no_targets(self.name, options)
        paths = exported(graph, options.precision, self.describe().rest)
        files = tuple(copy_once(path, options.folder) for path in paths)
        options.progress(f"check {graph.name}", 0.0)
        try:
            if graph.family:
                check_graph(options.folder / files[0], graph.signature, files)
            strict = bool(graph.family)
            self._session(options.folder / files[0], options.threads, strict=strict)
        except FrescoError as error:
            raise BuildError(
                f"ONNX Runtime refuses {graph.name}: {error.given}",
                expected="a graph that it can load",
                fix="update onnxruntime, or pass another --backend",
            ) from error
        options.progress(f"check {graph.name}", 1.0)
        return files

    def load(self, folder: Path, record: EngineFile) -> EngineRunner:
        """A runner whose session exists only within its scope.

        A model's graph, which may come from anywhere, is held against what the exporter writes:
        raises ContentInvalid. One that torch captured has no family: it may hold any operator, and
        reads no file but its own.
        """
        self._require()
        path = find_engine(folder, record, ".onnx")
        if record.family:
            check_graph(path, record.signature, record.files)
        else:
            check_places(path, record.files)
        return EngineRunner(record.signature, partial(self._open, path, record))

    def describe(self) -> BackendFacts:
        """Version, device and precisions as found on this machine."""
        installed = find_spec("onnxruntime") is not None
        return BackendFacts(
            name=self.name,
            library="onnxruntime",
            version=_library().__version__ if installed else None,
            graph_format="onnx",
            targets=(),
            precisions=("fp32", "int8", "fp8"),
            simulated=("fp8",),
            device=(device := _device() if installed else "cpu"),
            contexts=device == "cpu",  # on a GPU that was not tried
            memory=MEMORY,
        )

    def check(self) -> tuple[Missing, ...]:
        """The library itself; there is nothing else to miss."""
        if find_spec("onnxruntime") is not None:
            return ()
        return (Missing(what="the Python package onnxruntime", fix=INSTALL),)

    def _require(self) -> None:
        for missing in self.check():
            raise unavailable(self.name, missing)

    @contextmanager
    def _open(self, path: Path, record: EngineFile) -> Iterator[Call]:
        """A session with its outputs bound to buffers that every call reuses."""
        signature, device = record.signature, _device()
        session = self._shared_session(path, record)
        with _errors(f"loading {path.name}"):
            binding = session.io_binding()
            outputs = {spec.name: _buffer(spec, device) for spec in signature.outputs}
            for spec in signature.outputs:
                binding.bind_output(*_bound(spec, outputs[spec.name]))

        def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            # Bound by address: the contiguous tensors must outlive the run.
            held = [inputs[spec.name].to(device).contiguous() for spec in signature.inputs]
            with _errors("running the engine"):
                for spec, tensor in zip(signature.inputs, held, strict=True):
                    binding.bind_input(*_bound(spec, tensor))
                _run(session, binding, device)
            return outputs

        yield call

    def _shared_session(self, path: Path, record: EngineFile) -> Any:
        """The engine's session, which the runners in scope share."""
        state = path.stat()
        key = (path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns)
        with self._opening:
            session = self._sessions.get(key)
            if session is None:
                session = self._session(path, self._threads, strict=bool(record.family))
                self._sessions[key] = session
        return session

    def _session(self, path: Path, threads: int | None, *, strict: bool = False) -> Any:
        library = _library()
        device = _device()
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        # One arena for all sessions of the process: stages run in turn, so it grows to the largest.
        kind = library.OrtMemoryInfo(
            "Cpu", library.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, library.OrtMemType.DEFAULT
        )
        with _errors(f"loading {path.name}"):
            same_as_requested = library.OrtArenaCfg({"arena_extend_strategy": 1})
            library.create_and_register_allocator(kind, same_as_requested)
            settings = _settings(library, path, threads or _torch_threads())
            if strict:  # shapes that the graph states are those that it has
                settings.add_session_config_entry("session.strict_shape_type_inference", "1")
            session = library.InferenceSession(
                str(path), settings, providers=[provider], disabled_optimizers=_unwanted(path)
            )
        if session.get_providers()[0] != provider:
            raise EngineFailed(
                f"ONNX Runtime fell back to {session.get_providers()[0]}",
                expected=f"{provider}, which it lists as available",
                fix="install the CUDA and cuDNN versions that this onnxruntime-gpu was built for",
            )
        return session


def _unwanted(path: Path) -> list[str]:
    """Optimisations to be left out: joining a product with its bias hides it from int8 kernels."""
    return ["MatMulAddFusion"] if path.name.endswith(".int8.onnx") else []


def _settings(library: Any, path: Path, threads: int) -> Any:
    settings = library.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.use_env_allocators", "1")
    # Threads spin within a call, where hundreds of operators follow one another, and sleep after.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if path.name.endswith(".fp8.onnx"):
        # No kernel multiplies FP8: products run in float32, rounded as FP8 would be. The optimiser
        # would fuse them all the same, and then fail.
        settings.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    weights = sum(file.stat().st_size for file in path.parent.glob("*.bin"))
    if weights > PREPACK_BYTES:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    return settings


def _library() -> Any:
    # Since 1.29 its builds for Linux too report to Microsoft what they load. They look for this
    # variable as they are imported, and leave files in the home and in the temporary folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_module("onnxruntime")  # it ships no types


def _device() -> str:
    import torch

    providers = _library().get_available_providers()
    return "cuda" if "CUDAExecutionProvider" in providers and torch.cuda.is_available() else "cpu"


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _buffer(spec: TensorSpec, device: str) -> Tensor:
    import torch

    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)


def _bound(spec: TensorSpec, tensor: Tensor) -> tuple[str, str, int, int, list[int], int]:
    """Arguments of bind_input and bind_output: ONNX Runtime reads and writes torch's memory."""
    kind = ONNX_TYPES[spec.dtype]
    device = tensor.device
    return spec.name, device.type, device.index or 0, kind, list(spec.shape), tensor.data_ptr()


def _run(session: Any, binding: Any, device: str) -> None:
    if device == "cuda":
        import torch

        # The session has a stream of its own: what torch queued before must be done.
        torch.cuda.current_stream().synchronize()
    session.run_with_iobinding(binding)


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Whatever ONNX Runtime raises as RunErrors: its own exceptions, each directly under Exception,
    and those that its C++ ones become: RuntimeError, MemoryError, ValueError.
    """
    try:
        yield
    except Exception as error:
        text, whole = excerpt(error), str(error)
        if isinstance(error, MemoryError) or "allocate memory" in whole or "bad_alloc" in whole:
            raise OutOfDeviceMemory(
                f"{doing}: {text}",
                expected="enough memory for the weights and activations",
                fix="use a smaller --size, or close other programs",
            ) from error
        raise EngineFailed(
            f"{doing}: {text}",
            expected="an engine that loads and runs",
            fix="run 'fresco-trt verify', or build the bundle again",
        ) from error
