"""What an engine library is to the rest of the package: a backend that builds, a runner that runs.

Both sides of the double arrow meet here: ``lower/`` hands a :class:`StageGraph` to a backend's
``build``, and ``run/`` gets a :class:`Runner` from its ``load``. Everything that is the same for
every library (scope, input checks, file errors) is written once, in this file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    EngineFailed,
    FileMissing,
    IncompatibleOptions,
    SignatureMismatch,
    UnsupportedPrecision,
)
from fresco_trt.files.atomic_file import writing
from fresco_trt.plan.signature import GraphSignature, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fresco_trt.backends.cuda_graph import Graph
    from fresco_trt.plan.memory import Library

EngineFiles: TypeAlias = tuple[str, ...]
Progress: TypeAlias = Callable[[str, float], None]
Call: TypeAlias = "Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]"


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def silent(phase: str, fraction: float) -> None:
    """The progress listener that shows nothing."""


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StageGraph:
    """One graph of one stage, ready to be built.

    ``name`` is the engine's ("stage1.full"; "full" where stages share it), ``family`` the name of
    the model's family (empty for a captured graph, which has none). ``module`` is the eager
    callable: it takes the inputs of ``signature`` in order and returns the outputs in order.
    ``onnx`` is set, and ``weights`` (the data file that all ONNX graphs of a bundle share), where
    the backend's graph format is "onnx". ``source`` is the diffusers folder of the transformer:
    config.json and safetensors. ``profiles`` are the signatures that one engine is to serve, where
    that is more than one, and ``signature`` is the last of them.
    """

    name: str
    signature: GraphSignature
    module: torch.nn.Module
    onnx: Path | None
    weights: Path | None
    source: Path
    family: str = ""
    profiles: tuple[GraphSignature, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How to build: ``folder`` is the bundle being written, ``targets`` the devices ("sm89"; empty
    means all that the library can target), ``progress`` is told (phase, fraction in 0..1) from
    any thread, ``threads`` bounds the CPU threads of the build (None: the library's choice).
    ``stream_weights`` asks for an engine that runs with part of its weights on the host; in the
    folder ``timings`` a library that times kernels keeps what it measured (None: nowhere).
    """

    folder: Path
    targets: tuple[str, ...] = ()
    precision: str = "fp32"
    progress: Progress = silent
    threads: int | None = None
    stream_weights: bool = False
    timings: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendFacts:
    """What a backend is on this machine. ``version`` is None where the library is not installed;
    ``device`` is where a runner's outputs live ("cpu" or "cuda"); ``rest`` the precision of what a
    quantised graph leaves as it is; ``simulated`` are those rounded to and then multiplied in
    ``rest``: right in their errors, no faster. ``machine`` is the kind that engines built here are
    for, if they run on no other. ``layouts`` has "profiles" where an engine takes several shapes;
    ``streams`` says that weights may be on the host, ``contexts`` that runners of one engine share
    them and may be called at once, ``sparse`` that attention may be. ``memory`` is what it adds.
    """

    name: str
    library: str
    version: str | None
    graph_format: Literal["onnx", "module"]
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    device: str
    rest: str = "fp32"
    simulated: tuple[str, ...] = ()
    machine: str | None = None
    layouts: tuple[str, ...] = ("static",)
    streams: bool = False
    contexts: bool = False
    sparse: bool = False
    memory: Library | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Something a backend needs and this machine lacks, and the command or step that adds it.

    ``only_to_build``: engines that are built already run without it.
    """

    what: str
    fix: str
    only_to_build: bool = False


# --- interfaces -------------------------------------------------------------------------------


class EngineFile(Protocol):
    """What ``load`` needs to know of an engine; the bundle's manifest entry is one."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def signature(self) -> GraphSignature: ...


