"""Laws of the TensorRT backends, against a scripted library that doubles its input.

The scripted library reads and writes the addresses it is given, so a wrong or forgotten address
shows in the numbers. What needs the real library is in ``test_tensorrt_rtx.py``.
"""

from __future__ import annotations

import _thread
import ctypes
import json
import logging
import math
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch

from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.tensorrt.backend import ENTERPRISE, RTX, Flavour, TensorRTBackend
from fresco_trt.backends.tensorrt.build import Monitor, listening
from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    EngineFailed,
    EnvironmentMismatch,
    IncompatibleOptions,
    OutOfDeviceMemory,
    RunError,
    UnsupportedPrecision,
)
from fresco_trt.plan.signature import GraphSignature, TensorSpec
from fresco_trt.profile.job import layers_of

SIGNATURE = GraphSignature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 3)),),
)
VERSION = "1.7.1.116"


# --- the scripted library ---------------------------------------------------------------------


@dataclass
class Script:
    """What the library will do, and what it was asked to do."""

    version: str = VERSION
    parser_errors: tuple[tuple[str, str, str], ...] = ()
    build_message: str | None = None
    load_message: str | None = None
    validity: int = 0
    diagnostics: int = 0
    known_tensors: tuple[str, ...] = ("x", "y")
    runs: bool = True
    run_message: str | None = None
    capturable: bool | None = True  # None: the library has no such question
    capture_error: str | None = None
    replay_error: str | None = None
    steps: int = 20
    scratch: int = 24  # bytes that an engine built now will need, profiles aside
    profiles: bool = True  # whether the library takes them
    eager: bool = True  # whether the library has a choice of when kernels are compiled
    unused: tuple[str, ...] = ()  # outputs of an engine built now that no signature has
    room: int = 0  # bytes of streamed weights that the device has room for
    strange: bytes | None = None  # timings that the library does not take
    layers: str | None = None  # what the inspector says; None: the library has none
    measures: set[bytes] = field(default_factory=lambda: {b"kernel"})  # by a build now
    magic: bytes = b"vtrt"
    asked: dict[str, Any] = field(default_factory=dict)
    streams: list[int] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    arenas: list[int] = field(default_factory=list)  # bytes of each that was made
    loads: int = 0
    recording: list[Callable[[], None]] | None = None


Shape: TypeAlias = "tuple[int, int]"


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class BaseLogger:
    Severity = Severity

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class ComputeCapability(IntEnum):
    NONE = 0
    CURRENT = 1
    SM89 = 89
    SM120 = 120


class Diagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


class Config:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def clear_flag(self, flag: str) -> None:
        self._script.asked["cleared"] = flag

    def set_flag(self, flag: str) -> None:
        self._script.asked.setdefault("set", []).append(flag)

    def create_timing_cache(self, stored: bytes) -> Timings | None:
        if stored and stored == self._script.strange:
            return None
        return Timings(set(stored.split()))

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._timings = cache
        return True

    def get_timing_cache(self) -> Timings:
        return self._timings

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        self._script.asked.setdefault("targets", {})[index] = capability.name
        return index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: Profile) -> int:
        self._script.asked.setdefault("profiles", []).append(profile.shapes)
        return len(self._script.asked["profiles"]) - 1 if self._script.profiles else -1


class Timings:
    """Measurements by name; a build adds those of its script."""

    def __init__(self, names: set[bytes]) -> None:
        self.names = names

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.names |= other.names
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.names))


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, name: str, smallest: Shape, usual: Shape, largest: Shape) -> None:
        self.shapes[name] = (smallest, usual, largest)


class Builder:
    def __init__(self, script: Script, logger: BaseLogger) -> None:
        self._script, self._logger = script, logger
        self.max_threads = 0

    def create_network(self, flags: int) -> object:
        self._script.asked["flags"] = flags
        return SimpleNamespace(num_layers=0)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def create_builder_config(self) -> Config:
        return Config(self._script)

    def build_serialized_network(self, network: object, config: Config) -> bytes | None:
        self._script.asked["threads"] = self.max_threads
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, self._script.steps)
        for step in range(self._script.steps):
            if not monitor.step_complete("Building engine", step):
                self._logger.log(Severity.ERROR, "BuildCanceled")
                return None
            time.sleep(0.001)
        monitor.phase_finish("Building engine")
        if self._script.build_message is not None:
            self._logger.log(Severity.ERROR, self._script.build_message)
            return None
        asked, script = self._script.asked, self._script
        asked["verbosity"] = config.profiling_verbosity
        if hasattr(config, "_timings"):
            asked["timings"] = sorted(config.get_timing_cache().names)
            config.get_timing_cache().names.update(script.measures)
        rows = [shapes["x"][1][0] for shapes in asked.get("profiles", ())]
        streamed = 1000 if "WEIGHT_STREAMING" in asked.get("set", ()) else 0
        return plan_bytes(
            script.version,
            script.magic,
            scratch=script.scratch,
            rows=rows,
            unused=script.unused,
            streamed=streamed,
        )


class Parser:
    def __init__(self, script: Script, network: object, logger: BaseLogger) -> None:
        self._script = script
        self.num_errors = len(script.parser_errors)

    def parse_from_file(self, path: str) -> bool:
        self._script.asked["parsed"] = path
        return not self._script.parser_errors

    def get_error(self, index: int) -> object:
        node, operator, text = self._script.parser_errors[index]
        return SimpleNamespace(
            node_name=lambda: node, node_operator=lambda: operator, desc=lambda: text
        )


