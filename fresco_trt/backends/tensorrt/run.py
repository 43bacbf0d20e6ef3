"""A loaded TensorRT plan at work: fixed buffers, scratch memory that engines share, CUDA graphs.

The request-time half of ``tensorrt.py``; takes library and device as values, as
``tensorrt_build.py`` does.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from mmap import ACCESS_READ, mmap
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fresco_trt.backends.cuda_device import Device, out_of_memory
from fresco_trt.backends.tensorrt.build import listening
from fresco_trt.backends.tensorrt.layers import engine_information, layer_report
from fresco_trt.errors import EngineFailed, EnvironmentMismatch, OutOfDeviceMemory
from fresco_trt.plan.signature import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.backends.base import EngineFile
    from fresco_trt.backends.cuda_graph import Graph
    from fresco_trt.plan.signature import GraphSignature

_LOG = logging.getLogger("fresco_trt.tensorrt")
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|cannot allocate", re.IGNORECASE)


class Arena:
    """Scratch memory for the engines in scope: one buffer, as large as the largest of them needs.

    Engines that share it run on one stream, one after another, and keep nothing in it between two
    calls. The buffer is made by the first call, when all engines of a bundle have said what they
    need, made anew for a larger one that comes later, and freed with the last of them.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._needs: list[int] = []
        self._buffer: Tensor | None = None

    @contextmanager
    def share(self, size: int) -> Iterator[Callable[[], Tensor]]:
        """Within the scope: what gives the buffer, uint8, of at least ``size`` bytes.

        Its address is the same until a larger engine comes. Raises OutOfDeviceMemory when called.
        """
        self._needs.append(size)
        try:
            yield self._memory
        finally:
            self._needs.remove(size)
            if not self._needs:
                self._buffer = None

    def _memory(self) -> Tensor:
        size = max(1, *self._needs)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = None  # the old one is gone before there is a new one
            self._buffer = self._device.empty(
                TensorSpec(name="scratch", dtype="uint8", shape=(size,))
            )
        return self._buffer