class Runner(Protocol):
    """One loaded engine. Resources are held only between ``__enter__`` and ``__exit__``.

    Called with every input of ``signature`` by name (any device; the runner moves them). The
    outputs are valid until the runner's next call. Called by one thread at once, and beside others
    of its backend only where that has ``contexts``. Raises SignatureMismatch for other tensors,
    EngineFailed or OutOfDeviceMemory from the library, RuntimeError outside the scope.
    """

    @property
    def signature(self) -> GraphSignature: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...


class Backend(Protocol):
    """One engine library."""

    @property
    def name(self) -> str: ...

    @property
    def native_code(self) -> Mapping[str, str]:
        """What in its engines the processor or the GPU runs as it is, by the ending of the file:
        code that may do whatever its user may. Empty for engines that are data alone.
        """
        ...

    def build(self, graph: StageGraph, options: BuildOptions) -> EngineFiles:
        """Write the engine into ``options.folder``; the file names it is loaded from, relative.

        A file that several engines share is written once. Raises BackendUnavailable,
        UnsupportedPrecision, IncompatibleOptions, BuildError, OutputNotWritable or DiskFull.
        """
        ...

    def load(self, folder: Path, record: EngineFile) -> Runner:
        """A runner for a built engine; nothing is allocated before its scope is entered.

        Raises BackendUnavailable, FileMissing, EnvironmentMismatch.
        """
        ...

    def describe(self) -> BackendFacts:
        """Facts about the library here; never raises for a library that is absent."""
        ...

    def check(self) -> tuple[Missing, ...]:
        """What is missing to build or to run here; empty when everything is at hand."""
        ...


# --- the one runner of all libraries ----------------------------------------------------------


class EngineRunner:
    """A :class:`Runner` over a library's session.

    ``open_session`` returns the context that acquires the library's resources and gives the call;
    scope and signature are enforced here, so a session sees only complete, well-shaped inputs.
    ``graph`` is what its calls are queued through, None for a library that does not do so.
    """

    def __init__(
        self,
        signature: GraphSignature,
        open_session: Callable[[], AbstractContextManager[Call]],
        *,
        graph: Graph | None = None,
    ) -> None:
        self.signature, self.graph = signature, graph
        self._open_session = open_session
        self._scope = ExitStack()
        self._call: Call | None = None

    def __enter__(self) -> Self:
        if self._call is not None:
            raise RuntimeError("the runner's scope is already entered")
        self._call = self._scope.enter_context(self._open_session())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call = None
        self._scope.close()

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`Runner`."""
        if self._call is None:
            raise RuntimeError("a runner is called inside its scope only: 'with runner: ...'")
        check_inputs(self.signature, inputs)
        outputs = self._call(inputs)
        check_outputs(self.signature, outputs)
        return outputs

    @property
    def session(self) -> Call | None:
        """The library's own, None outside of the scope."""
        return self._call

    def replays(self) -> bool:
        """Whether the next call replays a CUDA graph."""
        return self.graph is not None and self.graph.is_captured()


class BorrowedRunner:
    """Base of a :class:`Runner` around another one, which is entered and left by its owner."""

    def __init__(self, runner: Runner) -> None:
        self.signature, self._runner = runner.signature, runner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held here."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As :class:`Runner`: what the runner inside gives, unless a subclass does more."""
        return self._runner(inputs)


def check_inputs(signature: GraphSignature, inputs: Mapping[str, Tensor]) -> None:
    """Raise SignatureMismatch unless ``inputs`` are exactly those of ``signature``."""
    wanted = {spec.name: spec for spec in signature.inputs}
    problem = next(_problems(wanted, inputs), None)
    if problem is not None:
        raise SignatureMismatch(
            problem,
            expected=", ".join(str(spec) for spec in signature.inputs),
            fix="pass what the engine was built for, or build engines for this size",
        )