class Engine:
    """What a scripted plan says of itself; x and y are [rows,3], or [2,3] without profiles."""

    def __init__(self, script: Script, logger: BaseLogger, plan: Any) -> None:
        self._script, self._logger = script, logger
        self._base, self.rows = plan["scratch"], plan["rows"]
        self.streamable_weights_size, self._budget = plan["streamed"], 0
        self.names = ["x", *plan["unused"], "y"]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = max(1, len(self.rows))

    @property
    def device_memory_size_v2(self) -> int:
        needs = map(self.get_device_memory_size_for_profile_v2, range(len(self.rows)))
        return max(needs, default=self._base)

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self._base + (12 * self.rows[profile] if self.rows else 0)

    def get_weight_streaming_automatic_budget(self) -> int:
        return self._script.room

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        assert self.streamable_weights_size
        self._budget = budget
        self._base += self.streamable_weights_size - budget  # where they pass through
        self._script.calls.append(f"budget {budget}")

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> object:
        return SimpleNamespace(itemsize=4)

    def get_tensor_shape(self, name: str) -> Shape:
        assert name in self.names
        return (-1, 3) if self.rows else (2, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        return [(self.rows[profile], 3)] * 3

    def create_engine_inspector(self) -> SimpleNamespace:
        def told(form: str) -> str | None:
            assert isinstance(inspector.execution_context, Context)
            assert form == "json"
            return self._script.layers

        inspector = SimpleNamespace(execution_context=None, get_engine_information=told)
        return inspector

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, given: RuntimeConfig | str) -> Context:
        strategy, compiles = (given, None) if isinstance(given, str) else given.asked
        self._script.asked |= {"strategy": strategy, "compiles": compiles}
        self._script.asked["budget"] = self.weight_streaming_budget_v2
        return Context(self._script, self._logger, self)


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self._strategy = strategy

    @property
    def asked(self) -> tuple[str, str]:
        return self._strategy, self.dynamic_shapes_kernel_specialization_strategy


class Context:
    """Doubles x into y by way of its scratch memory, at the addresses of the moment it is told to.

    While the device captures, it keeps what it would do for the replay, as CUDA does.
    """

    def __init__(self, script: Script, logger: BaseLogger, engine: Engine) -> None:
        self._script, self._logger, self._engine = script, logger, engine
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._profile = 0
        self._rows = 0 if engine.rows else 2
        if script.capturable is not None:
            self.is_stream_capturable = lambda stream: stream == 77 and script.capturable

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._script.asked.setdefault("chosen", []).append((profile, stream))
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._rows = shape[0]
        return shape == (self._engine.rows[self._profile], 3) and self._script.profiles

    def get_tensor_shape(self, name: str) -> Shape:
        return (self._rows, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._script.addresses.append(name)
        self._addresses[name] = address
        return name in self._script.known_tensors

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)
        self._script.calls.append("scratch")

    def execute_async_v3(self, stream: int) -> bool:
        self._script.streams.append(stream)
        if self._script.run_message is not None:
            self._logger.log(Severity.ERROR, self._script.run_message)
        address, size = self._scratch
        need = self._engine.get_device_memory_size_for_profile_v2(self._profile)
        if not address or size < need or self._addresses.keys() != set(self._engine.names):
            self._logger.log(Severity.ERROR, f"{size} bytes at {address} for {need}")
            return False
        places = (self._addresses["x"], address, self._addresses["y"])
        work = partial(doubled, 3 * self._rows, *places)
        if self._script.recording is not None:
            self._script.recording.append(work)
            return self._script.runs
        self._script.calls.append("enqueue")
        work()
        return self._script.runs


def doubled(count: int, source: int, scratch: int, target: int) -> None:
    places = (source, scratch, target)
    read, between, write = ((ctypes.c_float * count).from_address(place) for place in places)
    for index in range(count):
        between[index] = read[index]
    for index in range(count):
        write[index] = 2 * between[index]


class Runtime:
    def __init__(self, script: Script, logger: BaseLogger) -> None:
        self._script, self._logger = script, logger

    def get_engine_validity(self, plan: mmap) -> tuple[int, int]:
        return self._script.validity, self._script.diagnostics

    def deserialize_cuda_engine(self, plan: mmap) -> Engine | None:
        self._script.loads += 1
        if self._script.load_message is not None:
            self._logger.log(Severity.ERROR, self._script.load_message)
            return None
        return Engine(self._script, self._logger, json.loads(plan[len(plan_head()) :]))


class Library:
    """The part of tensorrt's module that the backend touches."""

    ILogger = BaseLogger
    IProgressMonitor = object
    BuilderFlag = SimpleNamespace(TF32="TF32", WEIGHT_STREAMING="WEIGHT_STREAMING")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerType = SimpleNamespace(SHUFFLE=0, CAST=1, DEQUANTIZE=2, MATRIX_MULTIPLY=3)
    EngineValidity = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    EngineInvalidityDiagnostics = Diagnostics
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, script: Script, *, typed_flag: bool = True, targets: bool = True) -> None:
        self.__version__ = script.version
        self.NetworkDefinitionCreationFlag = SimpleNamespace(
            **({"STRONGLY_TYPED": 1} if typed_flag else {})
        )
        if targets:
            self.ComputeCapability = ComputeCapability
        if script.layers is not None:
            self.LayerInformationFormat = SimpleNamespace(JSON="json")
        if script.eager:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.Builder = lambda logger: Builder(script, logger)
        self.OnnxParser = lambda network, logger: Parser(script, network, logger)
        self.Runtime = lambda logger: Runtime(script, logger)


