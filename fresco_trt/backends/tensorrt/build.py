"""From an ONNX file to a serialized TensorRT plan: parsing, progress, cancelling, errors.

The ahead-of-time half of ``tensorrt.py``; takes the library as a value, so that both libraries
and a scripted stand-in go the same way.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from fresco_trt.backends.base import BuildOptions, Progress, StageGraph
from fresco_trt.backends.tensorrt.timings import kept_timings
from fresco_trt.errors import BuildError

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature

_LOG = logging.getLogger("fresco_trt.tensorrt")
_Result = TypeVar("_Result")
_TELL_EVERY = 0.005
_LISTEN_EVERY = 0.1  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A serialized engine, in the library's own memory, and the matrix products of its network by
    the type they multiply.
    """

    data: memoryview
    products: Mapping[str, int]


def plan_from_onnx(
    library: Any, graph: StageGraph, targets: tuple[str, ...], options: BuildOptions
) -> Plan:
    """The plan of one graph for ``targets`` (empty: the library's default), with an optimisation
    profile of one shape for each of its profiles, and layers named for a profiler.

    Precision is the graph's own: the network is strongly typed, and float32 means float32, not
    TF32. Raises BuildError with the parser's or the builder's words; KeyboardInterrupt after a
    clean stop if the user interrupts.
    """
    monitor = Monitor(f"build {graph.name}", options.progress)
    with listening(library) as (logger, errors):
        builder = library.Builder(logger)
        if options.threads is not None:
            builder.max_threads = options.threads
        network = builder.create_network(_network_flags(library))
        parser = library.OnnxParser(network, logger)  # owns the weights until the build is done
        _parse(parser, graph)
        config = builder.create_builder_config()
        config.clear_flag(library.BuilderFlag.TF32)
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        if options.stream_weights:
            config.set_flag(library.BuilderFlag.WEIGHT_STREAMING)
        config.progress_monitor = monitor_of(library, monitor)
        _set_targets(library, config, targets)
        for signature in graph.profiles:
            _add_profile(builder, config, graph.name, signature)
        with kept_timings(config, options.timings):
            plan = interruptible(
                lambda: builder.build_serialized_network(network, config), monitor.cancel
            )
            if monitor.failure is not None:
                raise monitor.failure
            if plan is None:
                reason = "; ".join(errors) or "no reason given"
                raise _failed(f"{graph.name} does not build: {reason}")
        options.progress(f"build {graph.name}", 1.0)
        return Plan(data=memoryview(plan), products=products_of(library, network))


def products_of(library: Any, network: Any) -> dict[str, int]:
    """Matrix products of a parsed network, counted by the type of what they multiply.

    A product both of whose operands come out of a dequantising layer is one of that layer's codes
    ("int8", "fp8"): the builder fuses the three. Any other counts by its operands' own type.
    """
    kinds = library.LayerType
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers}
    through = (kinds.SHUFFLE, kinds.CAST)

    def multiplied(tensor: Any) -> str:
        maker = makers.get(tensor.name)
        while maker is not None and maker.type in through:
            maker = makers.get(maker.get_input(0).name)
        if maker is not None and maker.type == kinds.DEQUANTIZE:
            tensor = maker.get_input(0)
        return str(tensor.dtype).rpartition(".")[2].lower()

    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type == kinds.MATRIX_MULTIPLY:
            operands = {multiplied(layer.get_input(index)) for index in (0, 1)}
            found["/".join(sorted(operands))] += 1
    return dict(sorted(found.items()))


@contextmanager
def listening(library: Any) -> Iterator[tuple[Any, deque[str]]]:
    """The library's logger, and the errors that it reports meanwhile (the last fifty)."""
    logger = _logger_of(library)
    errors: deque[str] = deque(maxlen=50)
    logger.listeners.append(errors)
    try:
        yield logger, errors
    finally:
        logger.listeners[:] = [heard for heard in logger.listeners if heard is not errors]