def check_outputs(signature: GraphSignature, outputs: Mapping[str, Tensor]) -> None:
    """Raise EngineFailed unless ``outputs`` are exactly those of ``signature``."""
    wanted = {spec.name: spec for spec in signature.outputs}
    problem = next(_problems(wanted, outputs), None)
    if problem is not None:
        raise EngineFailed(
            f"the engine returned something else: {problem}",
            expected=", ".join(str(spec) for spec in signature.outputs),
            fix="build the bundle again with 'fresco-trt build'",
        )


def _problems(wanted: Mapping[str, TensorSpec], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name in wanted.keys() - given.keys():
        yield f"no tensor {name}"
    for name in given.keys() - wanted.keys():
        yield f"the tensor {name} has no place"
    for name, spec in wanted.items():
        actual = (str(given[name].dtype).removeprefix("torch."), tuple(given[name].shape))
        if actual != (spec.dtype, spec.shape):
            yield f"{name} {actual[0]}[{','.join(map(str, actual[1]))}]"


# --- helpers for building ---------------------------------------------------------------------


def check_precision(facts: BackendFacts, precision: str) -> None:
    """Raise UnsupportedPrecision unless the backend runs ``precision`` here."""
    if precision not in facts.precisions:
        raise UnsupportedPrecision(
            f"--precision {precision} with the backend {facts.name}",
            expected=f"one of {', '.join(facts.precisions)}",
            fix="pass one of these with --precision, or another --backend",
        )


def no_targets(
    name: str, options: BuildOptions, because: str = "run on any machine that has the library"
) -> None:
    """Raise IncompatibleOptions if targets were asked of a library whose engines have none."""
    if options.targets:
        raise IncompatibleOptions(
            f"the target {', '.join(options.targets)} with the backend {name}",
            expected=f"no target: its engines {because}",
            fix="leave the target out, or pass --backend tensorrt-rtx",
        )


def unavailable(name: str, missing: Missing) -> BackendUnavailable:
    """The error for a backend that lacks something."""
    return BackendUnavailable(
        f"the backend {name} lacks {missing.what}",
        expected="everything that 'fresco-trt doctor' lists for it",
        fix=missing.fix,
    )


def find_engine(folder: Path, record: EngineFile, suffix: str) -> Path:
    """The engine's file with that suffix. Raises FileMissing if any of its files is not there."""
    paths = [folder / name for name in record.files]
    absent = [path.name for path in paths if not path.is_file()]
    found = [path for path in paths if path.name.endswith(suffix)]
    if absent or not found:
        raise FileMissing(
            f"the engine {record.name} lacks {', '.join(absent) or f'a {suffix} file'} in {folder}",
            expected=f"the files {', '.join(record.files)}",
            fix="restore the bundle, or build it again with 'fresco-trt build'",
        )
    return found[0]


def exported(graph: StageGraph, precision: str, rest: str) -> tuple[Path, Path]:
    """The ONNX file and the weights of a graph that was exported in ``precision``.

    ``rest`` is the precision of what a quantised one leaves as it is. Raises ValueError if it was
    not exported, BuildError if its weights are of another precision: engines take theirs from the
    graph, so the option would be ignored.
    """
    if graph.onnx is None or graph.weights is None:
        raise ValueError(f"{graph.name} was not exported to ONNX")
    stored = {str(parameter.dtype) for parameter in graph.module.parameters()}
    wanted = _DTYPES[precision if precision in _DTYPES else rest]
    quantised = f".{precision}." in graph.onnx.name
    if stored - {f"torch.{wanted}"} or quantised != (precision not in _DTYPES):
        codes = " and no codes" if not quantised and precision not in _DTYPES else ""
        raise BuildError(
            f"{graph.name} was exported with weights in {', '.join(sorted(stored))}{codes}",
            expected=f"{wanted} for --precision {precision}",
            fix="pass the precision that the graph is in, or export it again in this one",
        )
    return graph.onnx, graph.weights


def copy_once(source: Path, folder: Path) -> str:
    """Copy ``source`` into ``folder`` under its own name unless it is there; the name."""
    target = folder / source.name
    with writing(target):
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    return source.name