class HostDevice:
    """Host memory in the place of a GPU; ``script`` is that of the library that runs on it."""

    def __init__(self, capability: str | None = "sm89", script: Script | None = None) -> None:
        self._capability, self._script = capability, script or Script()

    def capability(self) -> str | None:
        return self._capability

    def empty(self, spec: TensorSpec) -> torch.Tensor:
        if spec.dtype == "uint8":
            self._script.arenas.append(math.prod(spec.shape))
            return torch.full(spec.shape, 0xFF, dtype=torch.uint8)
        return torch.full(spec.shape, float("nan"))

    @contextmanager
    def stream(self) -> Iterator[int]:
        yield 77

    def is_capturing(self) -> bool:
        return False

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        script, recorded = self._script, list[Callable[[], None]]()
        script.calls.append("capture")
        script.recording = recorded
        try:
            launch()
        except RunError as error:
            raise RuntimeError(str(error)) from error
        finally:
            script.recording = None
        if script.capture_error is not None:
            raise RuntimeError(script.capture_error)

        def replay() -> None:
            script.calls.append("replay")
            if script.replay_error is not None:
                raise RuntimeError(script.replay_error)
            for work in recorded:
                work()

        return replay


def plan_head(version: str = VERSION, magic: bytes = b"vtrt") -> bytes:
    """A plan's header as the library writes it, and some weights."""
    head = magic + struct.pack("<5I", 0, 2, 0, 1000, 0)
    return head + bytes(int(part) for part in version.split(".")) + b"weights" * 10


def plan_bytes(
    version: str = VERSION,
    magic: bytes = b"vtrt",
    *,
    scratch: int = 24,
    rows: Sequence[int] = (),
    unused: Sequence[str] = (),
    streamed: int = 0,
) -> bytes:
    """A plan that says how much scratch memory it needs, what rows its profiles are for, and how
    many bytes of weights it can stream.
    """
    said = {"scratch": scratch, "rows": list(rows), "unused": list(unused), "streamed": streamed}
    return plan_head(version, magic) + json.dumps(said).encode()


# --- fixtures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    name: str
    files: tuple[str, ...]
    signature: GraphSignature = SIGNATURE


@pytest.fixture
def graph(tmp_path: Path) -> StageGraph:
    return StageGraph(
        name="stage1.full",
        signature=SIGNATURE,
        module=torch.nn.Linear(1, 1),
        onnx=tmp_path / "stage1.full.onnx",
        weights=tmp_path / "weights.bin",
        source=tmp_path,
    )


def rtx(
    script: Script | None = None, capability: str | None = "sm89", **options: Any
) -> TensorRTBackend:
    script = script or Script()
    device = HostDevice(capability, script)
    return TensorRTBackend(RTX, library=Library(script), device=device, **options)


def built(folder: Path, graph: StageGraph, **options: Any) -> Record:
    files = rtx().build(graph, BuildOptions(folder=folder, **options))
    return Record(graph.name, files)