class Session:
    """One execution context over buffers that never move; called with named tensors.

    It is enqueued through ``graph``, whose first launch is plain, as TensorRT asks before a
    capture.
    """

    def __init__(
        self,
        name: str,
        context: Any,
        buffers: Mapping[str, Tensor],
        outputs: Sequence[str],
        *,
        graph: Graph,
        scratch: Callable[[], Tensor],
        errors: deque[str],
        inspect: Callable[[], str | None],
    ) -> None:
        self._context, self._graph = context, graph
        self._buffers, self._outputs = buffers, outputs
        self._scratch, self._errors, self._inspect = scratch, errors, inspect
        self._scratch_at: int | None = None
        for tensor, buffer in buffers.items():
            if not context.set_tensor_address(tensor, buffer.data_ptr()):
                raise failed(f"{name} has no tensor {tensor}", errors)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The outputs, which the next call overwrites. Raises EngineFailed or OutOfDeviceMemory."""
        self._errors.clear()
        with self._graph.device.stream() as stream:
            for name, tensor in inputs.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
            self._set_scratch()
            self._queue(stream)
        return {name: self._buffers[name] for name in self._outputs}

    def layers(self) -> dict[str, Any] | None:
        """What the engine is made of, as :func:`~fresco_trt.backends.tensorrt.layers.layer_report`
        says it.
        """
        return layer_report(self._inspect())

    def close(self) -> None:
        """Drop the CUDA graph, which must not outlive the context that it was captured from."""
        self._graph.forget()

    def _set_scratch(self) -> None:
        """Tell the context where the scratch memory is; a graph knows only where it was."""
        memory = self._scratch()
        if memory.data_ptr() == self._scratch_at:
            return
        self._graph.forget()
        self._context.set_device_memory(memory.data_ptr(), memory.numel())
        self._scratch_at = memory.data_ptr()

    def _queue(self, stream: int) -> None:
        check = partial(_check_capturable, self._context, stream)
        try:
            self._graph.queue(partial(self._enqueue, stream), check)
        except RuntimeError as error:
            self._errors.append(str(error))
            raise failed("the captured engine did not start", self._errors) from error

    def _enqueue(self, stream: int) -> None:
        self._errors.clear()  # of a capture that broke: they are in its warning, no fault of this
        if not self._context.execute_async_v3(stream):
            raise failed("the engine did not start", self._errors)


class Engines:
    """Opens the plans of one backend: each is on the device once, whatever runners use it, and all
    their sessions share a stream and scratch memory.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._arena = Arena(device)
        self._loaded: WeakValueDictionary[object, _Loaded] = WeakValueDictionary()

    @contextmanager
    def open(self, library: Any, path: Path, record: EngineFile, graph: Graph) -> Iterator[Session]:
        """A session of the plan at ``path``, with its profile for the signature of ``record``,
        enqueued through ``graph``.

        Raises EnvironmentMismatch, EngineFailed or OutOfDeviceMemory.
        """
        with listening(library) as (logger, errors):
            loaded = self._load(library, logger, path, errors)
            context = _new_context(library, loaded.engine)
            if context is None:
                raise failed(f"{path.name} gives no context", errors)
            need = self._choose_profile(loaded.engine, context, path.name, record.signature, errors)
            with self._arena.share(need) as scratch:
                session = Session(
                    record.name,
                    context,
                    self._buffers(library, loaded.engine, context, record.signature),
                    [spec.name for spec in record.signature.outputs],
                    graph=graph,
                    scratch=scratch,
                    errors=errors,
                    inspect=partial(engine_information, library, loaded.engine, context),
                )
                try:
                    yield session
                finally:
                    session.close()

    def _load(self, library: Any, logger: Any, path: Path, errors: deque[str]) -> _Loaded:
        """The engine of a plan file, from the device if a runner in scope has it there."""
        state = path.stat()
        key = (path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = _Loaded(library.Runtime(logger), library, path)
            if loaded.engine is None:
                raise failed(f"{path.name} does not load", errors)
            self._loaded[key] = loaded
        return loaded

    def _choose_profile(
        self, engine: Any, context: Any, name: str, signature: GraphSignature, errors: deque[str]
    ) -> int:
        """Give a new context the shapes of its inputs; bytes of scratch memory that it needs."""
        varying = [spec for spec in signature.inputs if -1 in tuple(_shape(engine, spec.name))]
        if not varying:
            return int(engine.device_memory_size_v2)
        shapes = ", ".join(map(str, varying))
        index = _profile_of(engine, varying)
        if index is None:
            raise failed(f"{name} has no profile for {shapes}", errors)
        with self._device.stream() as stream:
            done = context.set_optimization_profile_async(index, stream)
        if not done or not all(context.set_input_shape(spec.name, spec.shape) for spec in varying):
            raise failed(f"{name} does not take {shapes}", errors)
        return int(engine.get_device_memory_size_for_profile_v2(index))

    def _buffers(
        self, library: Any, engine: Any, context: Any, signature: GraphSignature
    ) -> dict[str, Tensor]:
        """One for each tensor, also for outputs that another stage has a use for and this has not.

        An input that is none of the signature's is left without, and the engine refuses to start.
        """
        buffers = {
            spec.name: self._device.empty(spec) for spec in (*signature.inputs, *signature.outputs)
        }
        for name in _outputs(library, engine) - buffers.keys():
            size = (
                math.prod(context.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
            )
            buffers[name] = self._device.empty(TensorSpec(name=name, dtype="uint8", shape=(size,)))
        return buffers


class _Loaded:
    """An engine on the device, None if it could not be put there; to be held weakly."""

    def __init__(self, runtime: Any, library: Any, path: Path) -> None:
        self._runtime = runtime  # must outlive the engine
        # As large as its weights: mapped, it takes no memory that the host cannot have back.
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as plan:
            _check_validity(library, runtime, plan, path)
            self.engine = runtime.deserialize_cuda_engine(plan)
        if self.engine is not None:
            _place_weights(self.engine, path.name)


def _place_weights(engine: Any, name: str) -> None:
    """Of a plan built to stream its weights, put on the device as many as the library finds room
    for; before there is a context, as it asks.
    """
    size = int(engine.streamable_weights_size)
    if size == 0:
        return
    budget = int(engine.get_weight_streaming_automatic_budget())
    engine.weight_streaming_budget_v2 = budget
    kept = min(budget, size)
    _LOG.info("%s: %d of %d bytes of weights stay on the device", name, kept, size)


def _shape(engine: Any, name: str) -> Any:
    """Empty for a tensor that the engine does not have: it is refused when it is given a place."""
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    return engine.get_tensor_shape(name) if name in names else ()


def _outputs(library: Any, engine: Any) -> set[str]:
    names = (str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors))
    return {name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.OUTPUT}


def _profile_of(engine: Any, specs: Sequence[TensorSpec]) -> int | None:
    """The profile whose one shape is that of these inputs."""
    for index in range(engine.num_optimization_profiles):
        shapes = (engine.get_tensor_profile_shape(spec.name, index) for spec in specs)
        if all(
            tuple(size) == spec.shape
            for spec, sizes in zip(specs, shapes, strict=True)
            for size in sizes
        ):
            return index
    return None


def _check_validity(library: Any, runtime: Any, plan: mmap, path: Path) -> None:
    """TensorRT for RTX says itself whether a plan runs here, and why not."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != library.EngineValidity.INVALID:
        return
    flags = library.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name.lower().replace("_", " ") for name, flag in flags if diagnostics & int(flag)]
    raise EnvironmentMismatch(
        f"{path.name} does not run here: {', '.join(reasons) or 'no reason given'}",
        expected="the library, driver and GPU that it was built for",
        fix="update the driver, or build the bundle again on this machine",
    )


def _new_context(library: Any, engine: Any) -> Any:
    """An execution context without scratch memory of its own, or None."""
    strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
    kinds = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
    if kinds is None:
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # By default TensorRT for RTX compiles the kernels of a profile behind the first calls, and a
    # graph that was captured before they are done would keep the slow ones.
    config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
    return engine.create_execution_context(config)


def _check_capturable(context: Any, stream: int) -> None:
    """TensorRT for RTX says beforehand whether it can be captured; TensorRT is to be tried."""
    if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
        raise RuntimeError("the library says that its work on this stream cannot be captured")


def failed(given: str, errors: deque[str]) -> EngineFailed | OutOfDeviceMemory:
    """The error for what the library refused, with its own last words."""
    text = f"{given}: {errors[-1]}" if errors else given
    if any(_OUT_OF_MEMORY.search(error) for error in errors):
        return out_of_memory(text)
    return EngineFailed(
        text,
        expected="a plan that loads and runs",
        fix="run 'fresco-trt verify', or build the bundle again",
    )