@cache
def _logger_of(library: Any) -> Any:
    """One logger for each library: it keeps the first it is given and ignores all later ones."""
    kinds = library.ILogger.Severity
    # Errors reach the user as an exception; in the log they are detail.
    levels = {kinds.WARNING: logging.WARNING, kinds.VERBOSE: logging.DEBUG}
    faults = (kinds.INTERNAL_ERROR, kinds.ERROR)

    class Logger(library.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.listeners: list[deque[str]] = []

        def log(self, severity: Any, message: str) -> None:
            for listener in self.listeners if severity in faults else ():
                listener.append(message.strip())
            _LOG.log(levels.get(severity, logging.INFO), message)

    return Logger()


def _network_flags(library: Any) -> int:
    """TensorRT 10 asks for strong typing by a flag; later ones know nothing else."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(parser: Any, graph: StageGraph) -> None:
    """From the file, so that the shared weights are found beside it."""
    if parser.parse_from_file(str(graph.onnx)):
        return
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in found]
    raise _failed(f"{graph.name} cannot be parsed: {'; '.join(told) or 'no reason given'}")


def _set_targets(library: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = library.ComputeCapability.__members__[target.upper()]
        if not config.set_compute_capability(capability, index):
            raise _failed(f"the builder refuses the target {target}")


def _add_profile(builder: Any, config: Any, name: str, signature: GraphSignature) -> None:
    """Smallest, usual and largest shape are the same: kernels are chosen for this one alone."""
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        profile.set_shape(spec.name, spec.shape, spec.shape, spec.shape)
    if config.add_optimization_profile(profile) < 0:
        shapes = ", ".join(map(str, signature.inputs))
        raise _failed(f"the builder refuses the profile {shapes} of {name}")


def interruptible(work: Callable[[], _Result], cancel: threading.Event) -> _Result:
    """Run ``work`` in a thread; on Ctrl-C set ``cancel``, wait for it to stop, raise again.

    A build is one long native call: in this thread it would hold the interrupt back until its end.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(int).result()  # the thread is up before there is work to be waited for
        try:
            future = pool.submit(work)
            while not wait([future], timeout=_LISTEN_EVERY).done:
                pass  # a signal that another thread received is noticed between waits
            return future.result()
        except KeyboardInterrupt:
            cancel.set()
            raise  # leaving the pool waits for the builder, which stops at its next step


class Monitor:
    """Turns the builder's nested phases into one fraction, and carries a wish to stop.

    The fraction never falls and is told when it has grown by half a percent: builders report
    thousands of steps. Called from the builder's threads, where an exception would end the
    process: one raised by the listener is kept in ``failure`` and stops the build.
    """

    def __init__(self, title: str, progress: Progress) -> None:
        self.cancel = threading.Event()
        self.failure: Exception | None = None
        self._title = title
        self._progress = progress
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._told = -1.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, within a step of ``parent``."""
        with self._lock:
            self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, index: int) -> bool:
        """Step ``index`` of a phase is done; whether to go on."""
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, min(index + 1, steps))
            self._report()
        return not self.cancel.is_set()

    def finish(self, name: str) -> None:
        """A phase ends, also one that was cancelled."""
        with self._lock:
            self._phases.pop(name, None)

    def _report(self) -> None:
        roots = [name for name, (parent, _, _) in self._phases.items() if parent is None]
        fraction = max((self._fraction(root) for root in roots), default=0.0)
        if fraction < self._told + _TELL_EVERY:
            return
        self._told = fraction
        try:
            self._progress(self._title, fraction)
        except Exception as error:  # see the class: it must not reach the builder
            self.failure = error
            self.cancel.set()

    def _fraction(self, name: str) -> float:
        """Done steps of a phase plus what its running children have done of the current one."""
        _, steps, done = self._phases[name]
        children = [child for child, (parent, _, _) in self._phases.items() if parent == name]
        within = max((self._fraction(child) for child in children), default=0.0)
        return min((done + within) / steps, 1.0)


def monitor_of(library: Any, monitor: Monitor) -> Any:
    """``monitor`` as the library's own kind."""

    class Adapter(library.IProgressMonitor):  # type: ignore[misc]  # as in logger_of
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            monitor.start(name, parent, steps)

        def step_complete(self, name: str, index: int) -> bool:
            return monitor.step(name, index)

        def phase_finish(self, name: str) -> None:
            monitor.finish(name)

    return Adapter()


def _failed(given: str) -> BuildError:
    return BuildError(
        given,
        expected="a graph that the library can build",
        fix="update the library, or pass --backend onnxruntime",
    )