# --- building ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "name", "told"),
    [
        ((), "stage1.full.any.plan", None),
        (("sm89",), "stage1.full.sm89.plan", {0: "SM89"}),
        (("sm120", "sm89", "sm120"), "stage1.full.sm89-sm120.plan", {0: "SM89", 1: "SM120"}),
    ],
)
def test_a_plan_is_built_for_its_targets_and_named_after_them(
    folder: Path,
    graph: StageGraph,
    targets: tuple[str, ...],
    name: str,
    told: dict[int, str] | None,
) -> None:
    script = Script()
    files = rtx(script).build(graph, BuildOptions(folder=folder, targets=targets, threads=3))
    assert files == (name, name.replace(".plan", ".products.json"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert (folder / name).read_bytes() == plan_bytes()
    assert script.asked.get("targets") == told
    assert script.asked["threads"] == 3
    assert script.asked["parsed"] == str(graph.onnx)
    assert script.asked["cleared"] == "TF32"


@pytest.mark.parametrize(("typed_flag", "flags"), [(True, 2), (False, 0)], ids=["10", "11"])
def test_strong_typing_is_asked_for_where_it_is_a_choice(
    folder: Path, graph: StageGraph, typed_flag: bool, flags: int
) -> None:
    script = Script()
    library = Library(script, typed_flag=typed_flag)
    TensorRTBackend(RTX, library=library, device=HostDevice()).build(
        graph, BuildOptions(folder=folder)
    )
    assert script.asked["flags"] == flags


def test_tensorrt_builds_for_its_own_gpu_only(folder: Path, graph: StageGraph) -> None:
    def enterprise(capability: str | None) -> TensorRTBackend:
        library = Library(Script(), targets=False)
        return TensorRTBackend(ENTERPRISE, library=library, device=HostDevice(capability))

    options = BuildOptions(folder=folder)
    assert enterprise("sm90").build(graph, options)[0] == "stage1.full.sm90.plan"
    assert enterprise("sm90").describe().targets == ()
    with pytest.raises(IncompatibleOptions, match="it builds for its GPU"):
        enterprise("sm90").build(graph, replace(options, targets=("sm89",)))
    with pytest.raises(BackendUnavailable, match="to build and run engines"):
        enterprise(None).build(graph, options)


def test_layers_are_named_for_a_profiler(folder: Path, graph: StageGraph) -> None:
    script = Script()
    rtx(script).build(graph, BuildOptions(folder=folder))
    assert script.asked["verbosity"] == "detailed"
    assert "set" not in script.asked


# --- timings ----------------------------------------------------------------------------------


def enterprise(script: Script) -> TensorRTBackend:
    script.magic = ENTERPRISE.magic
    library = Library(script, targets=False)
    return TensorRTBackend(ENTERPRISE, library=library, device=HostDevice("sm90", script))


def test_a_build_takes_what_earlier_ones_measured(
    folder: Path, graph: StageGraph, tmp_path: Path
) -> None:
    timings = tmp_path / "cache" / "timings"
    options = BuildOptions(folder=folder, timings=timings)
    first, second = Script(measures={b"one"}), Script(measures={b"two"})
    enterprise(first).build(graph, options)
    enterprise(second).build(graph, options)
    assert first.asked["timings"] == []
    assert second.asked["timings"] == [b"one"]
    stored = timings / f"tensorrt-{VERSION}-sm90.timings"
    assert stored.read_bytes() == b"one two"


def test_builds_at_the_same_time_keep_each_others_timings(
    folder: Path, graph: StageGraph, tmp_path: Path
) -> None:
    stored = tmp_path / f"tensorrt-{VERSION}-sm90.timings"
    written: list[float] = []

    def meanwhile(phase: str, fraction: float) -> None:
        if not written:
            stored.write_bytes(b"other")
        written.append(fraction)

    options = BuildOptions(folder=folder, timings=tmp_path, progress=meanwhile)
    enterprise(Script()).build(graph, options)
    assert stored.read_bytes() == b"kernel other"


def test_timings_that_the_library_refuses_are_measured_anew_and_it_is_said(
    folder: Path, graph: StageGraph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = tmp_path / f"tensorrt-{VERSION}-sm90.timings"
    stored.write_bytes(b"strange")
    script = Script(strange=b"strange")
    enterprise(script).build(graph, BuildOptions(folder=folder, timings=tmp_path))
    assert script.asked["timings"] == []
    assert stored.read_bytes() == b"kernel"
    assert "no timings that this library takes" in caplog.text


def test_an_engine_is_built_where_its_timings_cannot_be_kept(
    folder: Path, graph: StageGraph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    options = BuildOptions(folder=folder, timings=tmp_path / "file" / "timings")
    assert enterprise(Script()).build(graph, options)
    assert "timings are not kept" in caplog.text


def test_a_failed_build_and_a_library_that_times_nothing_keep_no_timings(
    folder: Path, graph: StageGraph, tmp_path: Path
) -> None:
    timings = tmp_path / "timings"
    options = BuildOptions(folder=folder, timings=timings)
    with pytest.raises(BuildError):
        enterprise(Script(build_message="no kernel")).build(graph, options)
    script = Script()
    rtx(script).build(graph, options)
    assert "timings" not in script.asked
    assert not timings.exists()


def test_options_it_cannot_honour_are_refused(folder: Path, graph: StageGraph) -> None:
    options = BuildOptions(folder=folder)
    with pytest.raises(IncompatibleOptions, match=r"sm90.*expected one of sm89, sm120"):
        rtx().build(graph, replace(options, targets=("sm89", "sm90")))
    with pytest.raises(UnsupportedPrecision):
        rtx().build(graph, replace(options, precision="int4"))
    with pytest.raises(BuildError, match="float32; expected bfloat16 for --precision bf16"):
        rtx().build(graph, replace(options, precision="bf16"))
    with pytest.raises(ValueError, match="not exported"):
        rtx().build(replace(graph, onnx=None), options)
    assert list(folder.iterdir()) == []


def test_parser_errors_name_the_node(folder: Path, graph: StageGraph) -> None:
    errors = (("x_embedder/MatMul", "MatMul", "bad shape"), ("proj_out/Add", "Add", "bad type"))
    with pytest.raises(BuildError) as caught:
        rtx(Script(parser_errors=errors)).build(graph, BuildOptions(folder=folder))
    assert "x_embedder/MatMul (MatMul): bad shape; proj_out/Add (Add): bad type" in str(
        caught.value
    )


def test_a_builder_that_gives_up_is_quoted_and_only_it(folder: Path, graph: StageGraph) -> None:
    backend = rtx(script := Script())
    for message in ("no tactic for MatMul", "not enough workspace"):
        script.build_message = message
        with pytest.raises(BuildError) as caught:
            backend.build(graph, BuildOptions(folder=folder))
        assert caught.value.given == f"stage1.full does not build: {message}"
    assert list(folder.iterdir()) == []


def test_progress_rises_to_one(folder: Path, graph: StageGraph) -> None:
    told: list[tuple[str, float]] = []
    built(folder, graph, progress=lambda *heard: told.append(heard))
    fractions = [fraction for _, fraction in told]
    assert {phase for phase, _ in told} == {"build stage1.full"}
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] == 1.0


def test_a_listener_that_raises_stops_the_build_and_is_heard(
    folder: Path, graph: StageGraph
) -> None:
    told: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        told.append(fraction)
        raise LookupError("listener")

    with pytest.raises(LookupError, match="listener"):
        rtx(Script(steps=1000)).build(graph, BuildOptions(folder=folder, progress=progress))
    assert len(told) == 1
    assert list(folder.iterdir()) == []


def test_an_interrupt_stops_the_build_cleanly(folder: Path, graph: StageGraph) -> None:
    told: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        if not told:
            _thread.interrupt_main()
        told.append(fraction)

    with pytest.raises(KeyboardInterrupt):
        rtx(Script(steps=5000)).build(graph, BuildOptions(folder=folder, progress=progress))
    assert told[-1] < 0.5
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_nesting_of_phases_gives_rising_fractions(seed: int) -> None:
    rng = random.Random(seed)
    told: list[float] = []
    monitor = Monitor("title", lambda phase, fraction: told.append(fraction))

    def phase(name: str, parent: str | None, depth: int) -> None:
        steps = rng.randint(0, 5)
        monitor.start(name, parent, steps)
        for step in range(steps):
            if depth and rng.random() < 0.5:
                phase(f"{name}.{step}", name, depth - 1)
            assert monitor.step(name, step)
        monitor.finish(name)

    for root in range(3):
        phase(str(root), None, 3)
    assert told == sorted(set(told))
    assert all(0 <= fraction <= 1 for fraction in told)
    monitor.cancel.set()
    monitor.start("late", None, 2)
    assert not monitor.step("late", 0)


# --- preflight --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no tensorrt-rtx plan"),
        (plan_bytes()[:27], "is no tensorrt-rtx plan"),
        (plan_bytes(magic=b"ftrt"), "is no tensorrt-rtx plan"),
        (plan_bytes("1.6.0.9"), "was built with tensorrt-rtx 1.6.0.9; this is 1.7.1.116"),
    ],
)
def test_a_foreign_plan_is_refused_by_its_header(
    folder: Path, graph: StageGraph, data: bytes, said: str
) -> None:
    record = built(folder, graph)
    (folder / record.files[0]).write_bytes(data)
    with pytest.raises(EnvironmentMismatch) as caught:
        rtx().load(folder, record)
    assert said in caught.value.given


def test_enterprise_plans_have_their_own_header(folder: Path) -> None:
    (folder / "stage1.full.sm90.plan").write_bytes(plan_bytes("10.9.0.34", magic=b"ftrt"))
    record = Record("stage1.full", ("stage1.full.sm90.plan",))
    library = Library(Script(version="10.9.0.34"), targets=False)
    backend = TensorRTBackend(ENTERPRISE, library=library, device=HostDevice("sm90"))
    assert backend.load(folder, record).signature == SIGNATURE


@pytest.mark.parametrize(
    ("targets", "capability", "fits"),
    [
        (("sm89",), "sm89", True),
        (("sm89", "sm120"), "sm120", True),
        ((), "sm120", True),
        (("sm89",), "sm120", False),
        ((), "sm90", False),
        (("sm89",), None, False),
        ((), None, False),
    ],
)
def test_a_plan_is_loaded_on_its_gpus_only(
    folder: Path,
    graph: StageGraph,
    targets: tuple[str, ...],
    capability: str | None,
    fits: bool,
) -> None:
    record = built(folder, graph, targets=targets)
    backend = rtx(capability=capability)
    if fits:
        backend.load(folder, record)
        return
    with pytest.raises(EnvironmentMismatch) as caught:
        backend.load(folder, record)
    assert (capability or "no usable NVIDIA GPU") in caught.value.given
    assert all(target in caught.value.expected for target in targets or ("sm89", "sm120"))


def test_the_librarys_own_verdict_is_passed_on(folder: Path, graph: StageGraph) -> None:
    record = built(folder, graph)
    runner = rtx(Script(validity=2, diagnostics=5)).load(folder, record)
    with pytest.raises(EnvironmentMismatch, match="version mismatch, old cuda driver"), runner:
        pass
    with rtx(Script(validity=1)).load(folder, record):
        pass


# --- running ----------------------------------------------------------------------------------


def test_a_runner_computes_from_buffers_that_stay_where_they_are(
    folder: Path, graph: StageGraph
) -> None:
    record = built(folder, graph)
    script = Script()
    with rtx(script).load(folder, record) as runner:
        first = runner({"x": torch.ones(2, 3)})["y"]
        assert first.tolist() == [[2.0] * 3] * 2
        second = runner({"x": torch.arange(6.0).reshape(3, 2).T})["y"]
        assert second.tolist() == [[0.0, 4.0, 8.0], [2.0, 6.0, 10.0]]
        assert first.data_ptr() == second.data_ptr()
    assert script.addresses == ["x", "y"]
    assert script.streams == [77, 77]


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (Script(load_message="Serialization assertion"), EngineFailed, "Serialization assertion"),
        (Script(load_message="CUDA out of memory"), OutOfDeviceMemory, "CUDA out of memory"),
        (Script(known_tensors=("x",)), EngineFailed, "has no tensor y"),
    ],
)
def test_a_plan_that_does_not_load_is_quoted(
    folder: Path, graph: StageGraph, script: Script, kind: type[Exception], said: str
) -> None:
    runner = rtx(script).load(folder, built(folder, graph))
    with pytest.raises(kind, match=said), runner:
        pass


