"""A captured graph as engines: one for each set of shapes and weights it is called with.

Third step of a compilation, and what runs at every call. Engines are static, so a graph that torch
captured with open dimensions gets one engine for each shape that arrives.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, NoReturn

import torch
from torch import Tensor

from fresco_trt.backends.base import Backend, BuildOptions, Runner, StageGraph, unavailable
from fresco_trt.backends.missing import missing_to_build
from fresco_trt.compile import limit
from fresco_trt.compile.captured import (
    Bound,
    Captured,
    check_circumstances,
    check_graph,
    probe,
    refuse,
)
from fresco_trt.compile.counting import COUNT
from fresco_trt.compile.messages import own_words, tell_once, translate
from fresco_trt.compile.options import CompileOptions, chosen_library, library
from fresco_trt.compile.store import DAMAGE, GRAPH, SCHEMA, EngineStore, Entry
from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    DiskFull,
    EngineFailed,
    ExportError,
    FrescoError,
    InvalidPlan,
    OutOfDeviceMemory,
    OutputNotWritable,
    UnsupportedGraph,
    UnsupportedPrecision,
)
from fresco_trt.files.cache_folder import cache_folder
from fresco_trt.files.canonical_json import build_key
from fresco_trt.files.process_folder import process_folder
from fresco_trt.lower.record import packages
from fresco_trt.models.fingerprint import Fingerprint
from fresco_trt.models.weights import tensors_digest
from fresco_trt.plan.signature import GraphSignature

_log = logging.getLogger(__name__)

Run = Callable[[Sequence[Any], Sequence[Tensor]], Sequence[Tensor]]
"""Outputs from the arguments of a graph, and from those of them that an engine takes."""

_NO_ROOM = (OutputNotWritable, DiskFull)

# What is wrong with the graph or with the disks, for which torch has the remedy. All else is wrong
# with the request or the machine (a library that is not there) and is raised.
_FALL_BACK = (
    UnsupportedGraph,
    InvalidPlan,
    ExportError,
    BuildError,
    UnsupportedPrecision,
    EngineFailed,
    OutOfDeviceMemory,
    *_NO_ROOM,
)
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Case:
    """One set of shapes and weights, and what runs it. Without ``weights``, torch does: it reads
    those of the call.
    """

    shapes: tuple[object, ...]
    weights: Fingerprint | None
    run: Run

    def serves(self, shapes: tuple[object, ...], weights: Sequence[Tensor]) -> bool:
        """Whether this is right for a call."""
        return self.shapes == shapes and (self.weights is None or self.weights.hold(weights))

    def outlived(self, weights: Sequence[Tensor]) -> bool:
        """Whether this is for weights that are gone, or for ``weights`` with other values."""
        if self.weights is None:
            return False
        known = [each.tensor() for each in self.weights.tensors]
        same = all(old is new for old, new in zip(known, weights, strict=True))
        return not self.weights.alive or (same and not self.weights.hold(weights))


class CompiledGraph:
    """What torch calls in a captured graph's place: the arguments of the graph, its outputs.

    Engines are made at the first call of their kind, and live as long as this and their weights.
    Weights that were replaced or written to, in whatever way, get an engine of their own, as far as
    :class:`Fingerprint` sees; values that come back get theirs from the cache on disk.
    """

    def __init__(self, captured: Captured, options: CompileOptions) -> None:
        self._captured, self._options = captured, options
        self._constants = [*captured.constants.values()]
        self._cases: list[_Case] = []
        # One call at a time: a runner owns its buffers.
        self._lock = RLock()
        self.frame, self.strict = limit.frame(), options.strict
        limit.watch(self)

    def __call__(self, *arguments: Any) -> Sequence[Tensor]:
        """The outputs as new tensors, on the device of the inputs.

        Raises UnsupportedGraph with the option ``strict``, BackendUnavailable, and what an engine
        raises when it runs, or torch, where it runs the graph.
        """
        weights, tensors, others = self._captured.split(arguments)
        weights += self._constants
        shapes = (*((each.dtype, each.device, tuple(each.shape)) for each in tensors), *others)
        with self._lock, own_words():
            for case in self._cases:
                if case.serves(shapes, weights):
                    return case.run(arguments, tensors)
            self._cases = [case for case in self._cases if not case.outlived(weights)]
            case = self._made(shapes, weights, arguments)
            self._cases.append(case)
            return case.run(arguments, tensors)

    def _made(
        self, shapes: tuple[object, ...], weights: Sequence[Tensor], arguments: Sequence[Any]
    ) -> _Case:
        """An engine's case, or torch's own where there can be none: told, and counted."""
        try:
            now = Fingerprint.of(weights)
            run = _engine(self._captured, arguments, self._options)
            return _Case(shapes=shapes, weights=now, run=run)
        except _FALL_BACK as error:
            translate(error)
            if self._options.strict:
                _unsupported(error)
            COUNT.fell_back(error.given)
            _log.warning("torch runs a graph that has no engine: %s", error)
            graph = self._captured.graph
            return _Case(shapes=shapes, weights=None, run=lambda given, _: tuple(graph(*given)))


def _engine(captured: Captured, arguments: Sequence[Any], options: CompileOptions) -> Run:
    """The run of an engine that is in the cache, or is built now; without a cache, for this process
    alone.
    """
    check_circumstances(arguments)
    check_graph(captured)
    made = _Making.of(captured, arguments, options)
    try:
        return made.kept()
    except _NO_ROOM as error:
        translate(error)
        place = str(options.cache)
        tell_once(_log, "no cache", place, f"engines are built for this process alone: {error}")
        return made.passing()


def _run(runner: Runner) -> Run:
    names = [spec.name for spec in runner.signature.inputs]
    outputs = [spec.name for spec in runner.signature.outputs]

    def run(_: Sequence[Any], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        given = runner(dict(zip(names, (each.detach() for each in tensors), strict=True)))
        # Copies: the runner's own buffers are overwritten by its next call.
        return tuple(given[name].clone() for name in outputs)

    return run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Making:
    """All that goes into one engine."""

    captured: Captured
    bound: Bound
    signature: GraphSignature
    precision: str
    backend: Backend
    tensors: Sequence[Tensor]
    cache: Path | None

    @classmethod
    def of(cls, captured: Captured, arguments: Sequence[Any], options: CompileOptions) -> _Making:
        """Everything checked. Raises UnsupportedGraph, InvalidPlan or BackendUnavailable."""
        weights, tensors, _ = captured.split(arguments)
        device = _device((*weights, *(arguments[at] for at in captured.tensors)))
        chosen = library(chosen_library(options.backend, device))
        for missing in missing_to_build(chosen):
            raise unavailable(chosen.name, missing)
        runs_on = chosen.describe().device
        if runs_on != device:
            fix = "move the model there, or pass options={'backend': ...} with one that runs here"
            refuse(f"it is on {device}", f"{runs_on}, where {chosen.name} runs", fix)
        bound = captured.bind(arguments)
        return cls(
            captured=captured,
            bound=bound,
            signature=captured.signature(tensors, probe(bound, tensors)),
            precision=_precision(bound, chosen),
            backend=chosen,
            tensors=tensors,
            cache=options.cache,
        )

    def kept(self) -> Run:
        """The engine of the cache: built if it is not there, or not what it should be, which is
        told. Counted as what it was. Raises OutputNotWritable or DiskFull where there is no cache.
        """
        store = EngineStore(cache_folder(self.cache), native=bool(self.backend.native_code))
        parts = identity(self.captured, self.bound, self.signature, self.backend)
        key = build_key(parts)
        damage: Exception | None = None
        try:
            entry = store.find(key, self.signature)
            if entry is not None:
                run = self._tried(entry)
                COUNT.reused()
                return run
        except (*DAMAGE, EngineFailed) as error:
            damage = error
            given = f"the engine {key[:12]} in {store.folder} is damaged: {error.given}"
            tell_once(_log, "damaged", str(store.folder), given)
        entry = store.build(key, parts, self.signature, self._build, replace=damage is not None)
        COUNT.built()
        return self._loaded(entry)

    def passing(self) -> Run:
        """The engine, built in a folder that is gone once it is loaded. Raises OutputNotWritable or
        DiskFull where temporary files have no room either.
        """
        with _temporary() as folder:
            entry = EngineStore(folder).build(GRAPH, {}, self.signature, self._build)
            COUNT.built()
            return self._loaded(entry)

    def _tried(self, entry: Entry) -> Run:
        """The engine, which ran once: right digests do not say that a file is an engine of this
        signature. Raises EngineFailed for what it was found to be.
        """
        try:
            run = self._loaded(entry)
            run((), self.tensors)
        except (BackendUnavailable, OutOfDeviceMemory, EngineFailed):
            raise
        except Exception as error:  # a library raises whatever the bytes lead it to
            said = f"{type(error).__name__}: {error}"
            raise EngineFailed(
                error.given if isinstance(error, FrescoError) else said,
                expected="an engine as it was built",
                fix="remove that engine from the cache",
            ) from error
        return run

    def _loaded(self, entry: Entry) -> Run:
        runner = self.backend.load(entry.folder, entry)
        runner.__enter__()  # freed with its session, when the run below is dropped
        return _run(runner)

    def _build(self, folder: Path) -> tuple[str, ...]:
        from fresco_trt.lower.export import export_stages

        graph = StageGraph(
            name=GRAPH,
            signature=self.signature,
            module=self.bound,
            onnx=None,
            weights=None,
            source=folder,
        )
        if self.backend.describe().graph_format == "onnx":
            (graph,) = export_stages([graph], folder)
        return self.backend.build(graph, BuildOptions(folder=folder, precision=self.precision))


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder of this process's own, which is gone afterwards. Raises OutputNotWritable."""
    try:
        folder = TemporaryDirectory(dir=process_folder(), ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputNotWritable(
            f"an engine has no room, neither in the cache nor in a temporary folder ({error})",
            expected="one of them to write to",
            fix="set TMPDIR to a folder that can be written",
        ) from error
    with folder as name:
        yield Path(name)


# --- identity ---------------------------------------------------------------------------------


def identity(
    captured: Captured, bound: Bound, signature: GraphSignature, backend: Backend
) -> Mapping[str, object]:
    """Everything that an engine depends on, by name; the options that are left out, ``cache`` and
    ``strict``, say where it is kept and who runs the graph without it.
    """
    about = backend.describe()
    weights = {**dict(bound.named_parameters()), **dict(bound.named_buffers())}
    return {
        "schema": SCHEMA,
        "graph": hashlib.sha256(captured.text.encode()).hexdigest(),
        "numbers": bound.numbers,
        "signature": signature.to_json(),
        "weights": tensors_digest({**weights, **captured.constants}),
        "flags": {
            "dtype": str(torch.get_default_dtype()),
            "matmul": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "backend": [about.name, about.library, about.version],
        "device": _device_name(about.device),
        "package versions": packages(),
    }


def _device_name(device: str) -> list[object]:
    """The device that an engine is for: a GPU by its name and compute capability."""
    if device != "cuda" or not torch.cuda.is_available():
        return [device]
    return [device, torch.cuda.get_device_name(), *torch.cuda.get_device_capability()]


def _device(tensors: Sequence[Tensor]) -> str:
    """The one device that everything is on, where engines run. Raises UnsupportedGraph for several,
    and for a GPU that is not the current one.
    """
    found = sorted({each.device for each in tensors}, key=str)
    if len(found) != 1:
        names = ", ".join(map(str, found))
        refuse(f"its tensors are on {names or 'no device'}", "one device")
    device = found[0]
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        refuse(f"it is on {device}", "the current GPU", "choose it with torch.cuda.set_device")
    return device.type


def _precision(bound: Bound, backend: Backend) -> str:
    """The precision of the weights. Raises UnsupportedGraph where there are several, or one that
    the library does not run in here.
    """
    offered = [each for each in backend.describe().precisions if each in _PRECISIONS.values()]
    dtypes = {each.dtype for each in bound.parameters()}
    found = {_PRECISIONS.get(each, "") for each in dtypes}
    if len(found) > 1 or not found <= set(offered):
        names = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
        refuse(
            f"its weights are in {names} for the engine library {backend.name}",
            f"one of {', '.join(offered)}",
            "convert the model, or pass options={'backend': ...} with a library that runs it",
        )
    return found.pop() if found else "fp32"


def _unsupported(error: FrescoError) -> NoReturn:
    raise UnsupportedGraph(error.given, expected=error.expected, fix=error.fix) from error
