"""What takes seconds and depends on nothing but its input is done once for all tests.

A graph is traced once for all processes of a run, for the tests that are about what comes after:
naming, quantising, sharing weights, writing and checking are done anew for each export. A piece of
a model is compiled once likewise. A test of the tracing or compiling itself does without.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from fresco_trt.backends.base import StageGraph

MOST_GRAPHS = 12
"""Graphs that a process keeps in memory: each holds weights of up to 21 MB."""

_KEPT: OrderedDict[str, Any] = OrderedDict()


@contextmanager
def traced_once(temporary: pytest.TempPathFactory) -> Iterator[None]:
    """Within the scope, ``export_stages`` traces only what no process of the run has traced."""
    import onnx_ir as ir

    from fresco_trt.lower import export

    # A scope within another one takes what traces, not the other's memory: it would wait for a
    # lock that it holds.
    trace = inspect.unwrap(export._traced)
    store = shared_folder(temporary) / "traced"
    store.mkdir(exist_ok=True)

    def stored(graph: StageGraph, path: Path) -> Any:
        with locked(path):
            if path.exists():
                return ir.load(path)
            model = trace(graph)
            ir.save(model, path)
            return model

    @wraps(trace)
    def remembered(graph: StageGraph) -> Any:
        key = _key(graph)
        if key not in _KEPT:
            _KEPT[key] = _owning(stored(graph, store / f"{key}.onnx"))
            if len(_KEPT) > MOST_GRAPHS:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        return _KEPT[key].clone()

    with operators_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_traced", remembered)
        yield


@contextmanager
def operators_once() -> Iterator[None]:
    """Within the scope, torch's table of ONNX operators is read once, not once a graph, and its C++
    operators are made known to Python once, not a hundred times a graph.
    """
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read, make_known = _remembering()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", read)
        patch.setattr(utils, "_materialize_cpp_cia_ops", make_known)
        yield


@cache
def _remembering() -> tuple[Any, Any]:
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = staticmethod(cache(ONNXRegistry.from_torchlib))
    return read, cache(utils._materialize_cpp_cia_ops)


@contextmanager
def compiled_once(temporary: pytest.TempPathFactory, helper: Any = None) -> Iterator[None]:
    """Within the scope, inductor compiles only what no process of the run has compiled before.

    A file's name says all that its code relies on. What is compiled is, in a process of its own, as
    where there are many cores; a run of the tests has something for the others to do. That process
    is ``helper`` where one is given.
    """
    from fresco_trt.backends.inductor import backend, pool, worker

    store = shared_folder(temporary) / "compiled"
    store.mkdir(exist_ok=True)

    def remembered(pieces: Any, device: str, threads: Any, done: Any) -> None:
        with ExitStack() as locks:
            for name in sorted(piece.path.name for piece in pieces):
                locks.enter_context(locked(store / name))
            new = [piece for piece in pieces if not (store / piece.path.name).exists()]
            if new:
                told = {piece: worker.packed(piece.layer, piece.signature) for piece in new}
                pool.side_by_side(told, device, 1, 1, done)
            for piece in new:
                shutil.copyfile(piece.path, store / piece.path.name)
        for piece in pieces:
            shutil.copyfile(store / piece.path.name, piece.path)

    with pytest.MonkeyPatch.context() as patch, _reading_headers_once(store):
        patch.setattr(backend, "compile_pieces", remembered)
        if helper is not None:
            patch.setattr(pool, "_helpers", lambda *given: nullcontext([helper]))
        yield


@contextmanager
def compiling_helper(temporary: pytest.TempPathFactory) -> Iterator[Any]:
    """A process that compiles for several builds: torch's compiler takes longer to import and to
    make its patterns than most pieces take to compile.
    """
    from fresco_trt.backends.inductor import pool

    store = shared_folder(temporary) / "compiled"
    store.mkdir(exist_ok=True)
    with (
        _reading_headers_once(store),
        pool._helpers(1, temporary.mktemp("helper"), 1) as helpers,
    ):
        yield helpers[0]


@contextmanager
def _reading_headers_once(store: Path) -> Iterator[None]:
    """Within the scope, a process starts with a compiler that keeps what it read in ``store``."""
    from tests import cxx

    with pytest.MonkeyPatch.context() as patch:
        if shutil.which(cxx.COMPILER) and "CXX" not in os.environ:
            with locked(store / cxx.COMPILER):
                patch.setenv("CXX", str(cxx.script(store)))
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, of all that name this path."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def shared_folder(temporary: pytest.TempPathFactory) -> Path:
    """A folder of all processes of a run; each of them has a session of its own."""
    folder = temporary.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def _owning(model: Any) -> Any:
    """The graph with weights of its own: a test may write into the module's."""
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def _key(graph: StageGraph) -> str:
    """Of everything that a trace depends on: classes, their settings, weights and shapes."""
    said = hashlib.sha256(repr((graph.signature, graph.profiles)).encode())
    for name, module in graph.module.named_modules():
        settings = {key: value for key, value in vars(module).items() if _is_setting(value)}
        said.update(repr((name, _code(module), settings)).encode())
        said.update(repr(_code(getattr(module, "processor", None))).encode())
    for name, value in (*graph.module.named_parameters(), *graph.module.named_buffers()):
        said.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        said.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return said.hexdigest()


def _is_setting(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple))


def _code(thing: object) -> tuple[object, ...]:
    """A class, and the forward of its own that an object may have. What has no name of its own is
    known in this process alone.
    """
    kind = type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    run = vars(thing).get("forward") if hasattr(thing, "__dict__") else None
    named = getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind
    return (name,) if named and run is None else (name, id(run or kind), os.getpid())