def test_a_failed_run_is_told_with_its_own_errors(folder: Path, graph: StageGraph) -> None:
    record = built(folder, graph)
    library = Library(script := Script())
    device = HostDevice(script=script)
    backend = TensorRTBackend(RTX, cuda_graphs=False, library=library, device=device)
    inputs = {"x": torch.ones(2, 3)}
    with backend.load(folder, record) as runner:
        script.run_message = "recovered from out of memory"
        runner(inputs)
        script.run_message, script.runs = None, False
        with pytest.raises(EngineFailed, match="did not start; expected"):
            runner(inputs)
        backend.build(graph, BuildOptions(folder=folder))  # shares the library's one logger
        script.run_message = "illegal address"
        with pytest.raises(EngineFailed, match="did not start: illegal address"):
            runner(inputs)
        script.run_message = "out of memory"
        with pytest.raises(OutOfDeviceMemory):
            runner(inputs)
    with listening(library) as (logger, _):
        assert len(logger.listeners) == 1  # nobody listens beyond a scope


# --- scratch memory ---------------------------------------------------------------------------


def engines(folder: Path, graph: StageGraph, *needs: int) -> list[Record]:
    """One engine for each number of bytes of scratch memory."""
    records = []
    for index, need in enumerate(needs):
        one = replace(graph, name=f"stage{index + 1}.full")
        files = rtx(Script(scratch=need)).build(one, BuildOptions(folder=folder))
        records.append(Record(one.name, files))
    return records


def doubles(runner: Any, value: float) -> bool:
    outputs = runner({"x": torch.full((2, 3), float(value))})
    return bool((outputs["y"] == 2 * value).all())


def test_engines_share_one_arena_of_the_largest_need(folder: Path, graph: StageGraph) -> None:
    script = Script()
    backend = rtx(script)
    with ExitStack() as scope:
        runners = [
            scope.enter_context(backend.load(folder, record))
            for record in engines(folder, graph, 24, 4096, 300)
        ]
        assert script.arenas == []  # nothing runs yet, and the largest may still be to come
        for value, runner in enumerate(runners * 3):
            assert doubles(runner, value)
    assert script.arenas == [4096]
    assert (script.asked["strategy"], script.asked["compiles"]) == ("user managed", "eager")
    assert script.calls.count("scratch") == len(runners)


def test_an_engine_that_comes_later_moves_the_arena_for_all(
    folder: Path, graph: StageGraph
) -> None:
    script = Script()
    backend = rtx(script)
    small, large = engines(folder, graph, 24, 1 << 20)
    with backend.load(folder, small) as first:
        assert all(doubles(first, value) for value in range(3))
        with backend.load(folder, large) as second:
            script.calls.clear()
            assert all(doubles(first, value) for value in range(3))
            # The graph knew the old address: told the new one, the engine warms up again.
            assert script.calls == ["scratch", "enqueue", "capture", "replay", "replay"]
            assert doubles(second, 5.0)
        assert script.arenas == [24, 1 << 20]
        assert doubles(first, 6.0)
    with backend.load(folder, small) as again:
        assert doubles(again, 7.0)
    assert script.arenas == [24, 1 << 20, 24]  # freed with the last runner, and of its size again


# --- weights that stay on the host ------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 400, 1000])
def test_streamed_weights_get_the_room_there_is_before_there_is_a_context(
    folder: Path, graph: StageGraph, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(room=room)
    backend = rtx(script)
    files = backend.build(graph, BuildOptions(folder=folder, stream_weights=True))
    assert script.asked["set"] == ["WEIGHT_STREAMING"]
    with (
        caplog.at_level(logging.INFO, logger="fresco_trt.tensorrt"),
        backend.load(folder, Record(graph.name, files)) as runner,
    ):
        assert doubles(runner, 3.0)
    assert script.asked["budget"] == room
    assert f"{room} of 1000 bytes of weights stay on the device" in caplog.text
    assert script.arenas == [24 + 1000 - room]  # what passes through needs scratch memory


def test_weights_are_not_streamed_unless_the_plan_was_built_for_it(
    folder: Path, graph: StageGraph
) -> None:
    script = Script(room=400)
    backend = rtx(script)
    files = backend.build(graph, BuildOptions(folder=folder))
    with backend.load(folder, Record(graph.name, files)) as runner:
        assert doubles(runner, 3.0)
    assert not any(call.startswith("budget") for call in script.calls)


def test_an_engine_without_scratch_memory_runs(folder: Path, graph: StageGraph) -> None:
    script = Script()
    (record,) = engines(folder, graph, 0)
    with rtx(script).load(folder, record) as runner:
        runner({"x": torch.ones(2, 3)})
    assert script.arenas == [1]


def test_backends_share_nothing(folder: Path, graph: StageGraph) -> None:
    script = Script()
    (record,) = engines(folder, graph, 64)
    with rtx(script).load(folder, record) as one, rtx(script).load(folder, record) as other:
        assert doubles(one, 1.0)
        assert doubles(other, 2.0)
    assert script.arenas == [64, 64]


# --- profiles ---------------------------------------------------------------------------------


def signature_of(rows: int) -> GraphSignature:
    return GraphSignature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(rows, 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(rows, 3)),),
    )


ROWS = (2, 5, 9)


def built_for_all(
    folder: Path, graph: StageGraph, script: Script, rows: tuple[int, ...] = ROWS
) -> list[Record]:
    """One engine for several numbers of rows, as the record of each stage that uses it."""
    signatures = tuple(signature_of(each) for each in rows)
    of_all = replace(graph, name="full", signature=signatures[-1], profiles=signatures)
    files = rtx(script).build(of_all, BuildOptions(folder=folder))
    return [Record(f"stage{k + 1}.full", files, each) for k, each in enumerate(signatures)]


def doubled_rows(runner: Any, value: float) -> bool:
    rows = runner.signature.inputs[0].shape[0]
    given = torch.arange(3.0 * rows).reshape(rows, 3) + value
    return torch.equal(runner({"x": given})["y"], 2 * given)


def test_a_plan_has_one_profile_of_one_shape_for_each_stage(
    folder: Path, graph: StageGraph
) -> None:
    script = Script()
    records = built_for_all(folder, graph, script)
    assert {record.files for record in records} == {("full.any.plan", "full.any.products.json")}
    assert script.asked["profiles"] == [{"x": ((rows, 3),) * 3} for rows in ROWS]


def test_a_profile_that_the_builder_refuses_is_named(folder: Path, graph: StageGraph) -> None:
    with pytest.raises(BuildError, match=r"refuses the profile x float32\[2,3\] of full"):
        built_for_all(folder, graph, Script(profiles=False))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("eager", [True, False])
def test_stages_of_one_plan_share_its_weights_and_have_their_own_context(
    folder: Path, graph: StageGraph, eager: bool
) -> None:
    records = built_for_all(folder, graph, Script())
    script = Script(eager=eager)
    backend = rtx(script)
    with ExitStack() as scope:
        runners = [scope.enter_context(backend.load(folder, record)) for record in records]
        for value in range(3):
            assert all(doubled_rows(runner, float(value)) for runner in runners)
    assert script.loads == 1
    assert script.asked["chosen"] == [(0, 77), (1, 77), (2, 77)]
    assert script.asked["compiles"] == ("eager" if eager else None)
    assert script.arenas == [24 + 12 * max(ROWS)]
    assert (script.calls.count("capture"), script.calls.count("replay")) == (3, 6)


def test_a_stage_takes_the_scratch_memory_of_its_own_profile(
    folder: Path, graph: StageGraph
) -> None:
    first, *_ = built_for_all(folder, graph, Script())
    with rtx(script := Script()).load(folder, first) as runner:
        assert doubled_rows(runner, 1.0)
    assert script.arenas == [24 + 12 * ROWS[0]]


def test_a_plan_leaves_the_device_with_its_last_runner(folder: Path, graph: StageGraph) -> None:
    first, second, _ = built_for_all(folder, graph, Script())
    backend = rtx(script := Script())
    with backend.load(folder, first):
        pass
    with backend.load(folder, second) as runner:
        assert doubled_rows(runner, 1.0)
        with backend.load(folder, first) as other:
            assert doubled_rows(other, 1.0)
    assert script.loads == 2


def test_a_plan_that_was_built_again_is_loaded_again(folder: Path, graph: StageGraph) -> None:
    first, *_ = built_for_all(folder, graph, Script())
    backend = rtx(script := Script())
    with backend.load(folder, first) as old:
        _, second = built_for_all(folder, graph, Script(), rows=(2, 7))
        with backend.load(folder, second) as runner:
            assert doubled_rows(runner, 1.0)
        assert doubled_rows(old, 2.0)
    assert script.loads == 2


def test_a_size_without_a_profile_is_refused(folder: Path, graph: StageGraph) -> None:
    first, *_ = built_for_all(folder, graph, Script())
    stranger = replace(first, signature=signature_of(4))
    runner = rtx().load(folder, stranger)
    with pytest.raises(EngineFailed, match=r"has no profile for x float32\[4,3\]"), runner:
        pass
    runner = rtx(Script(profiles=False)).load(folder, first)
    with pytest.raises(EngineFailed, match=r"does not take x float32\[2,3\]"), runner:
        pass


def test_an_output_that_only_other_stages_use_is_written_and_dropped(
    folder: Path, graph: StageGraph
) -> None:
    known = ("x", "y", "feature")
    records = built_for_all(folder, graph, Script(unused=("feature",)))
    script = Script(known_tensors=known)
    with rtx(script).load(folder, records[1]) as runner:
        assert doubled_rows(runner, 1.0)
        assert runner({"x": torch.ones(5, 3)}).keys() == {"y"}
    assert sorted(script.addresses) == sorted(known)
    assert 4 * 5 * 3 in script.arenas


# --- CUDA graphs ------------------------------------------------------------------------------


def test_the_second_call_captures_and_later_ones_replay(folder: Path, graph: StageGraph) -> None:
    script = Script()
    with rtx(script).load(folder, built(folder, graph)) as runner:
        for value in range(4):
            assert doubles(runner, value)  # each replay reads the inputs of its own call
    assert script.calls == ["scratch", "enqueue", "capture", "replay", "replay", "replay"]
    assert script.addresses == ["x", "y"]
    assert script.streams == [77, 77]


def test_every_engine_has_a_graph_of_its_own(folder: Path, graph: StageGraph) -> None:
    script = Script()
    backend = rtx(script)
    first, second = engines(folder, graph, 24, 24)
    with backend.load(folder, first) as one, backend.load(folder, second) as other:
        for value in range(3):
            assert doubles(one, value)
            assert doubles(other, -value)
    assert (script.calls.count("capture"), script.calls.count("replay")) == (2, 4)


def test_a_runner_entered_again_warms_up_again(folder: Path, graph: StageGraph) -> None:
    script = Script()
    runner = rtx(script).load(folder, built(folder, graph))
    for _ in range(2):
        script.calls.clear()
        with runner:
            assert doubles(runner, 1.0)
            assert doubles(runner, 2.0)
        assert script.calls == ["scratch", "enqueue", "capture", "replay"]


def test_graphs_can_be_turned_off(folder: Path, graph: StageGraph) -> None:
    script = Script()
    backend = rtx(script, cuda_graphs=False)
    with backend.load(folder, built(folder, graph)) as runner:
        assert all(doubles(runner, value) for value in range(3))
    assert script.calls == ["scratch", "enqueue", "enqueue", "enqueue"]


@pytest.mark.parametrize(
    ("script", "said", "tried"),
    [
        (Script(capture_error="operation not permitted when stream is capturing"), "not perm", 1),
        (Script(capturable=False), "cannot be captured", 0),
        (Script(capturable=None, capture_error="invalidated"), "invalidated", 1),
    ],
)
def test_an_engine_that_cannot_be_captured_goes_on_and_says_so_once(
    folder: Path,
    graph: StageGraph,
    caplog: pytest.LogCaptureFixture,
    script: Script,
    said: str,
    tried: int,
) -> None:
    with caplog.at_level(logging.WARNING), rtx(script).load(folder, built(folder, graph)) as runner:
        assert all(doubles(runner, value) for value in range(4))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("stage1.full runs without a CUDA graph: ")
    assert said in warning
    assert script.calls.count("capture") == tried
    assert script.calls.count("enqueue") == 4


def test_an_engine_that_fails_while_it_is_captured_is_enqueued_and_told_by_that(
    folder: Path, graph: StageGraph, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script()
    with rtx(script).load(folder, built(folder, graph)) as runner:
        assert doubles(runner, 1.0)
        script.runs, script.run_message = False, "illegal address"
        with pytest.raises(EngineFailed) as caught:
            runner({"x": torch.ones(2, 3)})
        assert caught.value.given == "the engine did not start: illegal address"
        assert "illegal address" in caplog.text
        script.runs, script.run_message = True, None
        assert doubles(runner, 2.0)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: unspecified launch failure", EngineFailed),
        ("out of memory", OutOfDeviceMemory),
    ],
)
def test_a_graph_that_cannot_be_launched_is_an_error(
    folder: Path, graph: StageGraph, message: str, kind: type[Exception]
) -> None:
    script = Script()
    with rtx(script).load(folder, built(folder, graph)) as runner:
        assert all(doubles(runner, value) for value in range(2))
        script.replay_error = message
        with pytest.raises(kind, match=f"captured engine did not start: {message}"):
            runner({"x": torch.ones(2, 3)})
        script.replay_error = None
        assert doubles(runner, 3.0)


# --- what engines are made of -----------------------------------------------------------------


def test_the_inspector_of_an_engine_in_scope_is_asked_for_its_layers(
    folder: Path, graph: StageGraph
) -> None:
    layer = {"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "FP8"}]}
    told = Script(layers=json.dumps({"Layers": [layer]}))
    runner = rtx(told).load(folder, built(folder, graph))
    assert layers_of({"stage1.full": runner}) == []
    with runner:
        assert layers_of({"stage1.full": runner}) == [
            {"engine": "stage1.full", "layers": 1, "precisions": {"fp8": 1}, "products": {"fp8": 1}}
        ]


@pytest.mark.parametrize("said", [None, "", "no JSON"])
def test_an_inspector_that_tells_nothing_is_no_error(
    folder: Path, graph: StageGraph, said: str | None
) -> None:
    with rtx(Script(layers=said)).load(folder, built(folder, graph)) as runner:
        assert layers_of({"stage1.full": runner}) == []


# --- what is missing --------------------------------------------------------------------------

ABSENT = Flavour(
    name="tensorrt-rtx",
    module="tensorrt_that_is_not_there",
    install="pip install fresco-trt[rtx]",
    magic=b"vtrt",
    builds_anywhere=True,
)


def test_an_absent_library_is_named_with_the_command_that_adds_it(
    folder: Path, graph: StageGraph
) -> None:
    backend = TensorRTBackend(ABSENT, device=HostDevice())
    (missing,) = backend.check()
    assert missing.fix == "pip install fresco-trt[rtx]"
    facts = backend.describe()
    assert (facts.version, facts.targets) == (None, ())
    record = Record("stage1.full", ("stage1.full.sm89.plan",))
    calls: tuple[Callable[[], object], ...] = (
        lambda: backend.build(graph, BuildOptions(folder=folder)),
        lambda: backend.load(folder, record),
    )
    for call in calls:
        with pytest.raises(BackendUnavailable) as caught:
            call()
        assert caught.value.fix == missing.fix


@pytest.mark.parametrize(
    ("capability", "said"),
    [("sm89", None), (None, "an NVIDIA GPU"), ("sm90", "this one is sm90")],
)
def test_the_gpu_is_checked_against_what_the_library_can_use(
    capability: str | None, said: str | None
) -> None:
    found = rtx(capability=capability).check()
    assert len(found) == (0 if said is None else 1)
    assert all(said in missing.what for missing in found if said is not None)
